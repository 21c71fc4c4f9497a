//! Asynchronous write protection (userfaultfd) of memory of a process that already runs: registered and removed from
//! outside.

use std::fs::read_to_string;
use std::time::Duration;

use nix::libc;

use super::launch::PRELOAD_NAME;
use super::mapping::Mapping;
use super::stopped_thread::StoppedThread;
use crate::error::RegistrationError;

/// `UFFD_USER_MODE_ONLY`: needs no privilege, and is enough, because the kernel itself lifts the protection, also when
/// the kernel writes.
const USER_MODE_ONLY: i32 = 1;
const UFFD_API: u64 = 0xaa;
const WP_HUGETLBFS_SHMEM: u64 = 1 << 12;
const WP_UNPOPULATED: u64 = 1 << 13;
const WP_ASYNC: u64 = 1 << 15;
const FEATURES: u64 = WP_ASYNC | WP_UNPOPULATED | WP_HUGETLBFS_SHMEM;
const REGISTER_MODE_WP: u64 = 2;

/// `struct uffdio_api`: version, features, and the kernel's answer.
type Api = [u64; 3];
/// `struct uffdio_register`: start, length, mode, and the kernel's answer.
type Register = [u64; 4];

const UFFDIO_API: u64 = nix::request_code_readwrite!(0xaa, 0x3f, size_of::<Api>());
const UFFDIO_REGISTER: u64 = nix::request_code_readwrite!(0xaa, 0x00, size_of::<Register>());

/// Registers the mapping in a process whose memory is not under asynchronous write protection. Returns for how long its
/// main thread was stopped. After an error, the process is unchanged.
pub(super) fn register(pid: i32, mapping: &Mapping) -> Result<Duration, RegistrationError> {
    check(pid)?;
    // An earlier registration that does not cover the mapping.
    let stale = descriptors(pid)?;
    let ((), stopped) = StoppedThread::with(pid, |thread| {
        for descriptor in &stale {
            close(thread, *descriptor)?;
        }
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | USER_MODE_ONLY;
        let flags = u64::from(flags.cast_unsigned());
        let descriptor = thread.call("userfaultfd", libc::SYS_userfaultfd, [flags, 0, 0])?;
        let enabled = enable(thread, descriptor, mapping);
        if enabled.is_err() {
            close(thread, descriptor)?;
        }
        enabled
    })?;
    Ok(stopped)
}

fn enable(thread: &mut StoppedThread, descriptor: u64, mapping: &Mapping) -> Result<(), RegistrationError> {
    let api: Api = [UFFD_API, FEATURES, 0];
    let range: Register = [mapping.start, mapping.length_bytes, REGISTER_MODE_WP, 0];
    let scratch = thread.scratch();
    thread.place(api.map(u64::to_ne_bytes).as_flattened())?;
    thread.call("UFFDIO_API", libc::SYS_ioctl, [descriptor, UFFDIO_API, scratch])?;
    thread.place(range.map(u64::to_ne_bytes).as_flattened())?;
    thread.call("UFFDIO_REGISTER", libc::SYS_ioctl, [descriptor, UFFDIO_REGISTER, scratch])?;
    Ok(())
}

/// Ends the protection that [`register`] began, now or in an earlier process. Does nothing to a process without it, or
/// to one that was started with the preload, whose protection lasts as long as the process.
pub(super) fn remove(pid: i32) -> Result<(), RegistrationError> {
    let descriptors = descriptors(pid)?;
    if descriptors.is_empty() || is_preloaded(pid)? {
        return Ok(());
    }
    check(pid)?;
    let close_all =
        |thread: &mut StoppedThread| descriptors.iter().try_for_each(|descriptor| close(thread, *descriptor));
    StoppedThread::with(pid, close_all).map(drop)
}

/// With its last descriptor, the kernel ends a registration and lifts the protection.
fn close(thread: &mut StoppedThread, descriptor: u64) -> Result<(), RegistrationError> {
    thread.call("close", libc::SYS_close, [descriptor, 0, 0]).map(drop)
}

