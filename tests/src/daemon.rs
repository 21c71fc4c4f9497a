use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::{GuestImage, Ran, command_path, retrovisor, shell, wait_until};

/// A running daemon and the guests it started.
pub struct Daemon {
    child: Child,
    store: PathBuf,
}

impl Daemon {
    /// Starts a daemon on the store and waits until it answers.
    #[must_use]
    pub fn start(store: &Path) -> Self {
        Self::start_command(store, &mut Command::new(command_path()))
    }

    /// The same, with the programs of a folder before those of `PATH`.
    #[must_use]
    pub fn start_with_programs(store: &Path, folder: &Path) -> Self {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = std::iter::once(folder.to_owned()).chain(std::env::split_paths(&path));
        let path = std::env::join_paths(folders).expect("folders without `:`");
        Self::start_command(store, Command::new(command_path()).env("PATH", path))
    }

    fn start_command(store: &Path, command: &mut Command) -> Self {
        let child = command
            .arg("--store")
            .arg(store)
            .arg("serve")
            .stderr(Stdio::inherit())
            .stdout(Stdio::null())
            .spawn()
            .expect("the daemon starts");
        let mut daemon = Self { child, store: store.to_owned() };
        wait_until("the daemon's socket", Duration::from_secs(30), || {
            if let Some(status) = daemon.child.try_wait().expect("the daemon's status") {
                panic!("the daemon ended: {status}");
            }
            UnixStream::connect(store.join("daemon.sock")).is_ok()
        });
        // On a slow host the daemon answers before it has attached all of its machines again.
        wait_until("its machines to be attached again", Duration::from_mins(2), || {
            !daemon.run(&["list", "--json"]).ok().stdout.contains("\"starting\"")
        });
        daemon
    }

    /// Runs a verb against it.
    #[must_use]
    pub fn run(&self, arguments: &[&str]) -> Ran {
        retrovisor(&self.store, arguments)
    }

    /// Runs a verb with `--json` that must work.
    #[must_use]
    pub fn json(&self, arguments: &[&str]) -> serde_json::Value {
        self.run(&[arguments, &["--json"]].concat()).ok().json()
    }

    /// Starts the test guest under the name `g` and waits until its workload ticks.
    pub fn run_guest(&self, image: &GuestImage, every: &str) {
        self.run_guest_under("qemu", image, every);
    }

    /// The same under a driver of that name.
    pub fn run_guest_under(&self, driver: &str, image: &GuestImage, every: &str) {
        let path = |path: &Path| path.to_str().expect("a printable path").to_owned();
        let (kernel, initrd, disk) = (path(&image.kernel), path(&image.initrd), path(&image.disk));
        let arguments = [
            "run", "g", "--kernel", &kernel, "--initrd", &initrd, "--disk", &disk, "--vcpus", "2", "--every",
            every, "--driver", driver,
        ];
        let _ran = self.run(&arguments).ok();
        wait_until("the guest's first tick", Duration::from_mins(1), || self.last_tick(0).is_some());
    }

    /// Everything the guest `g` wrote to its console.
    #[must_use]
    pub fn console(&self) -> String {
        self.console_of("g")
    }

