use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use retrovisor_tests::{ForeignOptions, ForeignQemu, GuestImage, command_path, wait_until};
use serde_json::Value;
use tempfile::TempDir;

use crate::Random;
use crate::daemon::{Daemon, Usage};
use crate::operation::Outcome;

/// The machine that `run` started.
pub(crate) const RAN: &str = "ran";
/// The machine whose QEMU was started by hand.
pub(crate) const ATTACHED: &str = "attached";

/// Size of the store's file system.
const STORE_SIZE: &str = "6g";
/// A command that takes longer hangs.
const COMMAND_SECONDS: &str = "180";
/// A guest that runs writes a tick within this time.
const TICK_PATIENCE: Duration = Duration::from_mins(2);
/// Rollbacks reach this many checkpoints back.
const DEPTH: usize = 20;

/// The daemon, two guests, and where they are.
pub(crate) struct World {
    daemon: Option<Daemon>,
    qemu: Option<ForeignQemu>,
    image: GuestImage,
    /// What the daemon used in the calm part.
    pub(crate) usage: Vec<Usage>,
    /// Refusals by their first line, without numbers.
    refusals: BTreeMap<String, u32>,
    dir: TempDir,
}

impl World {
    /// Mounts the store's file system, starts the daemon, one guest by `run` and one that is attached to.
    pub(crate) fn start() -> Self {
        let image = GuestImage::find().expect("the guest: `make setup`");
        let dir = tempfile::Builder::new().prefix("retrovisor-soak-").tempdir().expect("a temporary folder");
        let mut world =
            Self { daemon: None, qemu: None, image, usage: Vec::new(), refusals: BTreeMap::new(), dir };
        fs::create_dir(world.store()).expect("the store's folder");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={STORE_SIZE},mode=0700"), "tmpfs"])
            .arg(world.store())
            .status()
            .expect("mount starts");
        assert!(mounted.success(), "mounting a tmpfs: {mounted}");
        fs::write(world.clock(), "+0\n").expect("the clock's file");
        world.start_daemon();
        let path = |path: &Path| path.to_str().expect("a printable path").to_owned();
        let (kernel, initrd, disk) =
            (path(&world.image.kernel), path(&world.image.initrd), path(&world.image.disk));
        world.must(&[
            "run", RAN, "--driver", "qemu", "--kernel", &kernel, "--initrd", &initrd, "--disk", &disk,
            "--vcpus", "2", "--every", "500ms",
        ]);
        world.start_qemu();
        world.must(&["attach", ATTACHED, "--qmp", &path(&world.qmp()), "--every", "500ms"]);
        for machine in [RAN, ATTACHED] {
            wait_until("the guest's first tick", TICK_PATIENCE, || world.console(machine).contains("tick "));
        }
        world
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    /// The folder of everything.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A path outside of the store.
    pub(crate) fn file(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().expect("a printable path").to_owned()
    }

    /// The file by which the daemon's clock is stepped.
    pub(crate) fn clock(&self) -> PathBuf {
        self.dir.path().join("clock")
    }

    fn qmp(&self) -> PathBuf {
        self.dir.path().join("qmp")
    }

    /// Runs a command. One that hangs, panics, or fails without a message ends the soak.
    pub(crate) fn tried(&mut self, arguments: &[&str]) -> Outcome {
        let (code, stdout, stderr) = run(&self.store(), arguments);
        let said = format!("retrovisor {arguments:?}: exit code {code}\n{stdout}\n{stderr}");
        assert!(code != 124, "it hangs: {said}");
        assert!(![stdout, stderr.clone()].iter().any(|text| text.contains("panicked")), "a panic: {said}");
        assert!(!stderr.contains("hash"), "the memory is not that of the checkpoint: {said}");
        match code {
            0 => Outcome::Done,
            1 | 3 | 4 => {
                assert!(stderr.contains("error: "), "no message: {said}");
                let line = stderr.lines().find(|line| line.starts_with("error: ")).unwrap_or_default();
                let line: String = line.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
                *self.refusals.entry(format!("{}: {line}", arguments[0])).or_default() += 1;
                Outcome::Refused
            }
            _ => panic!("{said}"),
        }
    }

    /// Runs a command that must work.
    pub(crate) fn must(&mut self, arguments: &[&str]) {
        let (code, stdout, stderr) = run(&self.store(), arguments);
        assert_eq!(code, 0, "retrovisor {arguments:?}\n{stdout}\n{stderr}");
    }

    /// The answer to a command that must work.
    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        let (code, stdout, stderr) = run(&self.store(), &[arguments, &["--json"]].concat());
        assert_eq!(code, 0, "retrovisor {arguments:?}\n{stdout}\n{stderr}");
        serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{arguments:?}: {error}\n{stdout}"))
    }

