//! A real guest in QEMU: boots the test image, runs commands in it, stops it, reads and writes its memory.
#![allow(dead_code, reason = "each test uses its part")]

use std::{
    fs::File,
    io::{BufRead, BufReader, Read, Write},
    os::unix::{fs::FileExt, net::UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use retrovisor_guest::{Gpa, VcpuRegisters};
use retrovisor_introspect::RawDump;

#[path = "../../examples/inspect_dump/registers.rs"]
pub(crate) mod registers;

/// Where the set-up keeps its files.
pub(crate) fn cache() -> Option<PathBuf> {
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache"));
    let base = || std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home);
    std::env::var_os("RETROVISOR_CACHE").map(PathBuf::from).or_else(|| Some(base()?.join("retrovisor")))
}

const MEMORY_MIB: u64 = 512;
/// On a shared host an emulated guest can take very long.
const PATIENCE: Duration = Duration::from_mins(5);

pub(crate) struct Guest {
    process: Child,
    monitor: BufReader<UnixStream>,
    shell: UnixStream,
    directory: tempfile::TempDir,
}

/// The guest to start, and its machine.
pub(crate) struct Setting {
    /// Folder of the cache that holds `vmlinuz`, `initramfs.cpio.gz`, `disk.raw`.
    pub(crate) folder: PathBuf,
    pub(crate) vcpus: u32,
    /// The features of the CPU: `max`, `max,la57=off`.
    pub(crate) cpu: &'static str,
    /// `tcg,thread=multi`, or `single`: with several threads, QEMU 7.2 now and then executes half of a patched
    /// instruction of a 7.x kernel.
    pub(crate) accelerator: &'static str,
    /// Additions to the kernel's command line.
    pub(crate) append: &'static str,
    /// Whether the machine has the data disk, and a blank one for the guest's witness.
    pub(crate) disks: bool,
}

impl Default for Setting {
    fn default() -> Self {
        Self {
            folder: cache().unwrap_or_default().join("guest"),
            vcpus: 2,
            cpu: "max",
            accelerator: "tcg,thread=multi",
            append: "",
            disks: false,
        }
    }
}

/// Bytes of the disk that the witness writes to.
pub(crate) const WITNESS_DISK_BYTES: u64 = 64 << 20;

impl Guest {
    /// Starts the test guest; `None`, with a message, when that is not possible.
    pub(crate) fn start() -> Option<Self> {
        Self::start_on(&Setting::default(), None)
    }

    /// Starts a guest on a machine of this kind.
    pub(crate) fn start_on(setting: &Setting, archive: Option<&Path>) -> Option<Self> {
        let (kernel, image) = (setting.folder.join("vmlinuz"), setting.folder.join("initramfs.cpio.gz"));
        for file in [&kernel, &image] {
            if !file.is_file() {
                eprintln!(
                    "SKIPPED: no guest image at {}: `make setup` fetches and builds it",
                    file.display()
                );
                return None;
            }
        }
        let directory = tempfile::Builder::new().prefix("retrovisor-live").tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let mut image = image;
        if let Some(archive) = archive {
            // The kernel unpacks the archives in order; each starts at a multiple of four bytes.
            let mut both = std::fs::read(&image).unwrap();
            both.resize(both.len().next_multiple_of(4), 0);
            both.extend(std::fs::read(archive).unwrap());
            image = path("initramfs");
            std::fs::write(&image, both).unwrap();
        }
        let memory = format!(
            "memory-backend-file,id=ram,size={MEMORY_MIB}M,mem-path={},share=on",
            path("memory").display()
        );
        let socket = |name: &str| format!("unix:{},server=on,wait=off", path(name).display());
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(["-nodefaults", "-display", "none", "-no-reboot", "-accel", setting.accelerator])
            .args(["-M", "q35,memory-backend=ram", "-m", &MEMORY_MIB.to_string(), "-object", &memory])
            .args(["-cpu", setting.cpu, "-smp", &setting.vcpus.to_string()])
            .arg("-kernel")
            .arg(&kernel)
            .arg("-initrd")
            .arg(&image)
            .args(["-append", &format!("console=ttyS0 panic=-1 quiet no_timer_check {}", setting.append)])
            .args(["-serial", &format!("file:{}", path("console").display())])
            .args(["-serial", &socket("shell"), "-qmp", &socket("monitor")]);
        if setting.disks {
            File::create(path("witness")).unwrap().set_len(WITNESS_DISK_BYTES).unwrap();
            let drive = |file: &Path, snapshot: &str| {
                format!("file={},if=virtio,format=raw,snapshot={snapshot}", file.display())
            };
            command.args(["-drive", &drive(&setting.folder.join("disk.raw"), "on")]);
            command.args(["-drive", &drive(&path("witness"), "off")]);
        }
        let process = command.stdin(Stdio::null()).spawn();
        let process = match process {
            Ok(process) => process,
            Err(error) => {
                eprintln!("SKIPPED: cannot start qemu-system-x86_64 (package qemu-system-x86): {error}");
                return None;
            }
        };
        let mut guest = Starting { process: Some(process) };
        let monitor = BufReader::new(connect(&path("monitor")));
        let shell = connect(&path("shell"));
        shell.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let mut guest = Self { process: guest.process.take().unwrap(), monitor, shell, directory };
        guest.answer();
        guest.ask(r#"{"execute":"qmp_capabilities"}"#);
        Some(guest)
    }

    /// Starts a guest and waits for its shell. QEMU 7.2 emulates the return from an interrupt wrongly while code is
    /// being patched, so a boot fails now and then: it is repeated.
    pub(crate) fn boot_on(setting: &Setting, archive: Option<&Path>) -> Option<Self> {
        for attempt in 1..=5 {
            let mut guest = Self::start_on(setting, archive)?;
            match guest.shell_answers() {
                Ok(()) => return Some(guest),
                Err(console) => eprintln!("boot {attempt} of {} failed: {console}", setting.folder.display()),
            }
        }
        panic!("{} did not boot in five attempts", setting.folder.display());
    }

    pub(crate) fn wait_for_shell(&mut self) {
        if let Err(console) = self.shell_answers() {
            panic!("the guest does not boot: {console}");
        }
    }

    /// Waits for the shell. When the kernel fails, or the time is over, returns the console's output.
    fn shell_answers(&mut self) -> Result<(), String> {
        let start = Instant::now();
        loop {
            let _ = self.shell.write_all(b"echo up$((40+2))\n");
            let mut text = Vec::new();
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = self.shell.read(&mut buffer) {
                text.extend_from_slice(&buffer[..length]);
                if text.windows(4).any(|window| window == b"up42") {
                    // Answers to earlier commands arrive before the next one is sent.
                    std::thread::sleep(Duration::from_secs(1));
                    while let Ok(1..) = self.shell.read(&mut buffer) {}
                    return Ok(());
                }
            }
            let ended = self.process.try_wait().unwrap();
            let console = std::fs::read_to_string(self.directory.path().join("console")).unwrap_or_default();
            let fell = ["---[ end trace", "Kernel panic"].iter().any(|words| console.contains(words));
            if ended.is_some() || fell || start.elapsed() > PATIENCE {
                return Err(console);
            }
        }
    }

    /// Runs a command in the guest and returns its output.
    pub(crate) fn run(&mut self, command: &str) -> String {
        self.shell.write_all(format!("{command}; echo 'E''ND'$?\n").as_bytes()).unwrap();
        let (mut text, mut buffer, start) = (Vec::new(), vec![0; 65536], Instant::now());
        loop {
            if let Ok(length) = self.shell.read(&mut buffer) {
                text.extend_from_slice(&buffer[..length]);
            }
            let all = String::from_utf8_lossy(&text);
            if let Some(end) = all.rfind("END").filter(|end| all[*end..].ends_with('\n')) {
                return all[..end].replace('\r', "");
            }
            assert!(start.elapsed() < PATIENCE, "the guest does not finish {command:?}: {all}");
        }
    }

    fn answer(&mut self) -> serde_json::Value {
        let mut line = String::new();
        self.monitor.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    fn ask(&mut self, question: &str) -> serde_json::Value {
        self.monitor.get_mut().write_all(question.as_bytes()).unwrap();
        loop {
            let answer = self.answer();
            if answer.get("return").is_some() || answer.get("error").is_some() {
                return answer;
            }
        }
    }

    pub(crate) fn stop(&mut self) {
        self.ask(r#"{"execute":"stop"}"#);
    }

    pub(crate) fn resume(&mut self) {
        self.ask(r#"{"execute":"cont"}"#);
    }

    pub(crate) fn registers(&mut self) -> Vec<VcpuRegisters> {
        registers::parse(&self.registers_as_printed())
    }

    /// The registers as the monitor prints them.
    pub(crate) fn registers_as_printed(&mut self) -> String {
        let question =
            r#"{"execute":"human-monitor-command","arguments":{"command-line":"info registers -a"}}"#;
        let answer = self.ask(question);
        answer["return"].as_str().unwrap().to_owned()
    }

    /// The file that is the guest's memory.
    pub(crate) fn memory_path(&self) -> PathBuf {
        self.directory.path().join("memory")
    }

    /// The file that is the witness's disk.
    pub(crate) fn witness_path(&self) -> PathBuf {
        self.directory.path().join("witness")
    }

    /// The guest's current memory.
    pub(crate) fn memory(&self) -> RawDump {
        RawDump::open(&self.memory_path()).unwrap()
    }

    /// Overwrites memory while `during` runs, then restores the old bytes.
    pub(crate) fn with_changed<T>(&self, changes: &[(Gpa, Vec<u8>)], during: impl FnOnce() -> T) -> T {
        let file = File::options().read(true).write(true).open(self.memory_path()).unwrap();
        let mut before = Vec::new();
        for (gpa, bytes) in changes {
            let mut old = vec![0; bytes.len()];
            file.read_exact_at(&mut old, gpa.0).unwrap();
            file.write_all_at(bytes, gpa.0).unwrap();
            before.push((gpa, old));
        }
        let result = during();
        for (gpa, old) in before.into_iter().rev() {
            file.write_all_at(&old, gpa.0).unwrap();
        }
        result
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Ends QEMU when the start panics.
struct Starting {
    process: Option<Child>,
}

impl Drop for Starting {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

fn connect(path: &Path) -> UnixStream {
    let start = Instant::now();
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => return stream,
            Err(error) => {
                assert!(start.elapsed() < PATIENCE, "cannot connect to {}: {error}", path.display());
            }
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
