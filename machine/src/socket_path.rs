use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use retrovisor_guest::MachineError;

/// Longest path of a Unix socket, without its final zero byte.
const BYTES_MAX: usize = 107;

/// Refuses a path that is too long for a socket.
pub(crate) fn check(path: &Path) -> Result<(), MachineError> {
    let bytes = path.as_os_str().as_bytes().len();
    if bytes <= BYTES_MAX {
        return Ok(());
    }
    Err(MachineError::Config {
        what: format!("the path of {} is {} bytes too long for a socket", path.display(), bytes - BYTES_MAX),
        help: "Use a store with a shorter path, such as one below /run or /tmp".into(),
    })
}
