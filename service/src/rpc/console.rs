use std::path::PathBuf;

use retrovisor_manager::ManagerError;
use retrovisor_proto::v1::{ConsoleRequest, ConsoleResponse};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::shutdown::Shutdown;
use super::stream::Answers;
use super::{Services, status};

/// Most output in one message, in bytes.
const CHUNK_BYTES: usize = 16 << 10;
/// Messages that wait for a slow client; further output of the guest stays in the socket.
const WAITING_MAX: usize = 16;

impl Services {
    /// Passes bytes between the client and the machine's serial port until one of them disconnects.
    pub(super) async fn open_console(
        &self,
        mut requests: Streaming<ConsoleRequest>,
    ) -> Result<Answers<ConsoleResponse>, Status> {
        let nothing = || Status::invalid_argument("the first message names the machine");
        let first = requests.message().await?.ok_or_else(nothing)?;
        let socket = self.blocking(move |services| services.console_socket(&first.machine)).await?;
        let stream = UnixStream::connect(&socket).await.map_err(|source| {
            status::of(&ManagerError::Io {
                doing: format!("cannot open the console at {}", socket.display()),
                source,
            })
        })?;
        let (mut guest_output, mut guest_input) = stream.into_split();
        let shutdown = self.shutdown.clone().begun();
        let (to, answers) = mpsc::channel(WAITING_MAX);
        tokio::spawn({
            let to = to.clone();
            async move {
                let mut bytes = vec![0; CHUNK_BYTES];
                tokio::pin!(shutdown);
                loop {
                    let count = tokio::select! {
                        count = guest_output.read(&mut bytes) => count.unwrap_or(0),
                        () = to.closed() => return,
                        () = &mut shutdown => {
                            // A client that has disconnected does not need the reason.
                            let _ = to.send(Err(Shutdown::status())).await;
                            return;
                        }
                    };
                    let output = bytes[..count].to_vec();
                    if count == 0 || to.send(Ok(ConsoleResponse { output })).await.is_err() {
                        return;
                    }
                }
            }
        });
        tokio::spawn(async move {
            if guest_input.write_all(&first.input).await.is_err() {
                return;
            }
            while let Ok(Some(request)) = requests.message().await {
                if guest_input.write_all(&request.input).await.is_err() {
                    return;
                }
            }
            // A client that sends no more input still reads: the port stays open until it disconnects.
            to.closed().await;
        });
        Ok(Box::pin(ReceiverStream::new(answers)))
    }

    fn console_socket(&self, machine: &str) -> Result<PathBuf, ManagerError> {
        self.manager.store().catalogue().machine(machine)?;
        let status = Some(self.manager.status(machine)?)
            .filter(|status| status.state.has_actor())
            .ok_or_else(|| ManagerError::Gone { machine: machine.to_owned() })?;
        status.console.ok_or_else(|| ManagerError::Refused {
            what: format!("the console of {machine} is not known"),
            help: "Retrovisor knows the consoles of machines that it started; for others, ask what started them."
                .to_owned(),
        })
    }
}
