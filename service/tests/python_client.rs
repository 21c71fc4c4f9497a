//! Programs that others wrote: gRPC's C core, through Python, over the daemon's Unix socket with default options.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// A daemon that is starting, and one that is ending, do so within this time.
const PATIENCE: Duration = Duration::from_secs(5);

struct Daemon(Child);

impl Daemon {
    fn start(store: &Path) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_retrovisor"))
            .arg("--store")
            .arg(store)
            .arg("serve")
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let daemon = Self(child);
        let socket = store.join("daemon.sock");
        let begun = Instant::now();
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            assert!(begun.elapsed() < PATIENCE, "the daemon does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
        daemon
    }

    /// CPU time used so far, in clock ticks.
    fn cpu_ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }

    fn terminate(&self) {
        let pid = nix::unistd::Pid::from_raw(self.0.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    }

    /// Waits for its end.
    fn ended(&mut self) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            assert!(begun.elapsed() < PATIENCE, "the daemon does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A Python with `grpcio` and `grpcio-reflection`, in a virtual environment of the target folder.
fn python() -> Option<PathBuf> {
    let venv = Path::new(env!("CARGO_TARGET_TMPDIR")).join("grpcio-venv");
    let python = venv.join("bin/python");
    let has_modules = || {
        let imported = Command::new(&python).args(["-c", "import grpc, grpc_reflection"]).output();
        imported.is_ok_and(|output| output.status.success())
    };
    if !has_modules() {
        let made = Command::new("python3").args(["-m", "venv"]).arg(&venv).output();
        let pip = ["-m", "pip", "install", "--quiet", "grpcio", "grpcio-reflection"];
        let installed = made.and_then(|_| Command::new(&python).args(pip).output());
        if !has_modules() {
            eprintln!("SKIPPED: Python's grpcio cannot be installed here: {installed:?}");
            return None;
        }
    }
    Some(python)
}

#[test]
fn an_ordinary_client_is_served_and_its_deadlines_are_kept() {
    let Some(python) = python() else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(dir.path());
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python_client.py");
    let mut client = Command::new(python)
        .arg(script)
        .arg(dir.path().join("daemon.sock"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(client.stdout.take().unwrap()).lines().map(Result::unwrap);
    let said: Vec<String> = lines.by_ref().take_while(|line| line != "watching").collect();
    let late = ["late DEADLINE_EXCEEDED"; 8];
    let expected = [&["list 0", "list 0", "list 0", "rows 2", "unknown NOT_FOUND"][..], &late].concat();
    assert_eq!(said, expected);

    // Nothing of the late queries runs on. One that does would use a whole CPU.
    std::thread::sleep(Duration::from_millis(300));
    let before = daemon.cpu_ticks();
    std::thread::sleep(Duration::from_secs(1));
    let used = daemon.cpu_ticks() - before;
    assert!(used < 30, "the daemon is busy with what nobody waits for: {used} ticks in a second");

    // A client that watches does not keep the daemon from ending.
    daemon.terminate();
    assert!(daemon.ended().success());
    assert_eq!(lines.next().as_deref(), Some("ended UNAVAILABLE"));
    assert!(client.wait().unwrap().success());
}

#[test]
fn a_second_signal_ends_the_daemon_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(dir.path());
    // A client that never says anything keeps its connection until the grace period is over.
    let _silent = std::os::unix::net::UnixStream::connect(dir.path().join("daemon.sock")).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    daemon.terminate();
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(daemon.0.try_wait().unwrap(), None, "the first signal waits for connections");
    daemon.terminate();
    let begun = Instant::now();
    assert_eq!(daemon.ended().code(), Some(128 + 15));
    assert!(begun.elapsed() < Duration::from_secs(1));
}

#[test]
fn a_client_that_watches_nothing_is_refused_and_one_that_watches_is_ended() {
    let dir = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(dir.path());
    let watch = |name: Option<&str>| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_retrovisor"));
        command.arg("--store").arg(dir.path()).arg("watch").args(name).stderr(Stdio::piped()).spawn().unwrap()
    };
    let unknown = watch(Some("nope")).wait_with_output().unwrap();
    assert_eq!(unknown.status.code(), Some(3), "{unknown:?}");
    let watching = watch(None);
    std::thread::sleep(Duration::from_millis(300));
    daemon.terminate();
    assert!(daemon.ended().success());
    let ended = watching.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert_eq!(String::from_utf8_lossy(&ended.stderr), "error: the daemon is shutting down\n");
}
