//! The process of a machine: started here, or found.

use std::io::{Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{F_SETFD, FdFlag, fcntl};
use retrovisor_guest::ProcessIdentity;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// Bound on the part of a log that is quoted.
const LOG_TAIL_BYTES_MAX: u64 = 1500;

/// A process, identified by a descriptor: never another one that got its number later.
pub(crate) struct Process {
    /// Its name in messages.
    name: &'static str,
    pid: i32,
    descriptor: OwnedFd,
    identity: ProcessIdentity,
    /// Waits for the process if it is a child of this one; otherwise absent.
    watch: Option<JoinHandle<Option<ExitStatus>>>,
    exit: Option<ExitStatus>,
    /// The file of its standard error, if known.
    log: Option<PathBuf>,
    /// Dropping this ends the process.
    ends_on_drop: bool,
}

impl Process {
    /// A process that another process started.
    pub(crate) fn find(name: &'static str, pid: i32, log: Option<PathBuf>) -> std::io::Result<Self> {
        let descriptor = open(pid)?;
        // After the descriptor, which refers to the same process as long as that has not ended.
        let identity = identity_of(pid)?;
        Ok(Self { name, pid, descriptor, identity, watch: None, exit: None, log, ends_on_drop: false })
    }

    /// Starts the command in a session of its own, with the `inherited` descriptors open under the same numbers. Unless
    /// `detached`, the kernel ends it when this process ends, for whatever reason. Until [`Process::keep`] is called,
    /// dropping the result ends it, so that a start that fails leaves no process.
    pub(crate) fn spawn(
        name: &'static str,
        mut command: Command,
        inherited: Vec<OwnedFd>,
        detached: bool,
        log: PathBuf,
    ) -> std::io::Result<Self> {
        let parent = nix::unistd::getpid();
        let in_child = move || {
            nix::unistd::setsid()?;
            if !detached {
                nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
                // This process may have ended before that took effect.
                if nix::unistd::getppid() != parent {
                    return Err(Errno::ESRCH.into());
                }
            }
            for fd in &inherited {
                fcntl(fd, F_SETFD(FdFlag::empty()))?;
            }
            Ok(())
        };
        // SAFETY: between fork and exec the closure makes plain system calls only (setsid, prctl, getppid, fcntl);
        // it takes no lock, allocates nothing and touches no memory but its own captures.
        unsafe { command.pre_exec(in_child) };

        // The kernel's signal at a parent's death is tied to the thread that forked: one is kept for it,
        // which also collects the exit status.
        let (sender, started) = mpsc::sync_channel(1);
        let watch = std::thread::Builder::new().name("process-watch".into()).spawn(move || {
            let mut child = match command.spawn() {
                Ok(child) => child,
                Err(error) => {
                    let _ = sender.send(Err(error));
                    return None;
                }
            };
            let pid = i32::try_from(child.id()).map_err(std::io::Error::other);
            let _ = sender.send(pid.and_then(|pid| Ok((pid, open(pid)?, identity_of(pid)?))));
            drop(command);
            child.wait().ok()
        })?;
        let started = started.recv().map_err(|_| std::io::Error::other("the starting thread ended"))?;
        let (pid, descriptor, identity) = started?;
        Ok(Self {
            name,
            pid,
            descriptor,
            identity,
            watch: Some(watch),
            exit: None,
            log: Some(log),
            ends_on_drop: true,
        })
    }

    /// From now on the process outlives this.
    pub(crate) fn keep(&mut self) {
        self.ends_on_drop = false;
    }

    /// From now on dropping this ends the process.
    pub(crate) fn end_on_drop(&mut self) {
        self.ends_on_drop = true;
    }

    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    /// Its identity among all processes.
    pub(crate) fn identity(&self) -> &ProcessIdentity {
        &self.identity
    }

    /// Whether it has ended.
    pub(crate) fn ended(&mut self) -> bool {
        if self.exit.is_some() {
            return true;
        }
        if let Some(watch) = self.watch.take_if(|watch| watch.is_finished()) {
            self.exit = watch.join().ok().flatten();
            return true;
        }
        if self.watch.is_some() {
            return false;
        }
        // A zombie still accepts signals, but its descriptor is readable.
        let mut polled = [rustix::event::PollFd::new(&self.descriptor, rustix::event::PollFlags::IN)];
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        rustix::event::poll(&mut polled, Some(&now)).is_ok_and(|ready| ready > 0)
    }

    /// Waits for its end. Returns whether it ended.
    pub(crate) fn wait(&mut self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        while !self.ended() {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        true
    }

    /// Ends it at once, and waits until it is gone.
    pub(crate) fn kill(&mut self) {
        if !self.ended() {
            let _ = pidfd_send_signal(&self.descriptor, Signal::KILL);
            self.wait(Duration::from_secs(10));
        }
    }

    /// Its exit status and last output, for a message.
    pub(crate) fn exit_reason(&mut self) -> String {
        let name = self.name;
        let mut text = if self.ended() {
            match self.exit {
                Some(status) => match (status.code(), status.signal()) {
                    (Some(code), _) => format!("{name} ended with status {code}"),
                    (_, Some(signal)) => format!("{name} was ended by signal {signal}"),
                    _ => format!("{name} ended"),
                },
                None => format!("{name} ended"),
            }
        } else {
            format!("{name} (process {}) does not answer", self.pid)
        };
        if let Some(tail) = self.log.as_deref().and_then(log_tail) {
            text += "; it wrote last: ";
            text += &tail;
        }
        text
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.ends_on_drop {
            self.kill();
        }
    }
}

fn open(pid: i32) -> std::io::Result<OwnedFd> {
    // The constructor panics on negative numbers.
    let pid = Some(pid).filter(|pid| *pid > 0).and_then(Pid::from_raw).ok_or(std::io::ErrorKind::NotFound)?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

/// The identity of the process that has this number now.
fn identity_of(pid: i32) -> std::io::Result<ProcessIdentity> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let start_ticks = start_ticks(&stat)
        .ok_or_else(|| std::io::Error::other(format!("/proc/{pid}/stat has no start time")))?;
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
    Ok(ProcessIdentity { pid, start_ticks, boot_id })
}

/// Field 22. The command in field 2 is in parentheses and may hold anything, parentheses and spaces as well.
fn start_ticks(stat: &str) -> Option<u64> {
    let (_, after_command) = stat.rsplit_once(')')?;
    after_command.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// Whether that process still runs: one that ended and was not waited for does not.
pub(crate) fn is_alive(process: &ProcessIdentity) -> bool {
    // A process with that number and another start time is another one.
    Process::find("the process", process.pid, None)
        .is_ok_and(|mut found| found.identity == *process && !found.ended())
}

/// Ends that process, if it still runs, and waits until it is gone.
pub(crate) fn kill(process: &ProcessIdentity) -> std::io::Result<()> {
    let Ok(mut found) = Process::find("the process", process.pid, None) else { return Ok(()) };
    if found.identity != *process {
        return Ok(());
    }
    found.kill();
    if found.ended() { Ok(()) } else { Err(std::io::ErrorKind::TimedOut.into()) }
}

/// The end of a log, on one line.
fn log_tail(path: &Path) -> Option<String> {
    let mut file = std::fs::File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES_MAX))).ok()?;
    let mut bytes = Vec::new();
    file.take(LOG_TAIL_BYTES_MAX).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let last = lines[lines.len().saturating_sub(4)..].join(" / ");
    let printable = last.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>();
    (!printable.is_empty()).then_some(printable)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, log: &Path) -> Process {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).stderr(std::fs::File::create(log).unwrap());
        Process::spawn("QEMU", command, Vec::new(), false, log.to_path_buf()).unwrap()
    }

    #[test]
    fn the_exit_reason_has_status_and_the_end_of_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let mut process = shell("echo one >&2; printf 'tw\\033o\\n' >&2; exit 3", &log);
        assert!(process.wait(Duration::from_secs(10)));
        assert_eq!(process.exit_reason(), "QEMU ended with status 3; it wrote last: one / tw o");
        let mut process = shell("exec sleep 100", &log);
        assert!(!process.ended());
        let mut found = Process::find("QEMU", process.pid(), None).unwrap();
        assert!(!found.ended());
        process.kill();
        assert_eq!(process.exit_reason(), "QEMU was ended by signal 9");
        assert!(found.wait(Duration::from_secs(10)));
        assert_eq!(found.exit_reason(), "QEMU ended");
    }

    #[test]
    fn a_process_ends_when_it_is_dropped_unless_it_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        for is_kept in [false, true] {
            let mut process = shell("exec sleep 100", &log);
            let mut found = Process::find("QEMU", process.pid(), None).unwrap();
            if is_kept {
                process.keep();
            }
            drop(process);
            assert_eq!(found.ended(), !is_kept);
            // A child that ended is reaped, not left as a zombie.
            assert_eq!(Path::new("/proc").join(found.pid().to_string()).exists(), is_kept);
            found.kill();
        }
    }

    #[test]
    fn a_process_is_distinguished_from_one_that_has_its_number_later() {
        let dir = tempfile::tempdir().unwrap();
        let mut process = shell("exec sleep 100", &dir.path().join("log"));
        let identity = process.identity().clone();
        let later = ProcessIdentity { start_ticks: identity.start_ticks + 1, ..identity.clone() };
        assert!(is_alive(&identity) && !is_alive(&later));
        kill(&later).unwrap();
        assert!(is_alive(&identity), "the process with that number was not meant");
        kill(&identity).unwrap();
        assert!(!is_alive(&identity));
        assert!(process.wait(Duration::from_secs(10)));
    }

    #[test]
    fn the_start_time_is_read_behind_any_command() {
        let stat = "7 (a) (b ) 1) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711 9 10";
        assert_eq!(start_ticks(stat), Some(4711));
        assert_eq!(start_ticks("7 (a) S 1"), None);
        assert_eq!(start_ticks(""), None);
    }

    #[test]
    fn a_process_that_is_not_there_is_an_error() {
        let missing =
            Process::spawn("QEMU", Command::new("/nonexistent/qemu"), Vec::new(), false, PathBuf::new());
        assert_eq!(missing.err().unwrap().kind(), std::io::ErrorKind::NotFound);
        assert!(Process::find("QEMU", 0, None).is_err());
        assert!(Process::find("QEMU", -1, None).is_err());
    }
}
