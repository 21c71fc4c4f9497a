use std::fmt;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use retrovisor_tests::{Daemon, ForeignOptions, ForeignQemu, wait_until};
use serde_json::Value;
use tempfile::TempDir;

/// How the machine came to be managed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// By `retrovisor run`.
    Run,
    /// A QEMU started by hand, then `retrovisor attach`.
    Attached,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Run => "run",
            Self::Attached => "attach",
        })
    }
}

/// Words of a kernel log that mean that memory or a disk is damaged.
const COMPLAINTS: [&str; 7] =
    ["BUG", "Oops", "Bad page", "corrupt", "segfault", "EXT4-fs error", "Kernel panic"];
/// Booting and filling the database takes a minute on a quiet host.
const BOOT_PATIENCE: Duration = Duration::from_mins(10);

/// A Debian server under load, managed as `web`.
pub(crate) struct Server {
    // Dropped in this order: the daemon, its guest, the folder.
    daemon: Daemon,
    #[expect(dead_code, reason = "ends the QEMU when dropped")]
    qemu: Option<ForeignQemu>,
    console: PathBuf,
    control: PathBuf,
    dir: TempDir,
}

impl Server {
    /// Starts it; the kernel boots.
    pub(crate) fn start(origin: Origin, vcpus: u32) -> Self {
        let image = image_dir();
        let dir = tempfile::tempdir().expect("a temporary folder");
        let store = dir.path().join("store");
        std::fs::create_dir(&store).expect("the store's folder");
        let daemon = Daemon::start(&store);
        let (kernel, initrd, disk) =
            (image.join("vmlinuz"), image.join("initrd.img"), image.join("disk.raw"));
        let append = "root=/dev/vda rw console=ttyS0 tsc=unstable";
        let text = |path: &Path| path.to_str().expect("a printable path").to_owned();
        match origin {
            Origin::Run => {
                let vcpus = vcpus.to_string();
                let _ran = daemon
                    .run(&[
                        "run",
                        "web",
                        "--driver",
                        "qemu",
                        "--kernel",
                        &text(&kernel),
                        "--initrd",
                        &text(&initrd),
                        "--disk",
                        &text(&disk),
                        "--memory",
                        "1G",
                        "--vcpus",
                        &vcpus,
                        "--append",
                        append,
                        "--every",
                        "1s",
                    ])
                    .ok();
                let runtime = daemon.machine_dir("web");
                let (console, control) = (runtime.join("console.log"), runtime.join("control"));
                Self { daemon, qemu: None, console, control, dir }
            }
            Origin::Attached => {
                let qemu = ForeignQemu::start(&ForeignOptions {
                    programs: None,
                    kernel: &kernel,
                    initrd: &initrd,
                    append,
                    disk: &disk,
                    memory_mib: 1024,
                    vcpus,
                    dir: dir.path(),
                });
                let (console, control) = (dir.path().join("console.log"), dir.path().join("control"));
                let qmp = qemu.qmp();
                let server = Self { daemon, qemu: Some(qemu), console, control, dir };
                let _ran = server.daemon.run(&["attach", "web", "--qmp", &qmp, "--every", "1s"]).ok();
                server
            }
        }
    }

    /// Waits until database, web server and cache are under load.
    pub(crate) fn wait_for_load(&mut self) {
        wait_until("the server's load", BOOT_PATIENCE, || self.printed().contains("load: ready"));
        std::thread::sleep(Duration::from_secs(10));
    }

    /// Runs a verb that must work; its answer.
    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        self.daemon.json(arguments)
    }

    /// Names of all checkpoints, oldest first.
    pub(crate) fn checkpoints(&self) -> Vec<String> {
        let log = self.json(&["log", "web"]);
        let records = log.as_array().expect("checkpoints");
        let mut names: Vec<(u64, String)> = records
            .iter()
            .map(|record| {
                let name = record["name"].as_str().expect("a name").to_owned();
                (record["sequence"].as_u64().expect("a sequence"), name)
            })
            .collect();
        names.sort();
        names.into_iter().map(|(_, name)| name).collect()
    }

    /// Ends the guest's process as a crash of it would.
    pub(crate) fn kill_process(&self) {
        let runtime = self.daemon.machine_dir("web").join("qmp");
        let pid = process_with(runtime.to_str().expect("a printable path")).expect("a QEMU with that socket");
        let status = Command::new("kill").args(["-9", &pid]).status().expect("kill starts");
        assert!(status.success(), "kill {pid}: {status}");
        wait_until("the machine to be seen as gone", Duration::from_secs(20), || {
            self.json(&["show", "web"])["state"] == "gone"
        });
    }

    /// The kernel has printed nothing that means damage.
    pub(crate) fn must_not_complain(&self) {
        let printed = self.printed();
        let found: Vec<&str> =
            printed.lines().filter(|line| COMPLAINTS.iter().any(|word| line.contains(word))).collect();
        assert!(found.is_empty(), "the guest complains:\n{}", found.join("\n"));
    }

    /// Has the guest check its kernel log and its data.
    pub(crate) fn check_data(&self) {
        let said = self.command("check-data");
        assert_eq!(said, ["check: done"], "the guest found damage");
    }

    /// Every hash of the store is right.
    pub(crate) fn verify_store(&self) {
        let _verified = self.daemon.run(&["verify"]).ok();
    }

    fn command(&self, line: &str) -> Vec<String> {
        let mut port = UnixStream::connect(&self.control).expect("the control port");
        port.set_read_timeout(Some(Duration::from_mins(10))).expect("a timeout");
        port.write_all(format!("\necho BEG''IN; {line}; echo E''ND\n").as_bytes())
            .expect("the command is written");
        BufReader::new(port)
            .lines()
            .map(|line| line.expect("the guest's answer").trim_end().to_owned())
            .skip_while(|line| line != "BEGIN")
            .skip(1)
            .take_while(|line| line != "END")
            .collect()
    }

    fn printed(&self) -> String {
        // The file is made with the guest's first byte.
        String::from_utf8_lossy(&std::fs::read(&self.console).unwrap_or_default()).into_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        keep_after_failure(&self.dir);
    }
}

/// Keeps console and store of a run that failed, and prints where.
fn keep_after_failure(dir: &TempDir) {
    if std::thread::panicking() {
        let kept = std::env::temp_dir().join("retrovisor-server-failed");
        let _ = std::fs::remove_dir_all(&kept);
        let copied = Command::new("cp").arg("-r").arg(dir.path()).arg(&kept).status();
        eprintln!("what there was is kept in {}: {copied:?}", kept.display());
    }
}

/// The number of the QEMU process that has the text in its command line.
fn process_with(text: &str) -> Option<String> {
    std::fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let command = std::fs::read(entry.path().join("cmdline")).ok()?;
        let command = String::from_utf8_lossy(&command).into_owned();
        (command.contains("qemu-system") && command.contains(text))
            .then(|| entry.file_name().to_string_lossy().into_owned())
    })
}

fn image_dir() -> PathBuf {
    let home = std::env::var_os("HOME").map_or_else(|| PathBuf::from("/"), PathBuf::from);
    let base = std::env::var_os("XDG_CACHE_HOME").map_or_else(|| home.join(".cache"), PathBuf::from);
    let cache = std::env::var_os("RETROVISOR_CACHE").map_or_else(|| base.join("retrovisor"), PathBuf::from);
    let dir = cache.join("server");
    assert!(dir.join("recipe").exists(), "the server guest is missing: run setup/server.sh");
    dir
}