    /// Starts a command and does not wait for it.
    pub(crate) fn begin(&self, arguments: &[&str]) -> Child {
        Command::new(command_path())
            .arg("--store")
            .arg(self.store())
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the command starts")
    }

    /// One of the newest checkpoints of a machine.
    pub(crate) fn recent(&self, machine: &str, random: &mut Random) -> Option<String> {
        let log = self.json(&["log", machine]);
        let mut checkpoints: Vec<(u64, String)> = log
            .as_array()?
            .iter()
            .filter_map(|record| Some((record["sequence"].as_u64()?, record["name"].as_str()?.to_owned())))
            .collect();
        checkpoints.sort();
        let first = checkpoints.len().saturating_sub(DEPTH);
        random.pick(&checkpoints[first..]).map(|(_, name)| name.clone())
    }

    pub(crate) fn state(&self, machine: &str) -> String {
        self.json(&["show", machine])["state"].as_str().unwrap_or_default().to_owned()
    }

    /// Both machines are managed, run or run on when resumed, and their guests find no corruption.
    pub(crate) fn must_be_sound(&mut self) {
        for machine in [RAN, ATTACHED] {
            let begun = Instant::now();
            let before = self.ticks(machine);
            loop {
                match self.state(machine).as_str() {
                    "running" if self.ticks(machine) != before => break,
                    // A second client or a full disk paused it.
                    "paused" => drop(self.tried(&["resume", machine])),
                    "failed" | "gone" | "panicked" | "powered off" | "detached" => {
                        panic!("{machine} is lost: {:#}", self.json(&["show", machine]));
                    }
                    _ => {}
                }
                assert!(
                    begun.elapsed() < TICK_PATIENCE,
                    "{machine} does not go on: {:#}",
                    self.json(&["show", machine])
                );
                std::thread::sleep(Duration::from_millis(100));
            }
            let console = self.console(machine);
            let complaints = ["CORRUPT", "BUG", "Oops", "segfault", "EXT4-fs error"];
            let found: Vec<&str> =
                console.lines().filter(|line| complaints.iter().any(|word| line.contains(word))).collect();
            assert!(found.is_empty(), "{machine} complains: {found:#?}");
        }
    }

    /// How much its guest has written.
    fn ticks(&self, machine: &str) -> u64 {
        fs::metadata(self.console_path(machine)).map_or(0, |file| file.len())
    }

    fn console_path(&self, machine: &str) -> PathBuf {
        match machine {
            RAN => self.store().join("machines").join(RAN).join("console.log"),
            _ => self.dir.path().join("console.log"),
        }
    }

    fn console(&self, machine: &str) -> String {
        String::from_utf8_lossy(&fs::read(self.console_path(machine)).unwrap_or_default()).into_owned()
    }

    pub(crate) fn start_daemon(&mut self) {
        self.daemon = Some(Daemon::start(&self.store(), &self.clock()));
    }

    pub(crate) fn kill_daemon(&mut self) {
        drop(self.daemon.take().expect("a daemon"));
    }

    /// Ends the daemon as systemd does.
    pub(crate) fn end_daemon(&mut self) {
        self.daemon.take().expect("a daemon").terminate();
    }

    /// Notes what the daemon uses.
    pub(crate) fn note_daemon(&mut self) {
        self.usage.push(self.daemon.as_ref().expect("a daemon").usage());
    }

    fn start_qemu(&mut self) {
        self.qemu = Some(ForeignQemu::start(&ForeignOptions {
            programs: None,
            kernel: &self.image.kernel,
            initrd: &self.image.initrd,
            append: "console=ttyS0 quiet panic=-1",
            disk: &self.image.disk,
            memory_mib: 512,
            vcpus: 1,
            dir: self.dir.path(),
        }));
    }

