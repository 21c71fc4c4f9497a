//! Starts QEMU.

use std::ffi::CStr;
use std::fs::{DirBuilder, File, OpenOptions};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use retrovisor_guest::{Accelerator, MachineError};
use serde_json::Value;

use super::disk::DiskConfig;
use super::memory_file;
use super::qmp::Qmp;
use super::runtime::RuntimeDir;
use crate::error::QmpError;
use crate::process::Process;

/// The object that is loaded into QEMU to find dirty pages; see `preload.c`.
/// The name of its file in the process's list of mappings.
pub(super) const PRELOAD_NAME: &CStr = c"retrovisor-preload";
static PRELOAD: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/preload.so"));
/// The name that is looked up in `PATH` when no binary is given.
const BINARY: &str = "qemu-system-x86_64";
const MIB: u64 = 1 << 20;
/// Least memory a machine is given.
const MEMORY_BYTES_MIN: u64 = 16 * MIB;
/// No host has more.
const MEMORY_BYTES_MAX: u64 = 16 << 40;
/// Bound on the vCPUs that QEMU's q35 board supports without further options.
const VCPUS_MAX: u32 = 255;
/// How long QEMU may take from its start to its monitor.
const START_WAIT: Duration = Duration::from_secs(20);

/// A machine to be launched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaunchConfig {
    /// The machine's name: letters, digits, `.`, `_` and `-`.
    pub name: String,
    /// The kernel, as a bzImage.
    pub kernel: PathBuf,
    /// The initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// The kernel's command line. Under TCG `tsc=unstable` is added, unless it has an option for `tsc` already.
    pub append: String,
    /// Disks, in the order in which the guest finds them.
    pub disks: Vec<DiskConfig>,
    /// The guest's memory, in bytes: whole MiB, 16 at least.
    pub memory_bytes: u64,
    /// Number of vCPUs, 1 to 255.
    pub vcpus: u32,
    /// What runs the guest; `None` takes what [`crate::accelerator::detect`] finds.
    pub accelerator: Option<Accelerator>,
    /// The folder for sockets, logs and disk overlays. Created (0700) if it does not exist.
    pub runtime_dir: PathBuf,
    /// QEMU's binary; `None` takes `qemu-system-x86_64` from `PATH`.
    pub binary: Option<PathBuf>,
    /// QEMU's machine type with its version, such as `pc-q35-7.2`; `None` takes the newest `q35`. A state that was taken
    /// under an older QEMU needs the type that it was taken from.
    pub board: Option<String>,
    /// Start with the vCPUs stopped, for a state that will be applied.
    pub paused: bool,
    /// QEMU continues when this process ends or drops the machine. Otherwise it ends with either,
    /// also when this process is killed.
    pub detached: bool,
}

/// Starts QEMU and connects to its monitor. After a failure, neither a process nor a file that it created remains.
pub(super) fn launch(config: &LaunchConfig) -> Result<(Qmp, Process), MachineError> {
    let accelerator = config.check()?;
    let mut made = Made::default();
    let runtime = RuntimeDir::new(&config.runtime_dir);
    runtime.check_room()?;
    made.directory(&config.runtime_dir)?;
    // A QEMU that is busy with another client does not greet.
    if matches!(Qmp::connect(&runtime.monitor()), Ok(_) | Err(QmpError::Busy { .. })) {
        return Err(refuse(
            format!("a machine runs in {} already", config.runtime_dir.display()),
            "Attach to it, or use another runtime directory",
        ));
    }
    let mut disks = Vec::new();
    if !config.disks.is_empty() {
        made.directory(&runtime.disks())?;
    }
    for disk in &config.disks {
        let (path, new, description) = disk.prepare(&runtime.disks())?;
        if new {
            made.paths.push(path);
        }
        disks.push(description);
    }
    for path in
        [runtime.monitor(), runtime.console(), runtime.control(), runtime.console_log(), runtime.log()]
    {
        if !path.exists() {
            made.paths.push(path);
        }
    }

    let memory = memory(config.memory_bytes)?;
    let (mut command, inherited) = command(config, accelerator, &runtime, &disks, &memory)?;
    let log = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(runtime.log());
    let log = log.map_err(|source| io(format!("making {}", runtime.log().display()), source))?;
    let second = log.try_clone().map_err(|source| io("copying a descriptor", source))?;
    command.stdin(Stdio::null()).stdout(second).stderr(log);
    let started = Process::spawn("QEMU", command, inherited, config.detached, runtime.log());
    let mut process = started.map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => refuse(
            format!("QEMU ({}) is not there", config.binary().display()),
            "Install it (Debian: apt install qemu-system-x86), or start `retrovisor serve` with its folder in PATH, as \
             `setup/run.sh` in the source folder does",
        ),
        _ => io(format!("starting {}", config.binary().display()), error),
    })?;
    match connect(&runtime.monitor(), &mut process) {
        Ok(qmp) => {
            made.keep();
            Ok((qmp, process))
        }
        Err(reason) => {
            process.kill();
            Err(MachineError::Driver { doing: format!("starting machine {}", config.name), message: reason })
        }
    }
}

