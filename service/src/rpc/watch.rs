use std::pin::Pin;

use retrovisor_proto::v1::watch_response::Event as Told;
use retrovisor_proto::v1::watch_service_server::WatchService;
use retrovisor_proto::v1::{WatchRequest, WatchResponse};
use tokio_stream::wrappers::BroadcastStream;
use tokio_stream::wrappers::errors::BroadcastStreamRecvError;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status};

use super::{Services, convert, status};
use retrovisor_manager::{Event, EventKind, ManagerError};

#[tonic::async_trait]
impl WatchService for Services {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<WatchResponse, Status>> + Send>>;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let wanted = request.into_inner().machine;
        let services = self.clone();
        let events = BroadcastStream::new(self.manager.watch()).filter_map(move |event| match event {
            Ok(event) if wanted.is_empty() || event.machine == wanted => {
                Some(told(&services, &event).map_err(|error| status::of(&error)))
            }
            Ok(_) => None,
            Err(BroadcastStreamRecvError::Lagged(count)) => {
                Some(Ok(WatchResponse { event: Some(Told::Missed(count)), ..WatchResponse::default() }))
            }
        });
        Ok(Response::new(Box::pin(events)))
    }
}

fn told(services: &Services, event: &Event) -> Result<WatchResponse, ManagerError> {
    let store = services.manager.store();
    let told = match &event.kind {
        EventKind::Checkpoint(record, reasons) => {
            let mut checkpoint = convert::checkpoint(store, record)?;
            checkpoint.reasons.clone_from(reasons);
            Told::Checkpoint(checkpoint)
        }
        EventKind::Incident(record) => Told::Incident(convert::incident(store, record)?),
        EventKind::Rollback(journey) => Told::Move(convert::journey(store, journey)?),
        EventKind::Injected(done) => Told::Injected(done.clone()),
        EventKind::Error(what) => Told::Trouble(what.clone()),
    };
    Ok(WatchResponse { machine: event.machine.clone(), at_ms: event.at_ms, event: Some(told) })
}
