//! Connections to a server: the daemon's, or, where none is needed, one in this process that serves the store on disk.

use std::path::Path;
use std::sync::Arc;

use hyper_util::rt::TokioIo;
use retrovisor_manager::Manager;
use retrovisor_proto::v1::anomaly_service_client::AnomalyServiceClient;
use retrovisor_proto::v1::checkpoint_service_client::CheckpointServiceClient;
use retrovisor_proto::v1::fault_service_client::FaultServiceClient;
use retrovisor_proto::v1::machine_service_client::MachineServiceClient;
use retrovisor_proto::v1::query_service_client::QueryServiceClient;
use retrovisor_proto::v1::store_service_client::StoreServiceClient;
use retrovisor_proto::v1::transfer_service_client::TransferServiceClient;
use retrovisor_proto::v1::watch_service_client::WatchServiceClient;
use retrovisor_snapshot::{Access, RecorderSettings, Store};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

use crate::error::CliError;
use crate::{place, rpc};

/// Reports hold inline charts, and tables of facts can be long.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// Clients of every service over one channel.
#[derive(Clone)]
pub(crate) struct Client {
    channel: Channel,
}

impl Client {
    pub(crate) fn machines(&self) -> MachineServiceClient<Channel> {
        MachineServiceClient::new(self.channel.clone())
    }

    pub(crate) fn checkpoints(&self) -> CheckpointServiceClient<Channel> {
        CheckpointServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    pub(crate) fn anomalies(&self) -> AnomalyServiceClient<Channel> {
        AnomalyServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    pub(crate) fn queries(&self) -> QueryServiceClient<Channel> {
        QueryServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    pub(crate) fn faults(&self) -> FaultServiceClient<Channel> {
        FaultServiceClient::new(self.channel.clone())
    }

    pub(crate) fn store(&self) -> StoreServiceClient<Channel> {
        StoreServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    pub(crate) fn transfers(&self) -> TransferServiceClient<Channel> {
        TransferServiceClient::new(self.channel.clone())
    }

    pub(crate) fn watch(&self) -> WatchServiceClient<Channel> {
        WatchServiceClient::new(self.channel.clone())
    }
}

/// Connects to the daemon of this store.
pub(crate) async fn daemon(store: &Path) -> Result<Client, CliError> {
    place::check_owner(store)?;
    let socket = place::socket(store);
    over_socket(&socket).await.ok_or_else(|| {
        CliError::refused(
            format!("no daemon answers at {}", socket.display()),
            format!("Start it with: retrovisor --store {} serve", store.display()),
        )
    })
}

/// Connects to the daemon, or, when none runs, reads the store without one.
pub(crate) async fn reader(store: &Path) -> Result<Client, CliError> {
    daemon_or(store, Access::ReadOnly).await
}

/// Connects to the daemon, or, when none runs, opens the store for writing without one.
pub(crate) async fn writer(store: &Path) -> Result<Client, CliError> {
    daemon_or(store, Access::ReadWrite).await
}

/// As [`writer`], but a store that does not exist is made.
pub(crate) async fn importer(store: &Path) -> Result<Client, CliError> {
    daemon_or(store, Access::Create).await
}

async fn daemon_or(store: &Path, access: Access) -> Result<Client, CliError> {
    place::check_owner(store)?;
    if let Some(client) = over_socket(&place::socket(store)).await {
        return Ok(client);
    }
    if access == Access::Create
        && let Some(changed) = place::prepare_store(store)?
    {
        errln!("{changed}");
    }
    if access != Access::Create && !store.join("catalogue.sqlite").exists() {
        return Err(CliError::not_found(
            format!("there is no store at {}", store.display()),
            "Name another one with --store, run `retrovisor demo`, or start the daemon with `retrovisor serve`.",
        ));
    }
    let opened = Store::open(store, access).map_err(|error| CliError::failed(error.to_string()))?;
    in_process(Arc::new(Manager::new(
        Arc::new(opened),
        store,
        RecorderSettings::default(),
        retrovisor_machine::drivers(&place::hubs(store)),
    )))
    .await
}

/// Starts a server in this process and connects to it.
pub(crate) async fn in_process(manager: Arc<Manager>) -> Result<Client, CliError> {
    let (ours, theirs) = tokio::io::duplex(1 << 20);
    tokio::spawn(async move {
        let incoming = tokio_stream::once(Ok::<_, std::io::Error>(theirs));
        if let Err(error) = rpc::routes(manager).await.serve_with_incoming(incoming).await {
            tracing::error!(%error, "the in-process server ended");
        }
    });
    let mut ours = Some(ours);
    let connector = service_fn(move |_: Uri| {
        let stream = ours.take().map(TokioIo::new);
        async move { stream.ok_or_else(|| std::io::Error::other("the in-process connection was closed")) }
    });
    let channel = Endpoint::from_static("http://in-process")
        .connect_with_connector(connector)
        .await
        .map_err(|error| CliError::failed(error.to_string()))?;
    Ok(Client { channel })
}

async fn over_socket(socket: &Path) -> Option<Client> {
    let path = socket.to_owned();
    let connector = service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    let channel = Endpoint::from_static("http://daemon").connect_with_connector(connector).await.ok()?;
    Some(Client { channel })
}
