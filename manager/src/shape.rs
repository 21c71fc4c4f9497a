use retrovisor_snapshot::MachineRecord;

use crate::error::ManagerError;

/// Refuses a machine whose history was recorded from one of another shape: its checkpoints could not be restored.
pub(crate) fn check_shape(
    record: &MachineRecord,
    driver: &str,
    vcpus: u32,
    memory_bytes: u64,
) -> Result<(), ManagerError> {
    let words = |driver: &str, vcpus: u32, bytes: u64| {
        format!("{vcpus} vCPU{} and {} MiB under {driver}", if vcpus == 1 { "" } else { "s" }, bytes >> 20)
    };
    let identity = &record.identity;
    let recorded = (identity.driver.as_str(), identity.vcpus, identity.layout.bytes());
    if recorded == (driver, vcpus, memory_bytes) || record.position.is_none() {
        return Ok(());
    }
    Err(ManagerError::Shape {
        machine: record.name.clone(),
        recorded: words(recorded.0, recorded.1, recorded.2),
        wanted: words(driver, vcpus, memory_bytes),
    })
}
