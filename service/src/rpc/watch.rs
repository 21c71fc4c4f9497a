use retrovisor_manager::{Event, EventKind, ManagerError};
use retrovisor_proto::v1::watch_response::Event as Message;
use retrovisor_proto::v1::watch_service_server::WatchService;
use retrovisor_proto::v1::{StateChange, WatchRequest, WatchResponse};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::shutdown::Shutdown;
use super::stream::Answers;
use super::{Services, convert};

/// Messages that wait for a slow client before events are counted as missed.
const WAITING_MAX: usize = 16;

#[tonic::async_trait]
impl WatchService for Services {
    type WatchStream = Answers<WatchResponse>;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let wanted = request.into_inner().machine;
        if !wanted.is_empty() {
            let name = wanted.clone();
            self.blocking(move |services| Ok(services.manager.store().catalogue().machine(&name)?)).await?;
        }
        let mut events = self.manager.watch();
        let services = self.clone();
        let (to, stream) = mpsc::channel(WAITING_MAX);
        tokio::spawn(async move {
            let ended = services.shutdown.clone().begun();
            tokio::pin!(ended);
            loop {
                let message = tokio::select! {
                    event = events.recv() => match event {
                        Ok(event) if wanted.is_empty() || event.machine == wanted => {
                            services.blocking(move |services| message(services, &event)).await
                        }
                        Ok(_) => continue,
                        Err(RecvError::Lagged(count)) => {
                            Ok(WatchResponse { event: Some(Message::Missed(count)), ..WatchResponse::default() })
                        }
                        Err(RecvError::Closed) => return,
                    },
                    () = &mut ended => Err(Shutdown::status()),
                    () = to.closed() => return,
                };
                let is_last = message.is_err();
                if to.send(message).await.is_err() || is_last {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

fn message(services: &Services, event: &Event) -> Result<WatchResponse, ManagerError> {
    let store = services.manager.store();
    let message = match &event.kind {
        EventKind::Checkpoint(record, reasons) => {
            let mut checkpoint = convert::checkpoint(store, record)?;
            checkpoint.reasons.clone_from(reasons);
            Message::Checkpoint(checkpoint)
        }
        EventKind::Incident(record) => Message::Incident(convert::incident(store, record)?),
        EventKind::Rollback(rollback) => Message::Rollback(convert::rollback(store, rollback)?),
        EventKind::Injected(done) => Message::Injected(done.clone()),
        EventKind::State(state, reason) => {
            Message::State(StateChange { state: convert::state(*state).into(), reason: reason.clone() })
        }
        EventKind::Guest(event) => Message::Guest(convert::guest_event(event)),
        EventKind::Error(what) => Message::Error(what.clone()),
    };
    Ok(WatchResponse { machine: event.machine.clone(), at_ms: event.at_ms, event: Some(message) })
}
