//! The end of the daemon: streams end first, then connections; a second signal ends everything at once.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tonic::Status;

/// As a shell shows a process that SIGTERM has ended.
const EXIT_CODE_SECOND_SIGNAL: i32 = 128 + 15;

/// Whether the daemon is ending. Cheap to clone.
#[derive(Clone)]
pub(super) struct Shutdown(watch::Receiver<bool>);

impl Shutdown {
    /// One that never begins: a server in the process of its only client ends with it.
    pub(super) fn never() -> Self {
        Self(watch::channel(false).1)
    }

    /// One that begins at the first SIGINT or SIGTERM. The second one ends the process.
    pub(super) fn at_signal() -> std::io::Result<Self> {
        let (sender, receiver) = watch::channel(false);
        let (mut terminate, mut interrupt) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        tokio::spawn(async move {
            next(&mut terminate, &mut interrupt).await;
            // Without a receiver the server has ended already.
            let _ = sender.send(true);
            next(&mut terminate, &mut interrupt).await;
            errln!("a second signal: ending at once; machines are attached again at the next start");
            std::process::exit(EXIT_CODE_SECOND_SIGNAL);
        });
        Ok(Self(receiver))
    }

    pub(super) fn has_begun(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits until it begins.
    pub(super) async fn begun(mut self) {
        if self.0.wait_for(|begun| *begun).await.is_err() {
            // One that never begins.
            std::future::pending::<()>().await;
        }
    }

    /// The last message of a stream that the end of the daemon cuts off.
    pub(super) fn status() -> Status {
        Status::unavailable("the daemon is shutting down")
    }
}

async fn next(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
