//! Traces a child: every call that changes files below one directory, in order. The program does not take part, so no
//! code path can be missed: a call that could change a file and is not implemented here stops the test.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::story::{DIR, Mark, SEED, STEPS, TEST};

/// A file's identity, whatever its name.
pub(super) type Inode = u64;

/// A change of the disk, or a mark.
#[derive(Debug)]
pub(super) enum Event {
    Write {
        inode: Inode,
        offset: u64,
        bytes: Vec<u8>,
        done_at: usize,
    },
    SetLen {
        inode: Inode,
        bytes: u64,
        done_at: usize,
    },
    /// Everything done to the file before the event of this number is durable.
    Sync {
        inode: Inode,
        began: usize,
    },
    /// A name for a new file.
    Create {
        path: PathBuf,
        inode: Inode,
    },
    MakeDir {
        path: PathBuf,
    },
    Rename {
        from: PathBuf,
        to: PathBuf,
    },
    Remove {
        path: PathBuf,
    },
    /// All names in the directory before the event of this number are durable.
    SyncDir {
        path: PathBuf,
        began: usize,
    },
    Mark(Mark),
}

/// Which calls fail.
#[derive(Clone, Copy, Debug)]
pub(super) struct Failing {
    /// The first that does, counted among those that a full disk can make fail; from 1 on.
    pub(super) nth: usize,
    /// Whether later ones fail, too, until [`Mark::Space`].
    pub(super) lasting: bool,
    /// Whether half of the first one is written, if it is a write.
    pub(super) half: bool,
    pub(super) errno: Errno,
}

/// What a child did.
pub(super) struct Trace {
    pub(super) events: Vec<Event>,
    /// Calls that were made to fail.
    pub(super) failed: usize,
    pub(super) success: bool,
    pub(super) output: String,
}

/// Runs the story of a seed, in `dir`, and traces it. `None` where processes cannot be traced.
pub(super) fn run(dir: &Path, seed: u64, steps: u64, failing: Option<Failing>) -> Option<Trace> {
    let output = tempfile::tempfile().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([TEST, "--exact", "--nocapture", "--test-threads=1"])
        .env(DIR, dir.join("store"))
        .env(SEED, seed.to_string())
        .env(STEPS, steps.to_string())
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(output.try_clone().unwrap())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.by_ref().any(|line| line.unwrap() == "READY"), "the child did not begin");
    let pid = Pid::from_raw(child.id().cast_signed());
    let options = Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_EXITKILL;
    for thread in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let thread = Pid::from_raw(thread.unwrap().file_name().to_str().unwrap().parse().unwrap());
        if ptrace::seize(thread, options).is_err() {
            child.kill().unwrap();
            child.wait().unwrap();
            return None;
        }
        ptrace::interrupt(thread).unwrap();
    }
    let mut tracer = Tracer {
        root: dir.to_owned(),
        memory: File::open(format!("/proc/{pid}/mem")).unwrap(),
        pid,
        events: Vec::new(),
        calls: HashMap::new(),
        failing,
        seen: 0,
        failed: 0,
    };
    child.stdin.take().unwrap().write_all(b"!").unwrap();
    let success = tracer.follow();
    let (events, failed) = (tracer.events, tracer.failed);
    let length = output.metadata().unwrap().len();
    let mut text = vec![0; usize::try_from(length).unwrap()];
    output.read_exact_at(&mut text, 0).unwrap();
    let said = lines.map_while(Result::ok).collect::<Vec<_>>().join("\n");
    // It was waited for earlier.
    drop(child);
    Some(Trace { events, failed, success, output: format!("{said}\n{}", String::from_utf8_lossy(&text)) })
}

/// A call that a thread is in.
enum Call {
    /// Not recorded.
    Other,
    /// Does not happen; answered with this error.
    Refused(Errno),
    /// Recorded if it succeeds.
    Pending(Box<dyn FnOnce() -> Event>),
    /// Opens a file that may be new.
    Open(PathBuf),
    /// The end of the event with this number; this many bytes were to be written.
    RecordedOperation { event: usize, bytes: usize },
}