fn connect(path: &Path, process: &mut Process) -> Result<Qmp, String> {
    let deadline = Instant::now() + START_WAIT;
    loop {
        match Qmp::connect(path) {
            Ok(qmp) => return Ok(qmp),
            Err(QmpError::Connect { .. }) if Instant::now() < deadline && !process.ended() => {
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(error) => {
                process.wait(Duration::from_millis(200));
                return Err(format!("{}; {error}", process.exit_reason()));
            }
        }
    }
}

impl LaunchConfig {
    fn binary(&self) -> &Path {
        self.binary.as_deref().unwrap_or(Path::new(BINARY))
    }

    /// Refuses an unusable configuration; returns the accelerator.
    pub(super) fn check(&self) -> Result<Accelerator, MachineError> {
        let plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'-');
        if self.name.is_empty() || self.name.len() > 64 || !self.name.bytes().all(plain) {
            return Err(refuse(
                format!("{:?} is not a machine's name", self.name),
                "Use letters, digits, `.`, `_` and `-`, 64 at most",
            ));
        }
        let files = [("kernel", Some(&self.kernel)), ("initial RAM disk", self.initrd.as_ref())];
        for (what, path) in files.into_iter().filter_map(|(what, path)| Some((what, path?))) {
            let readable = File::open(path).and_then(|file| file.metadata());
            let problem = match readable {
                Ok(found) if found.is_file() => continue,
                Ok(_) => "it is not a file".to_owned(),
                Err(error) => error.to_string(),
            };
            return Err(refuse(
                format!("the {what} {} cannot be read: {problem}", path.display()),
                "Name a bzImage such as /boot/vmlinuz-* (Debian: apt install linux-image-cloud-amd64), and its initrd",
            ));
        }
        let is_size = (MEMORY_BYTES_MIN..=MEMORY_BYTES_MAX).contains(&self.memory_bytes);
        if !is_size || !self.memory_bytes.is_multiple_of(MIB) {
            return Err(refuse(
                format!("{} bytes are no memory size", self.memory_bytes),
                "Ask for whole MiB, from 16 MiB to 16 TiB",
            ));
        }
        if self.vcpus == 0 || self.vcpus > VCPUS_MAX {
            return Err(refuse(format!("{} is no number of vCPUs", self.vcpus), "Ask for 1 to 255"));
        }
        let names: std::collections::BTreeSet<_> = self.disks.iter().map(|disk| &disk.name).collect();
        if names.len() != self.disks.len() {
            return Err(refuse("two disks have one name".into(), "Give each disk a name of its own"));
        }
        match self.accelerator {
            Some(Accelerator::None) => {
                Err(refuse("QEMU needs an accelerator".into(), "Choose kvm or tcg, or leave the choice open"))
            }
            Some(accelerator) => Ok(accelerator),
            None => {
                let detected = crate::accelerator::detect();
                tracing::info!(accelerator = %detected.accelerator, reason = detected.reason, "accelerator chosen");
                Ok(detected.accelerator)
            }
        }
    }
}

