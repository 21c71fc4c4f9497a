//! Confines the worker process and its threads to what the machine needs.
//!
//! There are two steps. [`early`] creates namespaces while the process has one thread and has opened nothing. [`late`]
//! is called when all files are open and no vCPU has run; it creates the other namespaces, drops capabilities and
//! limits system calls.
//!
//! A host may not permit every part of it (a container, a kernel without user namespaces): such parts are reported, and
//! the others are done.

use std::io;

use retrovisor_guest::MachineError;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::process::{DumpableBehavior, Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, UnshareFlags};
use serde::{Deserialize, Serialize};

use crate::kvm::filter;

/// The first, and the number, of user ids that no person and no service of a distribution has (systemd's dynamic
/// users).
const USER_FIRST: u32 = 61_184;
const USERS: u32 = 4_336;
/// Folders that exist, for changing the root.
const FOLDERS: [&str; 3] = ["/tmp", "/var/tmp", "/proc"];
/// Bound on the numbers of Linux capabilities.
const CAPABILITIES: u32 = 64;

/// The parts of the confinement that can be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// User and group of the worker if it is started as root.
    pub user: u32,
}

impl Limits {
    /// A separate user for each machine, so that two workers cannot access each other.
    #[must_use]
    pub fn of(machine: &str) -> Self {
        // FNV-1a: the same for a name in every version of this program.
        let hash = machine
            .bytes()
            .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
        Self { user: USER_FIRST + hash % USERS }
    }
}

/// The confinement of a worker.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confinement {
    /// The applied parts: `seccomp`, `network namespace`.
    pub done: Vec<String>,
    /// The parts that this host did not permit, with the reasons.
    pub missing: Vec<(String, String)>,
}

impl Confinement {
    fn note(&mut self, what: &str, outcome: &io::Result<()>) -> bool {
        match outcome {
            Ok(()) => self.done.push(what.to_owned()),
            Err(error) => {
                tracing::warn!(%error, "the worker goes without: {what}");
                self.missing.push((what.to_owned(), error.to_string()));
            }
        }
        self.missing.last().is_none_or(|(missing, _)| missing != what)
    }
}

/// The first step, for a process with one thread. Returns whether its next child begins a process namespace.
pub(super) fn early(confinement: &mut Confinement) -> bool {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let no_core = Rlimit { current: Some(0), maximum: Some(0) };
    let limited = rustix::process::setrlimit(Resource::Core, no_core);
    confinement.note("no core dumps", &limited.map_err(Into::into));
    if !rustix::process::geteuid().is_root() {
        confinement.note("user namespace", &user_namespace());
    }
    confinement.note("process namespace", &unshare(UnshareFlags::NEWPID))
}

/// The second step, while there is still one thread.
pub(super) fn late(limits: Limits, confinement: &mut Confinement) -> Result<(), MachineError> {
    for (what, flag) in [
        ("mount namespace", UnshareFlags::NEWNS),
        ("network namespace", UnshareFlags::NEWNET),
        ("IPC namespace", UnshareFlags::NEWIPC),
        ("host name namespace", UnshareFlags::NEWUTS),
    ] {
        if confinement.note(what, &unshare(flag)) && flag == UnshareFlags::NEWNS {
            confinement.note("empty root", &empty_root());
        }
    }
    let essential = |doing: &str, outcome: rustix::io::Result<()>| {
        outcome.map_err(|errno| MachineError::Io {
            doing: format!("confining the worker: {doing}"),
            source: errno.into(),
        })
    };
    let root = rustix::process::geteuid().is_root() && rustix::process::getuid().is_root();
    // Fails if the process has no capabilities at all: then none can be gained either.
    for number in 0..CAPABILITIES {
        let _ =
            rustix::thread::remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << number));
    }
    if root {
        confinement.note(&format!("user {}", limits.user), &become_user(limits.user));
    }
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    essential("giving up capabilities", rustix::thread::set_capabilities(None, none))?;
    confinement.done.push("no capabilities".into());
    essential("giving up new privileges", rustix::thread::set_no_new_privs(true))?;
    confinement.done.push("no new privileges".into());
    let hidden = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable);
    essential("hiding its memory", hidden)?;
    filter::apply()?;
    confinement.done.push("seccomp".into());
    Ok(())
}

fn unshare(flags: UnshareFlags) -> io::Result<()> {
    // SAFETY: no flag given here shares less of this process's descriptors than before.
    unsafe { rustix::thread::unshare_unsafe(flags) }.map_err(Into::into)
}

/// A user namespace that contains only this process's user.
fn user_namespace() -> io::Result<()> {
    let (user, group) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    unshare(UnshareFlags::NEWUSER)?;
    std::fs::write("/proc/self/setgroups", "deny")?;
    std::fs::write("/proc/self/uid_map", format!("{user} {user} 1"))?;
    std::fs::write("/proc/self/gid_map", format!("{group} {group} 1"))
}

/// Makes an empty read-only folder the root.
fn empty_root() -> io::Result<()> {
    use rustix::mount;
    mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let folder = FOLDERS.iter().find(|folder| std::path::Path::new(folder).is_dir());
    let folder = *folder.ok_or_else(|| io::Error::other("there is no folder to mount on"))?;
    mount::mount("none", folder, "tmpfs", flags, Some(c"size=4k,nr_inodes=2,mode=0555"))?;
    rustix::process::chdir(folder)?;
    if rustix::process::pivot_root(".", ".").is_ok() {
        mount::unmount(".", UnmountFlags::DETACH)?;
    } else {
        // The first root of a kernel, an initramfs, cannot be moved: it is covered.
        mount::mount_move(".", "/")?;
        rustix::process::chroot(".")?;
    }
    rustix::process::chdir("/")?;
    mount::mount_remount("/", flags | MountFlags::RDONLY, "")?;
    Ok(())
}

fn become_user(user: u32) -> io::Result<()> {
    use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
    let (uid, gid) = (rustix::process::Uid::from_raw(user), rustix::process::Gid::from_raw(user));
    set_thread_groups(&[])?;
    set_thread_res_gid(gid, gid, gid)?;
    set_thread_res_uid(uid, uid, uid)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_get_users_of_their_own_that_stay() {
        assert_eq!(Limits::of("web"), Limits::of("web"));
        assert_ne!(Limits::of("web"), Limits::of("db"));
        for name in ["", "a", "web", "x-1"] {
            assert!((USER_FIRST..USER_FIRST + USERS).contains(&Limits::of(name).user));
        }
    }
}
