use std::path::PathBuf;

use retrovisor_proto::v1::{ConsoleRequest, ConsoleResponse};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::stream::Answers;
use super::{Services, status};
use retrovisor_manager::ManagerError;

/// Output that is passed on at once, in bytes.
const CHUNK_BYTES: usize = 16 << 10;
/// Messages that wait for a slow caller; what the guest says meanwhile waits before them.
const WAITING_MAX: usize = 16;

impl Services {
    /// Passes bytes between the caller and the machine's serial port until one of them goes away.
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
        let (mut said, mut typed) = stream.into_split();
        let (to, answers) = mpsc::channel(WAITING_MAX);
        tokio::spawn({
            let to = to.clone();
            async move {
                let mut bytes = vec![0; CHUNK_BYTES];
                loop {
                    let count = tokio::select! {
                        count = said.read(&mut bytes) => count.unwrap_or(0),
                        () = to.closed() => return,
                    };
                    let output = bytes[..count].to_vec();
                    if count == 0 || to.send(Ok(ConsoleResponse { output })).await.is_err() {
                        return;
                    }
                }
            }
        });
        tokio::spawn(async move {
            if typed.write_all(&first.input).await.is_err() {
                return;
            }
            while let Ok(Some(request)) = requests.message().await {
                if typed.write_all(&request.input).await.is_err() {
                    return;
                }
            }
            // Whoever has no more to type still listens: the port stays open for that long.
            to.closed().await;
        });
        Ok(Box::pin(ReceiverStream::new(answers)))
    }

    fn console_socket(&self, machine: &str) -> Result<PathBuf, ManagerError> {
        self.manager.store().catalogue().machine(machine)?;
        let vitals =
            self.manager.status(machine).ok_or_else(|| ManagerError::Gone { machine: machine.to_owned() })?;
        vitals.console.ok_or_else(|| ManagerError::Refused {
            what: format!("{machine} has no console that we know of"),
            help: "Only machines that Retrovisor started have one; use that of the program which started it."
                .to_owned(),
        })
    }
}