    /// Everything a guest wrote to its console.
    #[must_use]
    pub fn console_of(&self, name: &str) -> String {
        // Not there before the guest's first word.
        let bytes = std::fs::read(self.machine_dir(name).join("console.log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The newest tick in the console after the first `skip` bytes.
    #[must_use]
    pub fn last_tick(&self, skip: usize) -> Option<u64> {
        self.last_tick_of("g", skip)
    }

    /// The newest tick in a guest's console after the first `skip` bytes.
    #[must_use]
    pub fn last_tick_of(&self, name: &str, skip: usize) -> Option<u64> {
        let console = self.console_of(name);
        let said = console.get(skip..)?;
        // The last line may still be on its way: the number in it would be a part of one.
        let lines: Vec<&str> = said[..said.rfind('\n')?].lines().collect();
        lines.iter().rev().find_map(|line| line.strip_prefix("tick ")?.split(' ').next()?.parse().ok())
    }

    /// Waits for a tick after what is on the console now, and checks that the guest never complained.
    #[must_use]
    pub fn next_tick(&self) -> u64 {
        self.next_tick_of("g")
    }

    /// The same of another guest.
    #[must_use]
    pub fn next_tick_of(&self, name: &str) -> u64 {
        let skip = self.console_of(name).len();
        wait_until("the guest's next tick", Duration::from_secs(30), || {
            self.last_tick_of(name, skip).is_some()
        });
        let console = self.console_of(name);
        assert!(!console.contains("CORRUPT"), "the guest complains:\n{console}");
        self.last_tick_of(name, skip).expect("just seen")
    }

    /// Runs a command in the guest's control shell and returns what it printed.
    #[must_use]
    pub fn shell(&self, command: &str) -> String {
        shell::run(&self.runtime_dir().join("control"), command)
    }

    /// Sends a command to the guest's control shell and does not wait for it. What the guest has not read when the result
    /// is dropped is lost.
    #[must_use]
    pub fn send(&self, command: &str) -> UnixStream {
        shell::send(&self.runtime_dir().join("control"), command)
    }

    /// The state of a machine.
    #[must_use]
    pub fn state(&self, name: &str) -> String {
        self.json(&["show", name])["state"].as_str().unwrap_or_default().to_owned()
    }

    /// Waits until a machine is in a state.
    pub fn wait_for(&self, name: &str, state: &str) {
        wait_until(&format!("{name} to be {state}"), Duration::from_mins(2), || self.state(name) == state);
    }

    /// Waits until a machine has this many checkpoints more than now.
    pub fn wait_for_checkpoints(&self, name: &str, more: u64) {
        let count = || self.json(&["show", name])["checkpoints"].as_u64().unwrap_or(0);
        let before = count();
        wait_until(&format!("{more} checkpoints"), Duration::from_mins(2), || count() >= before + more);
    }

    /// The number of its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends the daemon by SIGTERM; its guests go on. Returns how long it took.
    #[must_use]
    pub fn terminate(mut self) -> Duration {
        let pid = i32::try_from(self.child.id()).expect("a process number");
        let begun = Instant::now();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM)
            .expect("the daemon runs");
        let _status = self.child.wait().expect("the daemon's status");
        let took = begun.elapsed();
        std::mem::forget(self);
        took
    }

    /// Kills the daemon without warning; its guests go on.
    #[must_use]
    pub fn kill(mut self) -> PathBuf {
        self.end();
        let store = self.store.clone();
        // The guests must outlive this.
        std::mem::forget(self);
        store
    }

    /// A gRPC channel over the daemon's socket.
    pub async fn channel(&self) -> Channel {
        let socket = self.store.join("daemon.sock");
        let connector = tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { tokio::net::UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        Endpoint::from_static("http://daemon")
            .connect_with_connector(connector)
            .await
            .expect("the daemon answers")
    }

    /// The guest's sockets and logs.
    #[must_use]
    pub fn runtime_dir(&self) -> PathBuf {
        self.machine_dir("g")
    }

    /// Those of another one.
    #[must_use]
    pub fn machine_dir(&self, name: &str) -> PathBuf {
        self.store.join("machines").join(name)
    }

    fn end(&mut self) {
        // Ended already: then there is nothing to kill, and the wait says so at once.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let machines = std::fs::read_dir(self.store.join("machines"));
        let machines: Vec<PathBuf> =
            machines.into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        for machine in machines.iter().filter(|machine| machine.join("worker").exists()) {
            // Nothing else ends a microVM from outside.
            let name = machine.file_name().unwrap_or_default().to_string_lossy();
            let _stopped = self.run(&["stop", &name]);
        }
        self.end();
        for machine in machines {
            quit(&machine.join("qmp"));
        }
    }
}

/// Asks a QEMU to end, and waits until it did.
fn quit(qmp: &Path) {
    let Ok(mut socket) = UnixStream::connect(qmp) else { return };
    let _ = socket.set_read_timeout(Some(Duration::from_secs(5)));
    if socket.write_all(b"{\"execute\":\"qmp_capabilities\"}\n{\"execute\":\"quit\"}\n").is_err() {
        return;
    }
    let began = Instant::now();
    let mut rest = [0; 4096];
    while began.elapsed() < Duration::from_secs(5) && socket.read(&mut rest).is_ok_and(|bytes| bytes > 0) {}
}