struct Tracer {
    root: PathBuf,
    memory: File,
    pid: Pid,
    events: Vec<Event>,
    calls: HashMap<Pid, Call>,
    failing: Option<Failing>,
    /// Calls that could have failed so far.
    seen: usize,
    failed: usize,
}

impl Tracer {
    /// Lets the child run to its end; returns whether it succeeded.
    fn follow(&mut self) -> bool {
        // Only children of this thread: other tests have children, too.
        let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
        loop {
            let status = waitpid(None, Some(flags)).unwrap();
            let (thread, signal) = match status {
                WaitStatus::Exited(pid, code) if pid == self.pid => return code == 0,
                WaitStatus::Signaled(pid, ..) if pid == self.pid => return false,
                WaitStatus::Exited(..) | WaitStatus::Signaled(..) => continue,
                WaitStatus::PtraceSyscall(thread) => {
                    self.syscall(thread);
                    (thread, None)
                }
                WaitStatus::PtraceEvent(thread, ..) => (thread, None),
                WaitStatus::Stopped(thread, signal) => {
                    (thread, Some(signal).filter(|s| *s != Signal::SIGTRAP))
                }
                other => panic!("{other:?}"),
            };
            // A thread that was killed meanwhile is reported next.
            let _ = ptrace::syscall(thread, signal);
        }
    }

    fn syscall(&mut self, thread: Pid) {
        let Ok(mut registers) = ptrace::getregs(thread) else { return };
        let Some(call) = self.calls.remove(&thread) else {
            let number = registers.orig_rax.cast_signed();
            let arguments =
                [registers.rdi, registers.rsi, registers.rdx, registers.r10, registers.r8, registers.r9];
            let mut call = self.enter(number, arguments);
            if let Some(half) = self.fails(&call, number) {
                if half {
                    // The first half is written; the call after it is refused.
                    registers.rdx /= 2;
                    call = Call::Other;
                } else {
                    registers.orig_rax = u64::MAX;
                    call = Call::Refused(self.failing.map_or(Errno::ENOSPC, |failing| failing.errno));
                }
                ptrace::setregs(thread, registers).unwrap();
            }
            self.calls.insert(thread, call);
            return;
        };
        let answer = registers.rax.cast_signed();
        match call {
            Call::Refused(errno) => {
                registers.rax = (-i64::from(errno as i32)).cast_unsigned();
                ptrace::setregs(thread, registers).unwrap();
            }
            Call::Pending(event) if answer >= 0 => self.events.push(event()),
            Call::Open(path) if answer >= 0 => {
                let inode = std::fs::metadata(&path).unwrap().ino();
                self.events.push(Event::Create { path: self.below(&path).unwrap(), inode });
            }
            Call::Other | Call::Pending(_) | Call::Open(_) => (),
            Call::RecordedOperation { event, bytes } => {
                // Where calls are made to fail the order of the others does not matter.
                assert!(self.failing.is_some() || answer == i64::try_from(bytes).unwrap(), "a short write");
                let now = self.events.len();
                match &mut self.events[event] {
                    Event::Write { done_at, .. } | Event::SetLen { done_at, .. } => *done_at = now,
                    _ => (),
                }
            }
        }
    }

    /// Whether this call is to fail, and then whether half of it is to be done.
    fn fails(&mut self, call: &Call, number: i64) -> Option<bool> {
        let failing = self.failing?;
        let can_fail = match call {
            Call::RecordedOperation { .. } | Call::Open(_) => true,
            Call::Pending(_) => {
                [libc::SYS_fsync, libc::SYS_fdatasync, libc::SYS_mkdir, libc::SYS_mkdirat].contains(&number)
            }
            Call::Other | Call::Refused(_) => false,
        };
        if !can_fail {
            return None;
        }
        self.seen += 1;
        let first = self.seen == failing.nth;
        if !(first || failing.lasting && self.seen > failing.nth) {
            return None;
        }
        self.failed += 1;
        Some(first && failing.half && [libc::SYS_write, libc::SYS_pwrite64].contains(&number))
    }

