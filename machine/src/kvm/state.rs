use retrovisor_guest::MachineError;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The bytes of a part of the machine's state.
pub(super) fn encode(what: &str, part: &impl Serialize) -> Result<Vec<u8>, MachineError> {
    postcard::to_stdvec(part).map_err(|error| MachineError::Driver {
        doing: format!("saving the state of {what}"),
        message: error.to_string(),
    })
}

/// Decodes a part from the bytes of [`encode`].
pub(super) fn decode<T: DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T, MachineError> {
    postcard::from_bytes(bytes).map_err(|error| MachineError::Driver {
        doing: format!("reading the saved state of {what}"),
        message: format!("{error}: it is damaged, or of another version"),
    })
}
