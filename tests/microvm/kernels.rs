//! Stock kernels, as Debian ships them, and how long they take until their first process runs.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use retrovisor_guest::Machine as _;
use retrovisor_machine::kvm::{KvmConfig, KvmMachine, memory_layout};
use retrovisor_snapshot::{Access, CheckpointRequest, Recorder, Store};
use retrovisor_tests::GuestImage;

use crate::listener::Listener;
use crate::{guest, lab};

/// How often each kernel is taken back.
const ROLLBACKS: usize = 10;
/// The head of the ELF note that names the entry for virtual machines: 4 bytes of name, 8 of address, type 18.
const PVH_NOTE: &[u8] = b"\x04\0\0\0\x08\0\0\0\x12\0\0\0Xen\0";

#[test]
fn stock_kernels_boot_to_userspace() {
    if !lab::boots_here() {
        return;
    }
    let boot = |other: &lab::OtherKernel| boot(&other.kernel, &other.initrd, 512, guest::VCPUS).err();
    let failures: Vec<_> = lab::other_kernels().iter().filter_map(boot).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn stock_kernels_with_a_disk_go_back_and_notice_nothing() {
    if !lab::boots_here() || !lab::is_long("rollbacks under every kernel") {
        return;
    }
    for other in lab::other_kernels() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(dir.path(), Access::Create).unwrap());
        let mut machine = KvmMachine::launch(&guest::under(&other, "tell-time")).unwrap();
        let mut listener = Listener::default();
        listener.wait_tick(&mut machine);
        let id = store.catalogue().add_machine(machine.identity()).unwrap().id;
        let mut recorder = Recorder::new(store, id).unwrap();
        let mut taken = Vec::new();
        for _ in 0..ROLLBACKS {
            let report = recorder.checkpoint(&mut machine, &CheckpointRequest::default()).unwrap();
            taken.push(report.record.id);
            std::thread::sleep(Duration::from_millis(200));
        }
        for hop in 0..taken.len() {
            let target = taken[hop * 7 % taken.len()];
            listener.back(&mut recorder, &mut machine, target);
            listener.wait_tick(&mut machine);
        }
        let said = String::from_utf8_lossy(&machine.console()).into_owned();
        assert!(said.contains("files in /data"), "{}: its files are not on its disk:\n{said}", other.name);
        listener.assert_unnoticed(&machine);
        println!("{} went back {ROLLBACKS} times and noticed nothing", other.name);
    }
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
fn a_vmlinux_without_that_entry_boots_by_the_64_bit_protocol() {
    if !lab::boots_here() || !lab::is_long("a vmlinux by the 64-bit protocol") {
        return;
    }
    let image = GuestImage::files().unwrap();
    let kernel = image.kernel.with_file_name("vmlinux");
    if !kernel.exists() {
        eprintln!("SKIPPED: there is no {}: setup/vmlinux.sh makes one", kernel.display());
        return;
    }
    let mut bytes = std::fs::read(&kernel).unwrap();
    let notes: Vec<_> =
        bytes.windows(PVH_NOTE.len()).enumerate().filter(|(_, bytes)| *bytes == PVH_NOTE).collect();
    let [(at, _)] = notes[..] else { panic!("{} such notes", notes.len()) };
    // A note of a type that nobody knows.
    bytes[at + 8] = 0x7f;
    let dir = tempfile::tempdir().unwrap();
    let kernel = dir.path().join("vmlinux-without-pvh");
    std::fs::write(&kernel, bytes).unwrap();
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
    let mut machine = KvmMachine::launch(&KvmConfig { vcpus, ..config }).unwrap();
    let init = guest::wait_said(&mut machine, "guest up after")
        .map_err(|reason| format!("{name} does not come up: {reason}"))?;
    let listener = Listener::default();
    listener.wait_tick(&mut machine);
    listener.assert_unnoticed(&machine);
    println!("BOOTED {name}, {memory_mib} MiB, {vcpus} vCPUs: userspace after {:.1} s", init.as_secs_f64());
    Ok(())
}
