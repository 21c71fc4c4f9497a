use retrovisor_manager::{Command, Fault};
use retrovisor_proto::v1::fault_service_server::FaultService;
use retrovisor_proto::v1::inject_request::Fault as Asked;
use retrovisor_proto::v1::{InjectRequest, InjectResponse};
use tonic::{Request, Response, Status};

use super::{Services, status};

#[tonic::async_trait]
impl FaultService for Services {
    async fn inject(&self, request: Request<InjectRequest>) -> Result<Response<InjectResponse>, Status> {
        let InjectRequest { machine, fault } = request.into_inner();
        let fault = match fault {
            Some(Asked::SyscallRedirect(redirect)) => {
                Fault::SyscallRedirect { syscall: redirect.syscall, to: redirect.to }
            }
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
}
