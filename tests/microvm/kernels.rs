//! Stock kernels, as Debian ships them, and how long they take until their first process runs.

use std::path::Path;
use std::time::{Duration, Instant};

use retrovisor_machine::kvm::{KvmConfig, KvmMachine, memory_layout};
use retrovisor_tests::GuestImage;

use crate::guest::{self, Listener};
use crate::{autopsy, lab};

#[test]
fn stock_kernels_boot_to_userspace() {
    if !lab::boots_here() {
        return;
    }
    let image = GuestImage::files().unwrap();
    let cache = image.kernel.parent().and_then(Path::parent).unwrap();
    let mut folders: Vec<_> =
        std::fs::read_dir(cache.join("kernels")).map_or_else(|_| Vec::new(), |all| all.flatten().collect());
    folders.sort_by_key(std::fs::DirEntry::file_name);
    let mut failures = Vec::new();
    for folder in folders.iter().map(std::fs::DirEntry::path) {
        let kernel = folder.join("vmlinuz");
        if kernel.exists() {
            failures.extend(boot(&kernel, &folder.join("initramfs.cpio.gz"), 512, guest::VCPUS).err());
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn a_vmlinux_boots_at_its_entry_for_virtual_machines() {
    if !lab::boots_here() {
        return;
    }
    let image = GuestImage::files().unwrap();
    let kernel = image.kernel.with_file_name("vmlinux");
    if !kernel.exists() {
        eprintln!("SKIPPED: there is no {}: setup/vmlinux.sh makes one", kernel.display());
        return;
    }
    boot(&kernel, &image.initrd, 256, guest::VCPUS).unwrap();
}

#[test]
fn little_memory_and_one_vcpu_are_enough() {
    if !lab::boots_here() {
        return;
    }
    let image = GuestImage::files().unwrap();
    boot(&image.kernel, &image.initrd, 128, 1).unwrap();
}

/// Boots until the workload in it has ticked, and tells how long that took; or why not.
fn boot(kernel: &Path, initrd: &Path, memory_mib: u64, vcpus: u32) -> Result<(), String> {
    let name = kernel.display().to_string();
    let layout = memory_layout(memory_mib << 20).unwrap();
    let config = guest::of_kernel(kernel.to_owned(), initrd.to_owned(), lab::append(), layout);
    let began = Instant::now();
    let mut machine = KvmMachine::launch(&KvmConfig { vcpus, ..config }).unwrap();
    let init = loop {
        let console = String::from_utf8_lossy(&machine.console()).into_owned();
        if console.contains("guest up after") {
            break began.elapsed();
        }
        if machine.ended().is_some() || began.elapsed().as_secs() > 120 {
            let (ended, autopsy) = (machine.ended(), autopsy::of(&mut machine));
            return Err(format!("{name} does not come up: {ended:?}\n{console}\n{autopsy}"));
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let listener = Listener::default();
    listener.wait_tick(&mut machine);
    listener.assert_unnoticed(&machine);
    println!("BOOTED {name}, {memory_mib} MiB, {vcpus} vCPUs: userspace after {:.1} s", init.as_secs_f64());
    Ok(())
}
