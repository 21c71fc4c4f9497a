use retrovisor_manager::{Command, Fault};
use retrovisor_proto::v1::fault_service_server::FaultService;
use retrovisor_proto::v1::inject_request::Fault as Asked;
use retrovisor_proto::v1::{
    FaultKind, FaultParameter, InjectRequest, InjectResponse, ListFaultsRequest, ListFaultsResponse,
    MemoryFault,
};
use tonic::{Request, Response, Status};

use super::{Services, status};

#[tonic::async_trait]
impl FaultService for Services {
    async fn inject(&self, request: Request<InjectRequest>) -> Result<Response<InjectResponse>, Status> {
        let InjectRequest { machine, fault } = request.into_inner();
        let fault = match fault {
            Some(Asked::MemoryFault(MemoryFault { name, arguments })) => Fault::Memory { name, arguments },
            Some(Asked::ConsoleCommand(command)) => Fault::ConsoleCommand { line: command.line },
            None => return Err(Status::invalid_argument("no fault is named")),
        };
        let (done, operation) = self
            .manager
            .ask(&machine, |reply| Command::Inject { fault, reply })
            .await
            .map_err(|error| status::of(&error))?;
        Ok(Response::new(InjectResponse { operation, done }))
    }

    async fn list_faults(
        &self,
        _request: Request<ListFaultsRequest>,
    ) -> Result<Response<ListFaultsResponse>, Status> {
        let parameter = |parameter: &retrovisor_faults::Parameter| FaultParameter {
            name: parameter.name.to_owned(),
            unit: parameter.unit.to_owned(),
            doc: parameter.doc.to_owned(),
            default_value: parameter.default.map(str::to_owned),
        };
        let faults = retrovisor_faults::all().iter().map(|fault| FaultKind {
            name: fault.name().to_owned(),
            doc: fault.doc().to_owned(),
            parameters: fault.parameters().iter().map(parameter).collect(),
            expected: fault.expected().to_owned(),
        });
        Ok(Response::new(ListFaultsResponse { faults: faults.collect() }))
    }
}
