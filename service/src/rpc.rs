//! The gRPC services: thin, one file a service; the work is done in the manager, the store and the analytics.

mod anomalies;
mod branch;
mod checkpoints;
mod console;
mod convert;
mod difference;
mod faults;
mod inspect;
mod machines;
mod query;
mod status;
mod store;
mod stream;
mod transfer;
mod watch;

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use retrovisor_proto::v1::anomaly_service_server::AnomalyServiceServer;
use retrovisor_proto::v1::checkpoint_service_server::CheckpointServiceServer;
use retrovisor_proto::v1::fault_service_server::FaultServiceServer;
use retrovisor_proto::v1::machine_service_server::MachineServiceServer;
use retrovisor_proto::v1::query_service_server::QueryServiceServer;
use retrovisor_proto::v1::store_service_server::StoreServiceServer;
use retrovisor_proto::v1::transfer_service_server::TransferServiceServer;
use retrovisor_proto::v1::watch_service_server::WatchServiceServer;
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tonic::server::NamedService;
use tonic::transport::Server;
use tonic::transport::server::Router;

use retrovisor_manager::{Manager, ManagerError};

/// Every service answers over the same machines.
#[derive(Clone)]
struct Services {
    manager: Arc<Manager>,
}

/// All services, health and reflection, ready to be served on some transport.
pub(crate) async fn routes(manager: Arc<Manager>) -> Router {
    let services = Services { manager };
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
    let mut server = Server::builder();
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
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(retrovisor_proto::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1();
    match reflection {
        Ok(reflection) => router.add_service(reflection),
        Err(error) => {
            tracing::error!(%error, "serving without reflection");
            router
        }
    }
}

/// Binds the daemon's socket for its owner alone. Call it only while holding the store's lock: a socket
/// found at the path is a dead daemon's.
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

/// Serves until SIGINT or SIGTERM.
pub(crate) async fn serve(
    manager: Arc<Manager>,
    unix: UnixListener,
    tcp: Option<SocketAddr>,
) -> Result<(), ManagerError> {
    let failed = |doing: &str| {
        let doing = doing.to_owned();
        |error: tonic::transport::Error| ManagerError::Io { doing, source: std::io::Error::other(error) }
    };
    let on_unix =
        routes(Arc::clone(&manager)).await.serve_with_incoming_shutdown(UnixListenerStream::new(unix), end());
    let Some(address) = tcp else {
        return on_unix.await.map_err(failed("the server ended"));
    };
    let listener = TcpListener::bind(address)
        .await
        .map_err(|source| ManagerError::Io { doing: format!("cannot listen at {address}"), source })?;
    let on_tcp = routes(manager).await.serve_with_incoming_shutdown(TcpListenerStream::new(listener), end());
    tokio::try_join!(on_unix, on_tcp).map(|_| ()).map_err(failed("the server ended"))
}

async fn end() {
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
