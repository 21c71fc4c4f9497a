//! A daemon driven through gRPC.

use std::time::Duration;

use retrovisor_proto::v1::checkpoint_service_client::CheckpointServiceClient;
use retrovisor_proto::v1::machine_service_client::MachineServiceClient;
use retrovisor_proto::v1::query_service_client::QueryServiceClient;
use retrovisor_proto::v1::watch_response::Event;
use retrovisor_proto::v1::watch_service_client::WatchServiceClient;
use retrovisor_proto::v1::{
    CreateCheckpointRequest, GetMachineRequest, ListMachinesRequest, ListOperationsRequest, MachineState,
    QueryRequest, RollbackRequest, UndoRequest, WatchRequest, cell,
};
use retrovisor_tests::{Daemon, GuestImage};
use tokio_stream::StreamExt as _;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

#[tokio::test(flavor = "multi_thread")]
async fn a_program_drives_the_daemon() {
    let Some(image) = GuestImage::find() else { return };
    let store = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(store.path());
    let channel = daemon.channel().await;
    let mut machines = MachineServiceClient::new(channel.clone());
    assert_eq!(machines.list_machines(ListMachinesRequest {}).await.unwrap().into_inner().machines, []);
    let unknown = machines.get_machine(GetMachineRequest { machine: "g".into() }).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);

    daemon.run_guest(&image, "300ms");
    let machine = machines
        .get_machine(GetMachineRequest { machine: "g".into() })
        .await
        .unwrap()
        .into_inner()
        .machine
        .unwrap();
    assert_eq!(machine.state(), MachineState::Running);
    assert_eq!((machine.vcpus, machine.memory_bytes), (2, 512 << 20));

    let mut events = WatchServiceClient::new(channel.clone())
        .watch(WatchRequest { machine: "g".into() })
        .await
        .unwrap()
        .into_inner();
    let mut checkpoints = CheckpointServiceClient::new(channel.clone());
    let request = CreateCheckpointRequest { machine: "g".into(), label: "here".into() };
    let made = checkpoints.create_checkpoint(request).await.unwrap().into_inner().checkpoint.unwrap();
    assert_eq!(made.label, "here");
    assert!(made.pause_us > 0 && made.dirty_pages > 0);
    let seen = tokio::time::timeout(Duration::from_secs(20), async {
        while let Some(Ok(event)) = events.next().await {
            if matches!(&event.event, Some(Event::Checkpoint(taken)) if taken.name == made.name) {
                return true;
            }
        }
        false
    });
    assert!(seen.await.expect("an event within 20 s"));

    let later = daemon.next_tick();
    let request = RollbackRequest {
        machine: "g".into(),
        checkpoint: "here".into(),
        dry_run: false,
        verify_image: true,
        clock: 0,
        current: 0,
    };
    let went = checkpoints.rollback(request).await.unwrap().into_inner().rollback.unwrap();
    assert_eq!(went.image_matches, Some(true));
    assert_eq!(went.target.unwrap().name, made.name);
    assert!(daemon.next_tick() <= later + 20, "the guest goes on from its past");
    let undone = checkpoints
        .undo(UndoRequest { machine: "g".into(), verify_image: true })
        .await
        .unwrap()
        .into_inner()
        .rollback
        .unwrap();
    assert_eq!(undone.image_matches, Some(true));
    assert_eq!(undone.target.unwrap().name, went.current.unwrap().name);
    let operations = checkpoints
        .list_operations(ListOperationsRequest { machine: "g".into() })
        .await
        .unwrap()
        .into_inner()
        .operations;
    let kinds: Vec<&str> = operations.iter().map(|operation| operation.kind.as_str()).collect();
    assert!(kinds.ends_with(&["rollback", "undo"]), "{kinds:?}");

    let mut queries = QueryServiceClient::new(channel.clone());
    let sql = "SELECT count(*) FROM v_checkpoint WHERE machine = 'g'".to_owned();
    let answer = queries
        .query(QueryRequest { sql, parameters: vec![], limit: 0 })
        .await
        .unwrap()
        .into_inner()
        .table
        .unwrap();
    assert!(matches!(answer.rows[0].cells[0].value, Some(cell::Value::Integer(count)) if count > 3));
    let sql = "DELETE FROM checkpoint".to_owned();
    let refused = queries.query(QueryRequest { sql, parameters: vec![], limit: 0 }).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn health_and_reflection_are_on() {
    let store = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(store.path());
    let channel = daemon.channel().await;
    let request = HealthCheckRequest { service: "retrovisor.v1.MachineService".into() };
    let health = HealthClient::new(channel.clone()).check(request).await.unwrap().into_inner();
    assert_eq!(health.status(), ServingStatus::Serving);
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut answers = ServerReflectionClient::new(channel)
        .server_reflection_info(tokio_stream::once(request))
        .await
        .unwrap()
        .into_inner();
    let answer = answers.next().await.unwrap().unwrap().message_response.unwrap();
    let MessageResponse::ListServicesResponse(services) = answer else { panic!("{answer:?}") };
    let names: Vec<String> = services.service.into_iter().map(|service| service.name).collect();
    for service in ["Machine", "Checkpoint", "Anomaly", "Query", "Fault", "Watch"] {
        assert!(names.contains(&format!("retrovisor.v1.{service}Service")), "{names:?}");
    }
}

#[test]
fn the_machine_is_found_again_after_the_daemon_died() {
    let Some(image) = GuestImage::find() else { return };
    let store = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(store.path());
    daemon.run_guest(&image, "300ms");
    let before = daemon.next_tick();
    let dir = daemon.kill();
    let daemon = Daemon::start(&dir);
    assert_eq!(daemon.json(&["show", "g"])["state"], "running");
    assert!(daemon.next_tick() >= before, "the guest went on without the daemon");
    let went = daemon.json(&["rollback", "g", "--to", "-2", "--verify-image"]);
    assert_eq!(went["rollback"]["image_matches"], true);
    let _tick = daemon.next_tick();
}
