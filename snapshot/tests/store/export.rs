//! Checkpoints as files that others read, and dumps of others as machines.

use std::fs;
use std::ops::ControlFlow;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use retrovisor_guest::{Gpa, MemoryLayout, MemorySlot, MemoryView, PAGE_SIZE, VcpuRegisters};
use retrovisor_snapshot::{CheckpointRecord, DumpFormat, Error, ExportProgress, OperationKind, Store};

use crate::toy::{Frame, Lab};

fn go_on(_: ExportProgress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Memory with a gap, and pages of all kinds.
fn lab() -> (Lab, CheckpointRecord) {
    let slot = |gpa, pages: u64| MemorySlot { gpa: Gpa(gpa), length_bytes: pages * 4096 };
    let mut lab = Lab::with(&MemoryLayout::new(vec![slot(0, 40), slot(1 << 20, 60)]).unwrap());
    for at in [0, 1, 2, 39, 40, 41, 99] {
        lab.toy.scribble(at, 7 + at as u64);
    }
    lab.toy.set(50, Frame::Removed);
    lab.toy.image.registers = VcpuRegisters {
        general: std::array::from_fn(|at| 0x1000 + at as u64),
        rip: 0xffff_ffff_8100_0000,
        rflags: 0x246,
        cr0: 0x8005_0033,
        cr3: 0x1234_5000,
        cr4: 0x6f0,
        efer: 0xd01,
        gs_base: 0xffff_8880_0000_0000,
        kernel_gs_base: Some(5),
        ..VcpuRegisters::default()
    };
    let record = lab.checkpoint();
    (lab, record)
}

fn memory(lab: &Lab, gpa: u64, bytes: usize) -> Vec<u8> {
    let mut read = vec![0; bytes];
    lab.toy.read(Gpa(gpa), &mut read).unwrap();
    read
}

#[test]
fn a_raw_dump_is_memory_by_physical_address_and_comes_back() {
    let (lab, record) = lab();
    let path = lab.dir.path().join("memory.raw");
    let report = lab.store.export_raw(record.id, &path, &mut go_on).unwrap();
    let raw = fs::read(&path).unwrap();
    assert_eq!(raw.len() as u64, report.length_bytes);
    assert_eq!(raw.len(), (1 << 20) + 60 * PAGE_SIZE);
    assert_eq!(raw[..40 * PAGE_SIZE], memory(&lab, 0, 40 * PAGE_SIZE));
    assert_eq!(raw[1 << 20..], memory(&lab, 1 << 20, 60 * PAGE_SIZE));
    assert!(raw[40 * PAGE_SIZE..1 << 20].iter().all(|byte| *byte == 0));
    // Seven pages hold data; the rest are holes.
    assert_eq!(report.pages, 7);
    assert!(report.disk_bytes <= 16 * PAGE_SIZE as u64, "{report:?}");
    let meta = fs::metadata(&path).unwrap();
    assert_eq!(meta.mode() & 0o777, 0o600);
    // An existing file is not overwritten.
    assert!(matches!(lab.store.export_raw(record.id, &path, &mut go_on), Err(Error::Exists { .. })));

    let before = lab.store.catalogue().query("SELECT count(*) FROM content", &[], 1).unwrap();
    let report = lab.store.import_dump("copy", &path, DumpFormat::Raw, &mut go_on).unwrap();
    // All its pages were in the store already.
    assert_eq!((report.new_contents, report.stored_bytes), (0, 0));
    assert_eq!(lab.store.catalogue().query("SELECT count(*) FROM content", &[], 1).unwrap(), before);
    let view = lab.store.view(report.newest).unwrap();
    let mut read = vec![0; raw.len()];
    view.read(Gpa(0), &mut read).unwrap();
    assert_eq!(read, raw);
    let machine = lab.store.catalogue().machine("copy").unwrap();
    assert_eq!(lab.store.catalogue().operations(machine.id).unwrap()[0].kind, OperationKind::Import);
    assert_eq!(lab.store.verify(&mut |_| ()).unwrap().damaged, []);
}

#[test]
fn an_elf_core_comes_back_with_its_registers() {
    let (lab, record) = lab();
    let path = lab.dir.path().join("memory.core");
    let report = lab.store.export_elf_core(record.id, &path, &mut go_on).unwrap();
    assert_eq!((report.pages, report.vmcoreinfo), (7, false));
    let brought = lab.store.import_dump("copy", &path, DumpFormat::ElfCore, &mut go_on).unwrap();
    let machine = lab.store.catalogue().machine("copy").unwrap();
    assert_eq!((machine.identity.vcpus, &machine.identity.layout), (1, lab.toy.layout()));
    assert_eq!(lab.store.image_hash(brought.newest).unwrap(), lab.store.image_hash(record.id).unwrap());
    assert_eq!(lab.store.registers(brought.newest).unwrap()[0], lab.toy.image.registers);
    assert_eq!(lab.store.verify(&mut |_| ()).unwrap().damaged, []);
    let twice = lab.store.import_dump("copy", &path, DumpFormat::ElfCore, &mut go_on);
    assert!(matches!(twice, Err(Error::Exists { .. })));
    assert_eq!(lab.store.verify(&mut |_| ()).unwrap().damaged, []);

    let Ok(listed) = Command::new("readelf").args(["-lnW"]).arg(&path).output() else {
        eprintln!("SKIPPED: readelf is not there");
        return;
    };
    let text = String::from_utf8_lossy(&listed.stdout);
    let loads: Vec<_> = text.lines().filter(|line| line.trim_start().starts_with("LOAD")).collect();
    assert!(loads[0].contains("0x028000") && loads[1].contains("0x0000000000100000"), "{text}");
    assert!(text.contains("NT_PRSTATUS") && text.contains("QEMU"), "{text}");
    assert!(listed.stderr.is_empty(), "{}", String::from_utf8_lossy(&listed.stderr));
}

#[test]
fn vmcoreinfo_is_found_in_memory() {
    let (mut lab, _) = lab();
    let mut page = [0; PAGE_SIZE];
    let text = b"OSRELEASE=6.1.0\nPAGESIZE=4096\nSYMBOL(init_uts_ns)=ffffffff82a1c1c0\n";
    page[..text.len()].copy_from_slice(text);
    lab.toy.set(45, Frame::Data(Box::new(page)));
    let record = lab.checkpoint();
    let path = lab.dir.path().join("memory.core");
    assert!(lab.store.export_elf_core(record.id, &path, &mut go_on).unwrap().vmcoreinfo);
    let head = fs::read(&path).unwrap();
    let found = head[..8192].windows(text.len()).any(|part| part == text);
    assert!(found);
}

#[test]
fn what_was_stopped_or_failed_leaves_nothing() {
    let (lab, record) = lab();
    let dir = lab.dir.path().join("out");
    fs::create_dir(&dir).unwrap();
    let stop = &mut |_: ExportProgress| ControlFlow::Break(());
    assert!(matches!(lab.store.export_raw(record.id, &dir.join("a"), stop), Err(Error::Stopped)));
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
    let core = dir.join("core");
    lab.store.export_elf_core(record.id, &core, &mut go_on).unwrap();
    assert!(matches!(lab.store.import_dump("copy", &core, DumpFormat::ElfCore, stop), Err(Error::Stopped)));
    refused(&lab.store, &core, "missing", |bytes| bytes.truncate(60));
    refused(&lab.store, &core, "no ELF", |bytes| bytes[0] = b'x');
    refused(&lab.store, &core, "x86-64", |bytes| bytes[18] = 3);
    refused(&lab.store, &core, "cut short", |bytes| bytes.truncate(9000));
    refused(&lab.store, &core, "program headers", |bytes| bytes[56] = 0);
    assert_eq!(lab.store.catalogue().machines().unwrap().len(), 1);
    assert_eq!(lab.store.verify(&mut |_| ()).unwrap().damaged, []);
}

fn refused(store: &Arc<Store>, core: &Path, _why: &str, change: impl Fn(&mut Vec<u8>)) {
    let mut bytes = fs::read(core).unwrap();
    change(&mut bytes);
    let path = core.with_extension("torn");
    fs::write(&path, bytes).unwrap();
    let error = store.import_dump("copy", &path, DumpFormat::ElfCore, &mut go_on).unwrap_err();
    assert!(matches!(error, Error::NotReadable { .. }), "{error}");
    assert!(error.to_string().contains("Nothing was imported"));
}

#[test]
fn any_header_is_read_without_harm() {
    let (lab, record) = lab();
    let core = lab.dir.path().join("core");
    lab.store.export_elf_core(record.id, &core, &mut go_on).unwrap();
    let whole = fs::read(&core).unwrap();
    let torn = lab.dir.path().join("torn");
    for at in (0..64 + 3 * 56).step_by(3) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0xff;
        fs::write(&torn, &bytes).unwrap();
        let name = format!("copy{at}");
        // It is refused, or imported correctly; the store stays consistent.
        let _ = lab.store.import_dump(&name, &torn, DumpFormat::ElfCore, &mut go_on);
    }
    assert_eq!(lab.store.verify(&mut |_| ()).unwrap().damaged, []);
}
