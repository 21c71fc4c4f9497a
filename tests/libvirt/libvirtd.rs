//! libvirt's daemon with a root file system, mounts, processes and a network of its own.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use retrovisor_tests::wait_until;

/// Longer than any operation of libvirt on the test's guest.
const VIRSH_SECONDS: &str = "180";

/// A running libvirtd. Its end is that of all processes that it started.
pub(crate) struct Libvirtd {
    child: Child,
    programs: PathBuf,
    dir: tempfile::TempDir,
}

impl Libvirtd {
    /// Starts libvirtd of the folder that `setup/libvirt.sh` prints, with these lines in its configuration of QEMU.
    pub(crate) fn start(programs: &Path, settings: &[&str]) -> Self {
        let dir = tempfile::Builder::new().prefix("retrovisor-libvirt-").tempdir();
        let dir = dir.expect("a temporary folder");
        // QEMU runs as another user.
        let passable = std::fs::Permissions::from_mode(0o711);
        std::fs::set_permissions(dir.path(), passable).expect("the folder's mode");
        let log = std::fs::File::create(dir.path().join("libvirtd.log")).expect("the log");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../setup/libvirtd.sh");
        let child = Command::new(script)
            .args([programs, dir.path()])
            .args(settings)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("the log"))
            .stderr(log)
            .spawn()
            .expect("setup/libvirtd.sh starts");
        let mut libvirtd = Self { child, programs: programs.to_owned(), dir };
        let socket = libvirtd.path("root/run/libvirt/libvirt-sock");
        wait_until("libvirtd's socket", Duration::from_mins(1), || {
            let ended = libvirtd.child.try_wait().expect("the status of libvirtd");
            assert!(ended.is_none(), "libvirtd ended:\n{}", libvirtd.log());
            std::os::unix::net::UnixStream::connect(&socket).is_ok()
        });
        libvirtd
    }

    /// A path in the folder that it shares with this program.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs `virsh`, which must work, and returns what it printed.
    pub(crate) fn virsh(&self, arguments: &[&str]) -> String {
        self.try_virsh(arguments)
            .unwrap_or_else(|error| panic!("virsh {}: {error}\n{}", arguments.join(" "), self.log()))
    }

    /// Runs `virsh`; returns what it printed, or its error.
    pub(crate) fn try_virsh(&self, arguments: &[&str]) -> Result<String, String> {
        let socket = self.path("root/run/libvirt/libvirt-sock");
        // With the C library that it was built for.
        let output = Command::new("timeout")
            .arg(VIRSH_SECONDS)
            .arg(self.programs.join("lib64/ld-linux-x86-64.so.2"))
            .arg("--library-path")
            .arg(self.programs.join("usr/lib/x86_64-linux-gnu"))
            .arg(self.programs.join("usr/bin/virsh"))
            .args(["--quiet", "--connect", &format!("qemu+unix:///system?socket={}", socket.display())])
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .expect("timeout starts");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("libvirtd.log")).unwrap_or_default()
    }

    /// The first process of its namespace.
    fn first_process(&self) -> Option<PathBuf> {
        let pid = self.child.id();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
        Some(Path::new("/proc").join(children.split_whitespace().next()?))
    }
}

impl Drop for Libvirtd {
    fn drop(&mut self) {
        let first = self.first_process();
        let _ended = self.child.kill();
        let _status = self.child.wait();
        // It ends after all others: then nothing writes into the folder any more.
        while first.as_ref().is_some_and(|first| first.exists()) {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