    /// Handles a call that begins.
    fn enter(&mut self, number: i64, of: [u64; 6]) -> Call {
        let here = libc::AT_FDCWD.cast_unsigned().into();
        match number {
            libc::SYS_write => self.write(of[0], None, of[1], of[2]),
            libc::SYS_pwrite64 => self.write(of[0], Some(of[3]), of[1], of[2]),
            libc::SYS_ftruncate => {
                let Some((_, inode)) = self.file(of[0]) else { return Call::Other };
                self.events.push(Event::SetLen { inode, bytes: of[1], done_at: usize::MAX });
                Call::RecordedOperation { event: self.events.len() - 1, bytes: 0 }
            }
            libc::SYS_fsync | libc::SYS_fdatasync => {
                let Some((path, inode)) = self.file(of[0]) else { return Call::Other };
                let began = self.events.len();
                let is_dir = self.root.join(&path).is_dir();
                Call::Pending(Box::new(move || {
                    if is_dir { Event::SyncDir { path, began } } else { Event::Sync { inode, began } }
                }))
            }
            libc::SYS_open => self.open(here, of[0], of[1]),
            libc::SYS_openat => self.open(of[0], of[1], of[2]),
            libc::SYS_mkdir => self.named(here, of[0], |path| Event::MakeDir { path }),
            libc::SYS_mkdirat => self.named(of[0], of[1], |path| Event::MakeDir { path }),
            libc::SYS_unlink | libc::SYS_rmdir => self.named(here, of[0], |path| Event::Remove { path }),
            libc::SYS_unlinkat => self.named(of[0], of[1], |path| Event::Remove { path }),
            libc::SYS_rename => self.rename(here, of[0], here, of[1]),
            libc::SYS_renameat | libc::SYS_renameat2 => self.rename(of[0], of[1], of[2], of[3]),
            libc::SYS_mmap => {
                let shared = of[2] & u64::from(libc::PROT_WRITE.cast_unsigned()) != 0
                    && of[3] & u64::from(libc::MAP_SHARED.cast_unsigned()) != 0
                    && of[3] & u64::from(libc::MAP_ANONYMOUS.cast_unsigned()) == 0;
                assert!(!shared || self.file(of[4]).is_none(), "a file is mapped for writing");
                Call::Other
            }
            libc::SYS_pwritev
            | libc::SYS_pwritev2
            | libc::SYS_writev
            | libc::SYS_fallocate
            | libc::SYS_copy_file_range
            | libc::SYS_sendfile
            | libc::SYS_splice => {
                let to = if number == libc::SYS_copy_file_range || number == libc::SYS_splice {
                    of[2]
                } else {
                    of[0]
                };
                assert!(self.file(to).is_none(), "call {number} writes to a file, and is not known here");
                Call::Other
            }
            libc::SYS_link
            | libc::SYS_linkat
            | libc::SYS_symlink
            | libc::SYS_truncate
            | libc::SYS_io_uring_setup => {
                panic!("call {number} can change files, and is not known here")
            }
            _ => Call::Other,
        }
    }

