use std::process::{Child, Command};

use super::*;

/// Ended when dropped.
struct Subject(Child);

impl Subject {
    fn start(script: &str) -> Self {
        Self(Command::new("/bin/sh").args(["-c", script]).spawn().unwrap())
    }

    /// A program that waits for `seconds` in one system call.
    fn sleeping(seconds: &str) -> Self {
        let subject = Self::start(&format!("exec sleep {seconds}"));
        let file = |name: &str| std::fs::read_to_string(format!("/proc/{}/{name}", subject.pid())).unwrap();
        let begin = Instant::now();
        // Until the shell has become the program.
        while !file("stat").contains("(sleep) S") {
            assert!(begin.elapsed() < Duration::from_mins(1), "{}", file("stat"));
            std::thread::sleep(Duration::from_millis(10));
        }
        subject
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.0.id()).unwrap()
    }

    /// `None`, with a message, where processes cannot be traced.
    fn call_getpid(&self) -> Option<Result<u64, RegistrationError>> {
        let pid = self.pid();
        let call = |thread: &mut StoppedThread| thread.call("getpid", libc::SYS_getpid, [0; 3]);
        match StoppedThread::with(pid, call) {
            Err(RegistrationError::NotPermitted) => {
                eprintln!("SKIPPED: processes cannot be traced here");
                None
            }
            done => Some(done.map(|(answer, _)| answer)),
        }
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn an_interrupted_wait_goes_on_and_ends_in_time() {
    let mut subject = Subject::sleeping("1.5");
    let begin = Instant::now();
    for _ in 0..200 {
        let Some(answer) = subject.call_getpid() else { return };
        assert_eq!(answer.unwrap(), u64::from(subject.0.id()));
    }
    assert!(subject.0.wait().unwrap().success());
    assert!(begin.elapsed() > Duration::from_secs(1), "{:?}", begin.elapsed());
}

#[test]
fn memory_and_errors_of_calls_are_seen_and_nothing_stays() {
    let subject = Subject::sleeping("100");
    if subject.call_getpid().is_none() {
        return;
    }
    let pid = Pid::from_raw(subject.pid());
    let work = |thread: &mut StoppedThread| {
        thread.place(b"/nonexistent\0")?;
        let refused = thread.call("chdir", libc::SYS_chdir, [thread.scratch(), 0, 0]);
        assert!(
            matches!(refused, Err(RegistrationError::Refused { name: "chdir", errno: Errno::ENOENT })),
            "{refused:?}"
        );
        thread.place(b"/proc\0")?;
        thread.call("chdir", libc::SYS_chdir, [thread.scratch(), 0, 0])?;
        Ok((thread.scratch(), thread.scratch_content, thread.registers, thread.signal_mask))
    };
    let ((scratch, before, registers, mask), _) = StoppedThread::with(pid.as_raw(), work).unwrap();
    assert_eq!(std::fs::read_link(format!("/proc/{pid}/cwd")).unwrap(), std::path::Path::new("/proc"));
    let mut after = [0; SCRATCH_BYTES];
    read(pid, scratch, &mut after).unwrap();
    assert_eq!(after, before);
    let look = |thread: &mut StoppedThread| Ok((thread.registers, thread.signal_mask));
    let ((found, found_mask), _) = StoppedThread::with(pid.as_raw(), look).unwrap();
    assert_eq!((found.rsp, found.rip), (registers.rsp, registers.rip));
    // The kernel restarts an interrupted wait by a system call of its own.
    assert!(
        [registers.orig_rax, libc::SYS_restart_syscall.cast_unsigned()].contains(&found.orig_rax),
        "{found:?}"
    );
    assert_eq!(found_mask, mask);
}

#[test]
fn a_thread_that_computes_is_left_alone() {
    let mut subject = Subject::start("while :; do :; done");
    match subject.call_getpid() {
        None => {}
        Some(answer) => assert!(matches!(answer, Err(RegistrationError::Busy)), "{answer:?}"),
    }
    assert!(subject.0.try_wait().unwrap().is_none());
}

#[test]
fn signals_that_come_in_between_are_delivered() {
    let dir = tempfile::tempdir().unwrap();
    let count = dir.path().join("count");
    let script = "n=0; trap 'n=$((n + 1)); echo $n > count' USR1; while :; do sleep 0.01; done";
    let mut subject = Subject::start(&format!("cd {}; {script}", dir.path().display()));
    let pid = Pid::from_raw(subject.pid());
    let mut made = 0;
    for _ in 0..100 {
        let send = |thread: &mut StoppedThread| {
            nix::sys::signal::kill(pid, Signal::SIGUSR1).unwrap();
            thread.call("getpid", libc::SYS_getpid, [0; 3])
        };
        match StoppedThread::with(pid.as_raw(), send) {
            Ok(_) => made += 1,
            Err(RegistrationError::NotPermitted) => return,
            Err(error) => panic!("{error}"),
        }
        // Until it was handled: a signal that is already pending is not counted again.
        let begin = Instant::now();
        while std::fs::read_to_string(&count).unwrap_or_default().trim() != made.to_string() {
            assert!(begin.elapsed() < Duration::from_secs(20), "signal {made} is lost");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    assert!(subject.0.try_wait().unwrap().is_none());
}

#[test]
fn a_process_that_is_stopped_stays_stopped() {
    let subject = Subject::sleeping("100");
    let pid = Pid::from_raw(subject.pid());
    let state = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit_once(") ").unwrap().1.chars().next()
    };
    let stop = |thread: &mut StoppedThread| {
        nix::sys::signal::kill(pid, Signal::SIGSTOP).unwrap();
        thread.call("getpid", libc::SYS_getpid, [0; 3])
    };
    match StoppedThread::with(pid.as_raw(), stop) {
        Err(RegistrationError::NotPermitted) => return,
        done => assert_eq!(done.unwrap().0, u64::from(subject.0.id())),
    }
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(state(), Some('T'));
    assert_eq!(subject.call_getpid().unwrap().unwrap(), u64::from(subject.0.id()));
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(state(), Some('T'));
    nix::sys::signal::kill(pid, Signal::SIGCONT).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(state(), Some('S'));
}

#[test]
fn a_process_that_ends_is_an_error() {
    let mut subject = Subject::sleeping("100");
    let pid = Pid::from_raw(subject.pid());
    let end = |thread: &mut StoppedThread| {
        nix::sys::signal::kill(pid, Signal::SIGKILL).unwrap();
        thread.call("getpid", libc::SYS_getpid, [0; 3])
    };
    match StoppedThread::with(pid.as_raw(), end) {
        Err(RegistrationError::NotPermitted) => return,
        done => assert!(matches!(done, Err(RegistrationError::Ended)), "{done:?}"),
    }
    assert!(!subject.0.wait().unwrap().success());
    assert!(matches!(subject.call_getpid(), Some(Err(RegistrationError::Ended))));
}
