//! Compiles the .proto files with protox: no protoc is needed.
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?);
    let files = ["anomaly", "checkpoint", "fault", "machine", "query", "store", "transfer", "watch"]
        .map(|name| root.join(format!("retrovisor/v1/{name}.proto")));
    println!("cargo::rerun-if-changed=retrovisor/v1");
    let descriptors = protox::compile(&files, [&root])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), prost::Message::encode_to_vec(&descriptors))?;
    tonic_prost_build::configure()
        .type_attribute(".", "#[derive(serde::Serialize)]")
        .type_attribute("Cell.value", "#[serde(untagged)]")
        .type_attribute("WatchResponse.event", "#[serde(rename_all = \"snake_case\")]")
        .field_attribute("Row.cells", "#[serde(serialize_with = \"crate::json::cells\")]")
        .field_attribute("Machine.state", "#[serde(serialize_with = \"crate::json::machine_state\")]")
        .field_attribute("StateChange.state", "#[serde(serialize_with = \"crate::json::machine_state\")]")
        .field_attribute("GuestEvent.kind", "#[serde(serialize_with = \"crate::json::guest_event_kind\")]")
        .field_attribute("verdict", "#[serde(serialize_with = \"crate::json::verdict\")]")
        .field_attribute("Rollback.kind", "#[serde(serialize_with = \"crate::json::rollback_kind\")]")
        .field_attribute("WatchResponse.event", "#[serde(flatten)]")
        .type_attribute("NetworkInterface.network", "#[serde(rename_all = \"snake_case\")]")
        .field_attribute("NetworkInterface.network", "#[serde(flatten)]")
        .compile_fds(descriptors)?;
    Ok(())
}
