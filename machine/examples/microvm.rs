//! Boots a Linux kernel in a microVM and shows its console until it ends.
//!
//! `cargo run -p retrovisor-machine --example microvm -- KERNEL INITRD MEMORY_MIB VCPUS APPEND [DISK]`
use std::io::Write as _;
use std::time::Duration;

use retrovisor_guest::{Machine as _, MemoryLayout};
use retrovisor_machine::kvm::{Boot, DiskConfig, KvmConfig, KvmMachine, MemorySource};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let ([kernel, initrd, memory_mib, vcpus, append], disk) =
        arguments.split_first_chunk().ok_or("say KERNEL INITRD MEMORY_MIB VCPUS APPEND [DISK]")?;
    let disk = disk.first().map(|image| DiskConfig {
        base: Some(image.into()),
        size_bytes: None,
        read_only: false,
        changes_dir: std::env::temp_dir(),
    });
    let mut machine = KvmMachine::launch(&KvmConfig {
        name: "microvm".into(),
        layout: MemoryLayout::flat(memory_mib.parse::<u64>()? << 20)?,
        memory: MemorySource::Fresh,
        vcpus: vcpus.parse()?,
        disks: disk.into_iter().collect(),
        boot: Boot::Linux {
            kernel: kernel.into(),
            initrd: (initrd != "-").then(|| initrd.into()),
            append: append.clone(),
        },
        nets: Vec::new(),
        channel: false,
        paused: false,
    })?;
    let mut shown = 0;
    loop {
        let ended = machine.ended();
        let console = machine.console();
        std::io::stdout().write_all(&console[shown.min(console.len())..])?;
        std::io::stdout().flush()?;
        shown = console.len();
        if let Some(why) = ended {
            println!("\nthe machine ended: {why}");
            machine.pause()?;
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
