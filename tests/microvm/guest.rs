use std::path::PathBuf;
use std::time::{Duration, Instant};

use retrovisor_guest::{Machine, MemoryLayout};
use retrovisor_machine::kvm::{
    Boot, DiskConfig, KvmConfig, KvmMachine, MemorySource, RemoteMachine, memory_layout,
};
use retrovisor_tests::GuestImage;

use crate::autopsy;
use crate::lab::{self, OtherKernel};

pub(crate) const VCPUS: u32 = 2;
/// A kernel that takes longer hangs, even in the lab.
const BOOT_PATIENCE: Duration = Duration::from_mins(4);
/// The same for a second of the guest's.
pub(crate) const PATIENCE: Duration = Duration::from_mins(3);

/// The test guest in a microVM, with its disk; it waits for its first resume when `paused`.
pub(crate) fn launch(paused: bool) -> KvmMachine {
    KvmMachine::launch(&KvmConfig { paused, ..config("linux", "tell-time") }).unwrap()
}

/// The test guest in a microVM; `append` is added to the kernel's command line.
pub(crate) fn config(name: &str, append: &str) -> KvmConfig {
    let image = GuestImage::files().unwrap();
    let disks = vec![DiskConfig {
        base: Some(image.disk),
        size_bytes: None,
        read_only: false,
        changes_dir: std::env::temp_dir(),
    }];
    let layout = memory_layout(256 << 20).unwrap();
    KvmConfig { name: name.into(), disks, ..of_kernel(image.kernel, image.initrd, append, layout) }
}

/// A guest of such a kernel, without a disk.
pub(crate) fn of_kernel(kernel: PathBuf, initrd: PathBuf, append: &str, layout: MemoryLayout) -> KvmConfig {
    KvmConfig {
        name: "linux".into(),
        layout,
        memory: MemorySource::Fresh,
        vcpus: VCPUS,
        disks: Vec::new(),
        boot: Boot::Linux {
            kernel,
            initrd: Some(initrd),
            append: format!("console=ttyS0 quiet panic=-1 {append}"),
        },
        nets: Vec::new(),
        channel: false,
        paused: false,
    }
}

/// The test guest under another kernel, with its disk.
pub(crate) fn under(kernel: &OtherKernel, append: &str) -> KvmConfig {
    let Boot::Linux { append, .. } = config("", &format!("{append} {}", lab::append())).boot else {
        unreachable!("it is a Linux")
    };
    let boot = Boot::Linux { kernel: kernel.kernel.clone(), initrd: Some(kernel.initrd.clone()), append };
    let layout = memory_layout(512 << 20).unwrap();
    KvmConfig { boot, layout, ..config(&kernel.name, "") }
}

/// A machine whose guest was heard from its start on.
pub(crate) trait Heard: Machine {
    /// All that it said.
    fn said(&self) -> Vec<u8>;
    /// Why it is gone.
    fn why_gone(&self) -> Option<String>;
}

impl Heard for KvmMachine {
    fn said(&self) -> Vec<u8> {
        self.console()
    }

    fn why_gone(&self) -> Option<String> {
        self.ended()
    }
}

impl Heard for RemoteMachine {
    fn said(&self) -> Vec<u8> {
        // Not there before the first word.
        std::fs::read(self.console_log()).unwrap_or_default()
    }

    fn why_gone(&self) -> Option<String> {
        self.ended()
    }
}

/// Waits until the guest said these words.
pub(crate) fn wait_said(machine: &mut impl Heard, words: &str) -> Result<Duration, String> {
    let began = Instant::now();
    loop {
        let console = String::from_utf8_lossy(&machine.said()).into_owned();
        if console.contains(words) {
            return Ok(began.elapsed());
        }
        if machine.run_state().has_ended() || began.elapsed() > BOOT_PATIENCE {
            let (why, autopsy) = (machine.why_gone(), autopsy::of(machine));
            return Err(format!("no {words:?} after {:?}: {why:?}\n{console}\n{autopsy}", began.elapsed()));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
