//! Long operations outside of the async threads, whose messages are streamed.

use std::ops::ControlFlow;
use std::pin::Pin;

use retrovisor_manager::ManagerError;
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status};

use super::shutdown::Shutdown;
use super::{Services, status};

/// Messages that wait for a slow client.
const WAITING_MAX: usize = 16;

/// The stream that a client receives.
pub(super) type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The client of a long operation.
pub(super) struct Caller<T> {
    to: mpsc::Sender<Result<T, Status>>,
    shutdown: Shutdown,
}

impl<T> Caller<T> {
    /// Sends a message; waits while the client is slow. `false` when it has disconnected.
    pub(super) fn send(&self, message: T) -> bool {
        self.to.blocking_send(Ok(message)).is_ok()
    }

    /// Sends progress, unless the client is slow. Whether the operation is to continue: not when the client has disconnected or
    /// the daemon ends.
    pub(super) fn progress(&self, message: T) -> ControlFlow<()> {
        match self.to.try_send(Ok(message)) {
            _ if self.shutdown.has_begun() => ControlFlow::Break(()),
            Err(TrySendError::Closed(_)) => ControlFlow::Break(()),
            Ok(()) | Err(TrySendError::Full(_)) => ControlFlow::Continue(()),
        }
    }
}

impl Services {
    /// Runs a long operation and streams its messages. An error is the last one.
    pub(super) fn stream<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self, &Caller<T>) -> Result<(), ManagerError> + Send + 'static,
    ) -> Response<Answers<T>> {
        let (to, stream) = mpsc::channel(WAITING_MAX);
        let services = self.clone();
        let caller = Caller { to, shutdown: self.shutdown.clone() };
        tokio::task::spawn_blocking(move || {
            if let Err(error) = work(&services, &caller) {
                // A client that has disconnected does not need the error.
                let _ = caller.to.blocking_send(Err(status::of(&error)));
            }
        });
        Response::new(Box::pin(ReceiverStream::new(stream)))
    }
}
