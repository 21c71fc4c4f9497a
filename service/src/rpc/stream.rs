//! Long work on a thread of its own, whose words are streamed.

use std::ops::ControlFlow;
use std::pin::Pin;

use tokio::sync::mpsc::{self, error::TrySendError};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status};

use super::{Services, status};
use retrovisor_manager::ManagerError;

/// Messages that wait for a slow caller.
const WAITING_MAX: usize = 16;

/// What a caller hears.
pub(super) type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The way to the caller.
pub(super) type Caller<T> = mpsc::Sender<Result<T, Status>>;

impl Services {
    /// Does the work and streams what it says; an error is its last word.
    pub(super) fn stream<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self, &Caller<T>) -> Result<(), ManagerError> + Send + 'static,
    ) -> Response<Answers<T>> {
        let (to, stream) = mpsc::channel(WAITING_MAX);
        let services = self.clone();
        tokio::task::spawn_blocking(move || {
            if let Err(error) = work(&services, &to) {
                // The caller may have gone: then nobody wants the error.
                let _ = to.blocking_send(Err(status::of(&error)));
            }
        });
        Response::new(Box::pin(ReceiverStream::new(stream)))
    }
}

/// Tells how far the work is. What a slow caller does not take is dropped; when the caller has gone, the work ends.
pub(super) fn progress<T>(to: &Caller<T>, message: T) -> ControlFlow<()> {
    match to.try_send(Ok(message)) {
        Err(TrySendError::Closed(_)) => ControlFlow::Break(()),
        Ok(()) | Err(TrySendError::Full(_)) => ControlFlow::Continue(()),
    }
}
