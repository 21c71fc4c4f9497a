use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use retrovisor_tests::{command_path, wait_until};

/// What the daemon used at one time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    /// Resident memory of its own, without the memory of guests.
    pub(crate) resident_kib: u64,
    pub(crate) descriptors: usize,
}

/// The daemon, and a client that follows all of its events and reads none. Both are killed when this is dropped.
pub(crate) struct Daemon {
    daemon: Child,
    watcher: Child,
}

impl Daemon {
    /// Starts both. The wall clock of the daemon is stepped by what is in `clock`, if there is a library for it.
    pub(crate) fn start(store: &Path, clock: &Path) -> Self {
        let mut command = Command::new(command_path());
        command.arg("--store").arg(store).arg("serve").stdout(Stdio::null());
        if let Some(library) = std::env::var_os("SOAK_FAKETIME") {
            command
                .env("LD_PRELOAD", library)
                .env("FAKETIME_TIMESTAMP_FILE", clock)
                .env("FAKETIME_CACHE_DURATION", "1")
                .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        }
        let mut daemon = command.spawn().expect("the daemon starts");
        let socket = store.join("daemon.sock");
        wait_until("the daemon's socket", Duration::from_mins(1), || {
            if let Some(status) = daemon.try_wait().expect("the daemon's status") {
                panic!("the daemon ended: {status}");
            }
            UnixStream::connect(&socket).is_ok()
        });
        let watcher = Command::new(command_path())
            .arg("--store")
            .arg(store)
            .args(["watch", "--json"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the watcher starts");
        Self { daemon, watcher }
    }

    /// Ends the daemon as systemd does.
    pub(crate) fn terminate(mut self) {
        let pid = Pid::from_raw(i32::try_from(self.daemon.id()).expect("a process number"));
        kill(pid, Signal::SIGTERM).expect("the daemon is there");
        let begun = Instant::now();
        let status = loop {
            if let Some(status) = self.daemon.try_wait().expect("its status") {
                break status;
            }
            assert!(begun.elapsed() < Duration::from_secs(30), "the daemon does not end after SIGTERM");
            std::thread::sleep(Duration::from_millis(20));
        };
        assert!(status.success(), "after SIGTERM the daemon ended with {status}");
    }

    /// What the daemon uses now.
    pub(crate) fn usage(&self) -> Usage {
        let daemon = self.daemon.id();
        let status = fs::read_to_string(format!("/proc/{daemon}/status")).expect("the daemon's status");
        let resident = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let resident_kib = resident
            .and_then(|text| text.trim().trim_end_matches(" kB").parse().ok())
            .expect("the daemon's resident memory");
        let descriptors = fs::read_dir(format!("/proc/{daemon}/fd")).expect("its descriptors").count();
        Usage { resident_kib, descriptors }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        for process in [&mut self.watcher, &mut self.daemon] {
            // It may have ended already.
            let _ended = process.kill();
            let _status = process.wait();
        }
    }
}