/// QEMU's command line, and the descriptors that it needs.
fn command(
    config: &LaunchConfig,
    accelerator: Accelerator,
    runtime: &RuntimeDir,
    disks: &[Value],
    memory: &File,
) -> Result<(Command, Vec<OwnedFd>), MachineError> {
    let preload = memory_file::create(PRELOAD_NAME, PRELOAD)?;
    let inherit = |file: &File| file.try_clone().map_err(|source| io("copying a descriptor", source));
    let (ram, preload) = (inherit(memory)?, inherit(&preload)?);
    let mut command = Command::new(config.binary());
    let mut option = |name: &str, value: String| {
        command.arg(name).arg(value);
    };
    let socket = |id: &str, path: &Path| format!("socket,id={id},path={},server=on,wait=off", escape(path));
    let mib = config.memory_bytes / MIB;

    option("-name", format!("guest={}", config.name));
    let board = config.board.as_deref().unwrap_or("q35");
    option("-machine", format!("{},memory-backend=ram,vmport=off", escape(Path::new(board))));
    let path = format!("/proc/self/fd/{}", ram.as_raw_fd());
    option("-object", format!("memory-backend-file,id=ram,size={mib}M,mem-path={path},share=on"));
    option("-m", format!("{mib}M"));
    option("-smp", config.vcpus.to_string());
    match accelerator {
        Accelerator::Kvm => {
            option("-accel", "kvm".into());
            option("-cpu", "host".into());
        }
        Accelerator::Tcg | Accelerator::None => {
            option("-accel", "tcg,thread=multi".into());
            option("-cpu", "max".into());
        }
    }
    option("-display", "none".into());
    option("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny".into());
    option("-kernel", config.kernel.display().to_string());
    if let Some(initrd) = &config.initrd {
        option("-initrd", initrd.display().to_string());
    }
    option("-append", command_line(&config.append, accelerator));
    // A process that is given a state goes on with the console of the one before it.
    let append = if config.paused { "on" } else { "off" };
    let (console, console_log) = (socket("tty0", &runtime.console()), escape(&runtime.console_log()));
    option("-chardev", format!("{console},logfile={console_log},logappend={append}"));
    option("-serial", "chardev:tty0".into());
    option("-chardev", socket("tty1", &runtime.control()));
    option("-serial", "chardev:tty1".into());
    option("-object", "rng-random,id=rng,filename=/dev/urandom".into());
    option("-device", "virtio-rng-pci,rng=rng".into());
    for (disk, description) in config.disks.iter().zip(disks) {
        option("-blockdev", description.to_string());
        option("-device", format!("virtio-blk-pci,drive={},id=disk-{},write-cache=on", disk.name, disk.name));
    }
    option("-chardev", socket("monitor", &runtime.monitor()));
    option("-mon", "chardev=monitor,mode=control".into());
    // A guest that switches itself off is stopped, and can be rolled back in place.
    option("-action", "shutdown=pause".into());
    command.args(["-nodefaults", "-no-user-config"]);
    if config.paused {
        command.arg("-S");
    }

    let own = format!("/proc/self/fd/{}", preload.as_raw_fd());
    let others = std::env::var_os("LD_PRELOAD").filter(|others| !others.is_empty());
    let mut all = std::ffi::OsString::from(&own);
    if let Some(others) = others {
        all.push(":");
        all.push(others);
    }
    let file = memory.metadata().map_err(|source| io("looking at the memory file", source))?;
    command.env("LD_PRELOAD", all).env("RETROVISOR_PRELOAD", own);
    command.env("RETROVISOR_RAM", format!("{}:{}:{}", file.dev(), file.ino(), config.memory_bytes));
    Ok((command, vec![ram.into(), preload.into()]))
}

/// The guest's memory: a file without a name, which exists as long as it is open, and whose length is sealed.
fn memory(length_bytes: u64) -> Result<File, MachineError> {
    let file = memory_file::create(c"retrovisor-ram", &[])?;
    file.set_len(length_bytes).map_err(|source| io("making the guest's memory", source))?;
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))
        .map_err(|errno| io("sealing the guest's memory", errno.into()))?;
    Ok(file)
}

/// A comma in an option's value is doubled.
fn escape(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

fn io(doing: impl Into<String>, source: std::io::Error) -> MachineError {
    MachineError::Io { doing: doing.into(), source }
}

fn refuse(what: String, help: &str) -> MachineError {
    MachineError::Config { what, help: help.into() }
}

/// The files that a launch created, to be removed if it fails.
#[derive(Default)]
struct Made {
    paths: Vec<PathBuf>,
    directories: Vec<PathBuf>,
}

impl Made {
    /// Creates a directory that only its owner may enter, or changes the mode of an existing one.
    fn directory(&mut self, path: &Path) -> Result<(), MachineError> {
        let doing = || format!("making the directory {}", path.display());
        if path.exists() {
            let private = std::fs::Permissions::from_mode(0o700);
            return std::fs::set_permissions(path, private).map_err(|source| io(doing(), source));
        }
        let missing = path.ancestors().take_while(|above| !above.as_os_str().is_empty() && !above.exists());
        self.directories.extend(missing.map(Path::to_path_buf).collect::<Vec<_>>().into_iter().rev());
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|source| io(doing(), source))
    }

    fn keep(&mut self) {
        self.paths.clear();
        self.directories.clear();
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for path in &self.paths {
            let _ = std::fs::remove_file(path);
        }
        for path in self.directories.iter().rev() {
            let _ = std::fs::remove_dir(path);
        }
    }
}

/// The guest kernel's command line. Within one process, TCG never lets the time-stamp counter decrease: the clock of a
/// guest that uses it would jump ahead at every rollback, so its command line makes it use another clock.
fn command_line(append: &str, accelerator: Accelerator) -> String {
    if accelerator == Accelerator::Kvm || append.split_whitespace().any(|word| word.starts_with("tsc=")) {
        append.to_owned()
    } else {
        format!("{append} tsc=unstable").trim_start().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_translated_guests_get_the_option_for_their_counter() {
        assert_eq!(command_line("quiet", Accelerator::Tcg), "quiet tsc=unstable");
        assert_eq!(command_line("", Accelerator::Tcg), "tsc=unstable");
        assert_eq!(command_line("tsc=reliable", Accelerator::Tcg), "tsc=reliable");
        assert_eq!(command_line("quiet", Accelerator::Kvm), "quiet");
    }
}
