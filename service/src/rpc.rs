//! The gRPC services, one file for each. They convert messages and call the manager, the store and the analytics.

mod anomalies;
mod authority;
mod branch;
mod checkpoints;
mod console;
mod convert;
mod deadline;
mod difference;
mod faults;
mod inspect;
mod machines;
mod query;
mod shutdown;
mod status;
mod store;
mod stream;
mod transfer;
mod watch;

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use retrovisor_manager::{Manager, ManagerError};
use retrovisor_proto::v1::anomaly_service_server::AnomalyServiceServer;
use retrovisor_proto::v1::checkpoint_service_server::CheckpointServiceServer;
use retrovisor_proto::v1::fault_service_server::FaultServiceServer;
use retrovisor_proto::v1::machine_service_server::MachineServiceServer;
use retrovisor_proto::v1::query_service_server::QueryServiceServer;
use retrovisor_proto::v1::store_service_server::StoreServiceServer;
use retrovisor_proto::v1::transfer_service_server::TransferServiceServer;
use retrovisor_proto::v1::watch_service_server::WatchServiceServer;
use tokio::net::{TcpListener, UnixListener};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tonic::server::NamedService;
use tonic::transport::Server;
use tonic::transport::server::Router;
use tower::layer::util::{Identity, Stack};

use authority::AuthorityStream;
use deadline::DeadlineLayer;
use shutdown::Shutdown;

/// Clients have this long to end their calls when the daemon ends.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(2);

/// What all services share.
#[derive(Clone)]
struct Services {
    manager: Arc<Manager>,
    shutdown: Shutdown,
}

/// All services, health and reflection, ready to be served on some transport.
type Routes = Router<Stack<DeadlineLayer, Identity>>;

/// The services for a client in this process.
pub(crate) async fn routes(manager: Arc<Manager>) -> Routes {
    all_routes(Services { manager, shutdown: Shutdown::never() }).await
}

async fn all_routes(services: Services) -> Routes {
    let (health, health_service) = tonic_health::server::health_reporter();
    for name in [
        <MachineServiceServer<Services> as NamedService>::NAME,
        <CheckpointServiceServer<Services> as NamedService>::NAME,
        <AnomalyServiceServer<Services> as NamedService>::NAME,
        <QueryServiceServer<Services> as NamedService>::NAME,
        <FaultServiceServer<Services> as NamedService>::NAME,
        <StoreServiceServer<Services> as NamedService>::NAME,
        <TransferServiceServer<Services> as NamedService>::NAME,
        <WatchServiceServer<Services> as NamedService>::NAME,
    ] {
        health.set_service_status(name, tonic_health::ServingStatus::Serving).await;
    }
    let mut server = Server::builder().layer(DeadlineLayer);
    let router = server
        .add_service(health_service)
        .add_service(MachineServiceServer::new(services.clone()))
        .add_service(CheckpointServiceServer::new(services.clone()))
        .add_service(AnomalyServiceServer::new(services.clone()))
        .add_service(QueryServiceServer::new(services.clone()))
        .add_service(FaultServiceServer::new(services.clone()))
        .add_service(StoreServiceServer::new(services.clone()))
        .add_service(TransferServiceServer::new(services.clone()))
        .add_service(WatchServiceServer::new(services));
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(retrovisor_proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    // Clients such as grpcui and Python's grpcio-reflection use the older version.
    match (reflection().build_v1(), reflection().build_v1alpha()) {
        (Ok(v1), Ok(v1alpha)) => router.add_service(v1).add_service(v1alpha),
        (Err(error), _) | (_, Err(error)) => {
            tracing::error!(%error, "serving without reflection");
            router
        }
    }
}

/// Binds the daemon's socket for its owner alone. Call it only while holding the store's lock: a socket that exists then
/// is that of a daemon which has ended.
pub(crate) fn bind(socket: &Path) -> Result<UnixListener, ManagerError> {
    let failed =
        |source| ManagerError::Io { doing: format!("cannot listen at {}", socket.display()), source };
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let listener = UnixListener::bind(socket).map_err(failed)?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(listener)
}

/// Serves until SIGINT or SIGTERM. Streams end then, and connections that do not end by themselves are dropped.
pub(crate) async fn serve(
    manager: Arc<Manager>,
    unix: UnixListener,
    tcp: Option<SocketAddr>,
) -> Result<(), ManagerError> {
    let failed = |doing: &str| {
        let doing = doing.to_owned();
        move |source| ManagerError::Io { doing, source }
    };
    let shutdown = Shutdown::at_signal().map_err(failed("cannot wait for signals"))?;
    let services = Services { manager, shutdown: shutdown.clone() };
    let listener = match tcp {
        None => None,
        Some(address) => {
            let doing = format!("cannot listen at {address}");
            Some(TcpListener::bind(address).await.map_err(failed(&doing))?)
        }
    };
    let incoming = UnixListenerStream::new(unix).map(|stream| stream.map(AuthorityStream::new));
    let on_unix =
        all_routes(services.clone()).await.serve_with_incoming_shutdown(incoming, shutdown.clone().begun());
    let tcp_routes = all_routes(services).await;
    let tcp_shutdown = shutdown.clone().begun();
    let on_tcp = async {
        match listener {
            None => Ok(()),
            Some(listener) => {
                tcp_routes.serve_with_incoming_shutdown(TcpListenerStream::new(listener), tcp_shutdown).await
            }
        }
    };
    let served = async { tokio::try_join!(on_unix, on_tcp).map(|_| ()) };
    let out_of_time = async {
        shutdown.begun().await;
        tokio::time::sleep(SHUTDOWN_GRACE).await;
    };
    tokio::select! {
        ended = served => ended.map_err(|error| failed("the server ended")(std::io::Error::other(error))),
        () = out_of_time => Ok(()),
    }
}