    fn write(&mut self, fd: u64, offset: Option<u64>, address: u64, length: u64) -> Call {
        let path = std::fs::read_link(format!("/proc/{}/fd/{fd}", self.pid)).unwrap_or_default();
        let mut bytes = vec![0; usize::try_from(length).unwrap()];
        if path == Path::new("/dev/null") {
            self.memory.read_exact_at(&mut bytes, address).unwrap();
            if let Some(mark) = Mark::parse(&String::from_utf8_lossy(&bytes)) {
                if matches!(mark, Mark::Space) {
                    self.failing = self.failing.map(|failing| Failing { nth: usize::MAX, ..failing });
                }
                self.events.push(Event::Mark(mark));
            }
            return Call::Other;
        }
        let Some((_, inode)) = self.file(fd) else { return Call::Other };
        self.memory.read_exact_at(&mut bytes, address).unwrap();
        let offset = offset.unwrap_or_else(|| {
            let info = std::fs::read_to_string(format!("/proc/{}/fdinfo/{fd}", self.pid)).unwrap();
            let number = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim();
            let flags = i32::from_str_radix(number("flags:"), 8).unwrap();
            assert_eq!(flags & libc::O_APPEND, 0, "a file is open for appending");
            number("pos:").parse().unwrap()
        });
        self.events.push(Event::Write { inode, offset, bytes, done_at: usize::MAX });
        Call::RecordedOperation { event: self.events.len() - 1, bytes: usize::try_from(length).unwrap() }
    }

    fn open(&self, dir: u64, name: u64, flags: u64) -> Call {
        let Some(path) = self.path(dir, name) else { return Call::Other };
        if self.below(&path).is_none() {
            return Call::Other;
        }
        let has = |flag: i32| flags & u64::from(flag.cast_unsigned()) != 0;
        assert!(
            !(has(libc::O_TRUNC) && path.exists()),
            "{} is cut off by opening it: not known here",
            path.display()
        );
        if has(libc::O_CREAT) && !path.exists() { Call::Open(path) } else { Call::Other }
    }

    fn named(&self, dir: u64, name: u64, event: fn(PathBuf) -> Event) -> Call {
        match self.path(dir, name).and_then(|path| self.below(&path)) {
            Some(path) => Call::Pending(Box::new(move || event(path))),
            None => Call::Other,
        }
    }

    fn rename(&self, from_dir: u64, from: u64, to_dir: u64, to: u64) -> Call {
        let from = self.path(from_dir, from).and_then(|path| self.below(&path));
        let to = self.path(to_dir, to).and_then(|path| self.below(&path));
        match (from, to) {
            (Some(from), Some(to)) => Call::Pending(Box::new(move || Event::Rename { from, to })),
            (None, None) => Call::Other,
            _ => panic!("a file goes out of the directory or into it"),
        }
    }

    /// The path argument of a call.
    fn path(&self, dir: u64, name: u64) -> Option<PathBuf> {
        let mut bytes = [0; 4096];
        // The name may be at the end of readable memory.
        let length = self.memory.read_at(&mut bytes, name).ok()?;
        let text = &bytes[..length.min(bytes.iter().position(|byte| *byte == 0)?)];
        let name = Path::new(std::str::from_utf8(text).ok()?);
        #[expect(clippy::cast_possible_truncation, reason = "a file descriptor")]
        let fd = dir as i32;
        let base = if fd == libc::AT_FDCWD {
            format!("/proc/{}/cwd", self.pid)
        } else {
            format!("/proc/{}/fd/{fd}", self.pid)
        };
        Some(std::fs::read_link(base).ok()?.join(name))
    }

    /// A path below the traced directory, from there on. The directory itself is empty.
    fn below(&self, path: &Path) -> Option<PathBuf> {
        path.strip_prefix(&self.root).ok().map(Path::to_owned)
    }

    /// An open file or directory below the traced directory; but not the index of a write-ahead log: SQLite
    /// makes it again after a crash.
    fn file(&self, fd: u64) -> Option<(PathBuf, Inode)> {
        let link = PathBuf::from(format!("/proc/{}/fd/{fd}", self.pid));
        let path = self.below(&std::fs::read_link(&link).ok()?)?;
        if path.to_string_lossy().contains("-shm") {
            return None;
        }
        Some((path, std::fs::metadata(&link).ok()?.ino()))
    }
}
