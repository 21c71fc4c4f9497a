//! The project's test guest, and operations of the tests on it.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use retrovisor_guest::{
    Gfn, Machine, MachineState, MemoryIo as _, MemoryView, PAGE_SIZE, Page, PageContent, PageSet,
    StateIo as _, ZERO_PAGE,
};
use retrovisor_machine::qemu::{DiskConfig, LaunchConfig, QemuMachine};

/// The folder in which `setup/guest.sh` puts the guest; `None`, with a message, when it did not run or QEMU is not
/// installed.
pub(crate) fn image() -> Option<PathBuf> {
    let cache = std::env::var_os("RETROVISOR_CACHE").map(PathBuf::from).or_else(|| {
        let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let base = base.or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache")));
        base.map(|base| base.join("retrovisor"))
    })?;
    let guest = cache.join("guest");
    if !guest.join("vmlinuz").exists() || !guest.join("initramfs.cpio.gz").exists() {
        eprintln!("SKIPPED: the test guest is not in {} (setup/guest.sh makes it)", guest.display());
        return None;
    }
    if std::process::Command::new("qemu-system-x86_64").arg("--version").output().is_err() {
        eprintln!("SKIPPED: qemu-system-x86_64 is not installed (Debian: apt install qemu-system-x86)");
        return None;
    }
    Some(guest)
}

/// A machine with the guest and its disk, 256 MiB, two vCPUs.
pub(crate) fn config(guest: &Path, runtime_dir: &Path) -> LaunchConfig {
    LaunchConfig {
        name: "test".into(),
        kernel: guest.join("vmlinuz"),
        initrd: Some(guest.join("initramfs.cpio.gz")),
        append: "console=ttyS0 panic=-1 quiet".into(),
        disks: vec![DiskConfig { name: "d0".into(), path: guest.join("disk.raw") }],
        memory_bytes: 256 << 20,
        vcpus: 2,
        accelerator: None,
        runtime_dir: runtime_dir.to_path_buf(),
        binary: None,
        board: None,
        paused: false,
        detached: false,
    }
}

pub(crate) fn console(machine: &QemuMachine) -> String {
    String::from_utf8_lossy(&std::fs::read(machine.console_log().unwrap()).unwrap()).into_owned()
}

/// Waits until the guest's console, from byte `from` on, has `wanted`.
pub(crate) fn wait_console(machine: &QemuMachine, from: usize, wanted: &str) {
    let deadline = Instant::now() + Duration::from_secs(90);
    loop {
        let text = console(machine);
        if text.get(from..).is_some_and(|text| text.contains(wanted)) {
            return;
        }
        assert!(Instant::now() < deadline, "no {wanted:?} on the console:\n{text}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The numbers of the workload's ticks, in the order of the console, and whether every line reports success.
pub(crate) fn ticks(text: &str) -> Vec<u64> {
    assert!(!text.contains("corrupt") && !text.contains("CORRUPT"), "{text}");
    let lines =
        text.lines().filter_map(|line| line.trim().strip_prefix("tick ")?.split(' ').next()?.parse().ok());
    lines.collect()
}

/// The guest's root shell on its second serial port.
pub(crate) struct Shell(BufReader<UnixStream>);

impl Shell {
    pub(crate) fn open(machine: &QemuMachine) -> Self {
        let stream = UnixStream::connect(machine.control().unwrap()).unwrap();
        stream.set_read_timeout(Some(Duration::from_mins(1))).unwrap();
        Self(BufReader::new(stream))
    }

    /// Sends a command without reading a reply.
    pub(crate) fn send(&mut self, command: &str) {
        self.0.get_mut().write_all(format!("{command}\n").as_bytes()).unwrap();
    }

    /// Runs a command and returns its last line of output.
    pub(crate) fn run(&mut self, command: &str) -> String {
        self.send(&format!("{command}; echo DONE"));
        let mut last = String::new();
        loop {
            let mut line = String::new();
            self.0.read_line(&mut line).unwrap();
            if line.trim() == "DONE" {
                return last;
            }
            line.trim().clone_into(&mut last);
        }
    }
}

/// A copy of all memory, kept up to date by dirty pages alone, and the state at that instant.
#[derive(Clone)]
pub(crate) struct Checkpoint {
    pub(crate) memory: Vec<u8>,
    pub(crate) state: MachineState,
    pub(crate) dirty: u64,
}

/// Pauses and captures; `memory` is the image of the checkpoint before (empty at first).
pub(crate) fn capture(machine: &mut QemuMachine, mut memory: Vec<u8>) -> Checkpoint {
    machine.pause().unwrap();
    let layout = machine.identity().layout.clone();
    memory.resize(usize::try_from(layout.bytes()).unwrap(), 0xee);
    let mut dirty = PageSet::empty(&layout);
    machine.take_dirty(&mut dirty).unwrap();
    for index in dirty.indices() {
        let at = usize::try_from(index).unwrap() * PAGE_SIZE;
        let page: &mut Page = (&mut memory[at..at + PAGE_SIZE]).try_into().unwrap();
        machine.memory().read_page(layout.gfn(index).unwrap(), page).unwrap();
    }
    let state = machine.capture_state().unwrap();
    Checkpoint { memory, state, dirty: dirty.len() }
}

/// How many pages of the machine differ from the image.
pub(crate) fn differing(view: &dyn MemoryView, memory: &[u8]) -> Vec<Gfn> {
    let mut page = ZERO_PAGE;
    let pages = view.layout().gfns().zip(memory.chunks_exact(PAGE_SIZE));
    let differing = pages.filter_map(|(gfn, expected)| {
        view.read_page(gfn, &mut page).unwrap();
        (page != *expected).then_some(gfn)
    });
    differing.collect()
}

/// Writes every page that differs, and applies the state. The machine stays paused.
pub(crate) fn restore(machine: &mut QemuMachine, checkpoint: &Checkpoint) {
    machine.pause().unwrap();
    let layout = machine.identity().layout.clone();
    for gfn in differing(machine.memory(), &checkpoint.memory) {
        let at = usize::try_from(layout.index(gfn).unwrap()).unwrap() * PAGE_SIZE;
        let page: &Page = checkpoint.memory[at..at + PAGE_SIZE].try_into().unwrap();
        machine.write_page(gfn, PageContent::Data(page)).unwrap();
    }
    machine.apply_state(&checkpoint.state, retrovisor_guest::ClockPolicy::StandStill).unwrap();
    let wrong = differing(machine.memory(), &checkpoint.memory);
    assert!(wrong.is_empty(), "{} pages differ after the state was applied: {wrong:?}", wrong.len());
}
