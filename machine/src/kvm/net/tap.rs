use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;

use nix::errno::Errno;
use nix::libc;
use retrovisor_guest::MachineError;

nix::ioctl_write_ptr_bad!(set_interface, libc::TUNSETIFF, libc::ifreq);

/// Attaches to a tap of the host, which carries frames without a header.
pub(super) fn open(name: &str) -> Result<OwnedFd, MachineError> {
    let config = |what: String, help: String| MachineError::Config { what, help };
    let known = name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/' && byte != b'%');
    if name.is_empty() || name.len() >= libc::IFNAMSIZ || !known {
        return Err(config(
            format!("{name:?} is no name of a tap"),
            "It has 1 to 15 characters, as in `ip link`".into(),
        ));
    }
    let file: File = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")
        .map_err(|error| {
            config(
                format!("/dev/net/tun does not open: {error}"),
                "Load the module tun (sudo modprobe tun), or use a hub".into(),
            )
        })?;
    // SAFETY: an `ifreq` of zeros is a valid one: numbers, arrays, and a null pointer.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (into, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *into = byte.cast_signed();
    }
    #[expect(clippy::cast_possible_truncation, reason = "both flags are in the lower 16 bits")]
    {
        request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
    }
    // SAFETY: the descriptor is open, and the request lives and ends with a zero in its name.
    unsafe { set_interface(file.as_raw_fd(), &raw const request) }.map_err(|errno| {
        let help = match errno {
            Errno::EPERM => format!("Have it made for you: sudo ip tuntap add {name} mode tap user $USER"),
            Errno::EBUSY => "Another machine uses it: give each a tap of its own".into(),
            Errno::EINVAL => "There is an interface of that name that is no tap: choose another name".into(),
            _ => "Check it with `ip link`".into(),
        };
        config(format!("the tap {name} cannot be attached: {}", errno.desc()), help)
    })?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_none_are_refused() {
        for name in ["", "a name", "tap%d", "../tap", "sixteen-letters-"] {
            let error = open(name).unwrap_err().to_string();
            assert!(error.contains("no name of a tap"), "{name}: {error}");
        }
    }
}