    pub(crate) fn detach_and_attach(&mut self) -> Outcome {
        let detached = self.tried(&["detach", ATTACHED]);
        let qmp = self.file("qmp");
        self.until_done(&["attach", ATTACHED, "--qmp", &qmp, "--every", "500ms"], |world| {
            world.state(ATTACHED) == "running"
        });
        detached
    }

    /// Ends a guest's process as a crash of it would.
    pub(crate) fn kill_qemu(&mut self, machine: &str) {
        if machine == ATTACHED {
            self.qemu.as_mut().expect("its QEMU").kill();
        } else {
            let folder = self.store().join("machines").join(machine);
            let found = processes_with(folder.to_str().expect("a printable path"));
            let qemu = found.iter().find(|(_, command)| command.contains("qemu-system"));
            let (qemu, _) = qemu.expect("the guest's QEMU runs");
            kill(Pid::from_raw(*qemu), Signal::SIGKILL).expect("its QEMU is killed");
        }
    }

    /// Brings back a machine whose process was ended: from a checkpoint, or, where the process was not Retrovisor's, by
    /// starting it again, as the same machine or as a new one.
    pub(crate) fn bring_back(&mut self, machine: &str, random: &mut Random) {
        if machine == ATTACHED {
            // One that was stopped ends by itself.
            self.wait_for_qemu();
            let is_new = random.below(2) == 0;
            if is_new {
                self.until_done(&["remove", ATTACHED, "--yes"], |_| false);
                let _old = fs::remove_file(self.file("overlay.qcow2"));
            }
            let target = if is_new { None } else { self.recent(ATTACHED, random) };
            self.start_qemu();
            let qmp = self.file("qmp");
            self.until_done(&["attach", ATTACHED, "--qmp", &qmp, "--every", "500ms"], |_| false);
            if let Some(target) = target {
                // Its history is that of the same machine.
                self.must(&["rollback", ATTACHED, "--to", &target, "--verify-image"]);
            }
        } else {
            self.until_done(&["rollback", machine, "--to", "latest", "--verify-image"], |world| {
                // The second client did it.
                world.state(machine) == "running"
            });
        }
    }

    /// Tries a command until it works or is not needed any more: its machine may not be seen as gone yet.
    fn until_done(&mut self, arguments: &[&str], is_needless: impl Fn(&Self) -> bool) {
        let begun = Instant::now();
        while self.tried(arguments) == Outcome::Refused && !is_needless(self) {
            let (_, stdout, stderr) = run(&self.store(), arguments);
            assert!(begun.elapsed() < Duration::from_mins(2), "{arguments:?} is refused: {stdout}{stderr}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Prints which refusals there were.
    pub(crate) fn print_refusals(&self) {
        for (line, count) in &self.refusals {
            println!("refused {count:>4} times: {line}");
        }
    }

    /// The QEMU that was started by hand has ended.
    pub(crate) fn wait_for_qemu(&mut self) {
        if let Some(mut qemu) = self.qemu.take() {
            qemu.wait();
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        drop(self.daemon.take());
        for (pid, _) in processes_with(self.dir.path().to_str().unwrap_or("-")) {
            // It may have ended meanwhile.
            let _ended = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        self.wait_for_qemu();
        // So that the folder can be removed.
        let _unmounted = Command::new("umount").arg("-l").arg(self.store()).status();
    }
}

/// Exit code, standard output and standard error of a command; 124 when it takes too long.
pub(crate) fn run(store: &Path, arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new("timeout")
        .args(["-k", "5", COMMAND_SECONDS])
        .arg(command_path())
        .arg("--store")
        .arg(store)
        .args(arguments)
        .output()
        .expect("the command starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

/// Processes that have the text in their command lines, but this one.
pub(crate) fn processes_with(text: &str) -> Vec<(i32, String)> {
    let own = std::process::id().to_string();
    let entries = fs::read_dir("/proc").expect("/proc").flatten();
    let found = entries.filter_map(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = name.parse().ok()?;
        let command = fs::read(entry.path().join("cmdline")).ok()?;
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        (name != own && command.contains(text)).then_some((pid, command))
    });
    found.collect()
}
