use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::{GuestImage, Owner, shell, wait_until};

/// How a QEMU that Retrovisor does not start is started: with shared memory, an overlay over a disk, a console log, a
/// control port and a monitor, all in one folder.
#[derive(Clone, Copy, Debug)]
pub struct ForeignOptions<'a> {
    /// The folder of QEMU's programs; `None` takes those of `PATH`.
    pub programs: Option<&'a Path>,
    /// The kernel.
    pub kernel: &'a Path,
    /// The initial RAM file system.
    pub initrd: &'a Path,
    /// The kernel's command line.
    pub append: &'a str,
    /// A raw disk image, which is only read.
    pub disk: &'a Path,
    /// Memory, in MiB.
    pub memory_mib: u32,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Where the files and sockets are.
    pub dir: &'a Path,
}

impl<'a> ForeignOptions<'a> {
    /// A small guest with one vCPU, under the QEMU of `PATH`.
    #[must_use]
    pub fn small(image: &'a GuestImage, dir: &'a Path) -> Self {
        Self {
            programs: None,
            kernel: &image.kernel,
            initrd: &image.initrd,
            append: "console=ttyS0 quiet tsc=unstable panic=-1",
            disk: &image.disk,
            memory_mib: 256,
            vcpus: 1,
            dir,
        }
    }
}

/// A QEMU that was started by hand, for `retrovisor attach`. Ended when dropped.
#[derive(Debug)]
pub struct ForeignQemu {
    child: Child,
    dir: PathBuf,
}

impl ForeignQemu {
    /// Starts it and waits for its monitor. An overlay that is in the folder already is used again.
    #[must_use]
    pub fn start(options: &ForeignOptions<'_>) -> Self {
        Self::start_with(options, &[])
    }

    /// The same with further arguments, which come last.
    #[must_use]
    pub fn start_with(options: &ForeignOptions<'_>, arguments: &[&str]) -> Self {
        let program =
            |name: &str| options.programs.map_or_else(|| PathBuf::from(name), |folder| folder.join(name));
        let file = |name: &str| options.dir.join(name).display().to_string();
        let (overlay, size) = (options.dir.join("overlay.qcow2"), format!("{}M", options.memory_mib));
        if !overlay.exists() {
            let made = Command::new(program("qemu-img"))
                .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
                .args([options.disk, &overlay])
                .status()
                .expect("qemu-img starts");
            assert!(made.success(), "qemu-img: {made}");
        }
        let sockets = ["qmp", "owner"].map(|name| options.dir.join(name));
        for socket in &sockets {
            // A QEMU that was killed leaves it.
            let _old = std::fs::remove_file(socket);
        }
        let socket = |name: &str| format!("unix:{},server=on,wait=off", file(name));
        let child = Command::new(program("qemu-system-x86_64"))
            .args(["-M", "q35,memory-backend=ram", "-accel", "tcg,thread=multi", "-cpu", "max"])
            .args(["-m", &size, "-smp", &options.vcpus.to_string(), "-nodefaults", "-display", "none"])
            .arg("-object")
            .arg(format!("memory-backend-file,id=ram,size={size},mem-path={},share=on", file("memory")))
            .arg("-kernel")
            .arg(options.kernel)
            .arg("-initrd")
            .arg(options.initrd)
            .args(["-append", options.append, "-drive"])
            .arg(format!("file={},if=none,id=d0,format=qcow2", overlay.display()))
            .args(["-device", "virtio-blk-pci,drive=d0", "-serial", &format!("file:{}", file("console.log"))])
            .args(["-serial", &socket("control"), "-qmp", &socket("qmp"), "-qmp", &socket("owner")])
            .args(arguments)
            .stdin(Stdio::null())
            .spawn()
            .expect("qemu-system-x86_64 starts");
        let foreign = Self { child, dir: options.dir.to_owned() };
        wait_until("the monitors", Duration::from_mins(1), || sockets.iter().all(|socket| socket.exists()));
        foreign
    }

    /// The socket of its monitor.
    #[must_use]
    pub fn qmp(&self) -> String {
        self.dir.join("qmp").display().to_string()
    }

    /// Connects to its second monitor, which its owner keeps.
    #[must_use]
    pub fn owner(&self) -> Owner {
        Owner::connect(&self.dir.join("owner"))
    }

    /// The file that is its guest's memory.
    #[must_use]
    pub fn memory(&self) -> PathBuf {
        self.dir.join("memory")
    }

    /// Runs a command in the guest's control shell and returns what it printed.
    #[must_use]
    pub fn shell(&self, command: &str) -> String {
        shell::run(&self.dir.join("control"), command)
    }

    /// Sends a command to the guest's control shell and does not wait for it. What the guest has not read when the result
    /// is dropped is lost.
    #[must_use]
    pub fn send(&self, command: &str) -> UnixStream {
        shell::send(&self.dir.join("control"), command)
    }

    /// Waits for a tick of its guest's workload after what is on the console now; the guest must not complain.
    pub fn next_tick(&self) {
        let before = self.console().matches("tick ").count();
        wait_until("a tick", Duration::from_mins(1), || self.console().matches("tick ").count() > before);
        assert!(!self.console().contains("CORRUPT"), "{}", self.console());
    }

    /// Everything its guest wrote to the console.
    #[must_use]
    pub fn console(&self) -> String {
        // The file is made with the guest's first byte.
        let bytes = std::fs::read(self.dir.join("console.log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Ends it as a crash would.
    pub fn kill(&mut self) {
        // It may have ended by itself.
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }

    /// Waits for its end.
    pub fn wait(&mut self) {
        let _status = self.child.wait();
    }
}

impl Drop for ForeignQemu {
    fn drop(&mut self) {
        self.kill();
    }
}