/// Refuses processes in which a system call would do damage, or that cannot be traced.
fn check(pid: i32) -> Result<(), RegistrationError> {
    let status = read(pid, "status")?;
    let number = |name: &str| {
        let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        value.and_then(|value| value.trim().parse::<u32>().ok()).unwrap_or(0)
    };
    // A filter may end the process for a system call that it does not expect.
    if number("Seccomp") != 0 {
        return Err(RegistrationError::Filtered);
    }
    if number("TracerPid") != 0 {
        return Err(RegistrationError::Traced { tracer: number("TracerPid") });
    }
    // Another thread of this process may wait for its child, and would get the stops of its main thread.
    if number("PPid") == std::process::id() {
        return Err(RegistrationError::OwnChild);
    }
    Ok(())
}

/// The process's descriptors for asynchronous write protection. QEMU itself makes no such descriptors: it uses
/// userfaultfd with faults that it handles.
fn descriptors(pid: i32) -> Result<Vec<u64>, RegistrationError> {
    let mut found = Vec::new();
    let folder = format!("/proc/{pid}/fd");
    for entry in std::fs::read_dir(folder).map_err(RegistrationError::Unreadable)? {
        let entry = entry.map_err(RegistrationError::Unreadable)?;
        let Some(descriptor) = entry.file_name().to_str().and_then(|name| name.parse::<u64>().ok()) else {
            continue;
        };
        let is_userfaultfd = std::fs::read_link(entry.path())
            .is_ok_and(|target| target.as_os_str() == "anon_inode:[userfaultfd]");
        if is_userfaultfd && is_asynchronous(&read(pid, &format!("fdinfo/{descriptor}"))?) {
            found.push(descriptor);
        }
    }
    Ok(found)
}

/// Reads `API:\tVERSION:FEATURES:…`, all in base 16.
fn is_asynchronous(fdinfo: &str) -> bool {
    let api = fdinfo.lines().find_map(|line| line.strip_prefix("API:"));
    let features = api.and_then(|api| u64::from_str_radix(api.trim().split(':').nth(1)?, 16).ok());
    features.is_some_and(|features| features & WP_ASYNC != 0)
}

fn is_preloaded(pid: i32) -> Result<bool, RegistrationError> {
    let name = format!("/memfd:{}", PRELOAD_NAME.to_string_lossy());
    Ok(read(pid, "maps")?.contains(&name))
}

fn read(pid: i32, name: &str) -> Result<String, RegistrationError> {
    read_to_string(format!("/proc/{pid}/{name}")).map_err(RegistrationError::Unreadable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_descriptors_for_asynchronous_protection_are_recognized() {
        let fdinfo =
            |features: &str| format!("pos:\t0\nflags:\t02004002\npending:\t0\nAPI:\taa:{features}:3ffff\n");
        assert!(is_asynchronous(&fdinfo("8000b000")));
        assert!(!is_asynchronous(&fdinfo("80000001")));
        assert!(!is_asynchronous("pos:\t0\nAPI:\taa\n"));
        assert!(!is_asynchronous(""));
    }

    #[test]
    fn a_registration_that_fails_leaves_no_descriptor() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(0x321_000).unwrap();
        let layout = retrovisor_guest::MemoryLayout::flat(0x321_000).unwrap();
        let _ram = crate::ram::Ram::shared(layout, file, 0).unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        let mut mapping = Mapping::find(own, 0x321_000).unwrap().remove(0);
        // Nothing is mapped there in any process.
        mapping.start = 0x1000;
        // The shell's end makes it no child of this process.
        let shell = ["-c", "sleep 100 > /dev/null 2>&1 & echo $!"];
        let shell = std::process::Command::new("/bin/sh").args(shell).output().unwrap();
        let pid: i32 = String::from_utf8(shell.stdout).unwrap().trim().parse().unwrap();
        let refused = register(pid, &mapping);
        let left = descriptors(pid);
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
        match refused {
            Err(RegistrationError::NotPermitted | RegistrationError::Filtered) => {
                eprintln!("SKIPPED: {}", refused.unwrap_err());
            }
            Err(RegistrationError::Refused { name, errno: _ }) => {
                assert!(["userfaultfd", "UFFDIO_API", "UFFDIO_REGISTER"].contains(&name), "{name}");
                assert_eq!(left.unwrap(), [0; 0]);
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_child_of_this_process_is_not_traced() {
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let checked = check(i32::try_from(child.id()).unwrap());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(matches!(checked, Err(RegistrationError::OwnChild)), "{checked:?}");
    }
}
