use std::ffi::CStr;
use std::fs::File;
use std::os::unix::fs::FileExt;

use nix::sys::memfd::{MFdFlags, memfd_create};
use retrovisor_guest::MachineError;

/// A memfd: a file without a name, which exists as long as it is open.
pub(super) fn create(name: &CStr, bytes: &[u8]) -> Result<File, MachineError> {
    let io = |source| MachineError::Io { doing: format!("making the file {name:?} in memory"), source };
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let file = File::from(memfd_create(name, flags).map_err(|errno| io(errno.into()))?);
    file.write_all_at(bytes, 0).map_err(io)?;
    Ok(file)
}
