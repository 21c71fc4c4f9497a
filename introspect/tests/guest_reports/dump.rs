use std::{
    fs::{self, File},
    io::{Read, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use retrovisor_guest::{PAGE_SIZE, VcpuRegisters};
use retrovisor_introspect::RawDump;

use crate::{
    live::{Guest, Setting, cache, registers},
    statement::Statement,
};

/// A guest stopped at a quiet instant, with its own reports from shortly before and after.
pub(crate) struct Dump {
    pub(crate) memory: RawDump,
    pub(crate) registers: Vec<VcpuRegisters>,
    pub(crate) before: Statement,
    pub(crate) after: Statement,
}

/// Offset of the second report on the witness's disk.
const SECOND_AT: u64 = crate::live::WITNESS_DISK_BYTES / 2;
/// Incremented when dumps are taken in another way, so that old ones are not used.
const FORMAT: &str = "1";

impl Dump {
    /// The dump of a kernel in some circumstances: from the cache, or by booting it now. `None`, with a message, when
    /// the kernel is not in the cache.
    pub(crate) fn of(kernel: &str, circumstances: &str, setting: &Setting) -> Option<Self> {
        let folder = cache()?.join("kernels").join(kernel);
        let manifest = folder.join("manifest.json");
        let Ok(manifest) = fs::read(&manifest) else {
            let reason = fs::read_to_string(folder.join("unavailable"))
                .unwrap_or_else(|_| "`make setup` (all of them: `make test-kernels`) fetches it".to_owned());
            eprintln!("SKIPPED: there is no kernel {kernel}: {}", reason.trim().replace('\n', "; "));
            return None;
        };
        let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
        let sum = |file: &str| manifest["sha256"][file].as_str().unwrap()[..16].to_owned();
        let key = [FORMAT.to_owned(), sum("vmlinuz"), sum("initramfs.cpio.gz")].join("-");
        // One test at a time boots guests; the next one then finds the dump that it needs.
        fs::create_dir_all(cache()?.join("dumps")).unwrap();
        let lock = File::create(cache()?.join("dumps/lock")).unwrap();
        lock.lock().unwrap();
        let place = cache()?.join("dumps").join(format!("{kernel}-{circumstances}"));
        if fs::read_to_string(place.join("key")).ok().as_ref() != Some(&key) {
            take(&place, &key, &Setting { folder, disks: true, ..*setting })?;
        }
        Some(Self::read(&place))
    }

    fn read(place: &Path) -> Self {
        let file = |name: &str| place.join(name);
        Self {
            memory: RawDump::open(&file("memory")).unwrap(),
            registers: registers::parse(&fs::read_to_string(file("registers")).unwrap()),
            before: Statement::parse(&fs::read(file("before")).unwrap()),
            after: Statement::parse(&fs::read(file("after")).unwrap()),
        }
    }
}

/// Boots the guest, prepares it, and stops it between two reports.
fn take(place: &Path, key: &str, setting: &Setting) -> Option<()> {
    eprintln!("booting {} for {}", setting.folder.display(), place.display());
    let mut guest = Guest::boot_on(setting, None)?;
    guest.run("start-stop-daemon -S -b -x /bin/witness -- scene /data/scene 'two words' caf\u{e9}; sleep 2");
    // Activity that goes on by itself is stopped, so that both reports must be equal to the memory.
    let said =
        guest.run("kill -STOP $(pidof housekeeper) $(pidof workload); sleep 1; witness tell /dev/vdb 0");
    assert_eq!(said, "", "the witness could not speak");
    guest.stop();
    let _ = fs::remove_dir_all(place);
    fs::create_dir_all(place).unwrap();
    let file = |name: &str| place.join(name);
    copy_sparse(&guest.memory_path(), &file("memory"));
    fs::write(file("registers"), guest.registers_as_printed()).unwrap();
    guest.resume();
    let said = guest.run(&format!("witness tell /dev/vdb {SECOND_AT}"));
    assert_eq!(said, "", "the witness could not speak again");
    let reported = guest.witness_path();
    fs::write(file("before"), statement(&reported, 0)).unwrap();
    fs::write(file("after"), statement(&reported, SECOND_AT)).unwrap();
    // The key is written last: a dump with a key is complete.
    fs::write(file("key"), key).unwrap();
    Some(())
}

/// The witness's report at an offset of its disk: length, then bytes.
fn statement(disk: &Path, offset: u64) -> Vec<u8> {
    let disk = File::open(disk).unwrap();
    let mut length = [0; 8];
    disk.read_exact_at(&mut length, offset).unwrap();
    let mut bytes = vec![0; usize::try_from(u64::from_le_bytes(length)).unwrap()];
    disk.read_exact_at(&mut bytes, offset + 8).unwrap();
    bytes
}

/// Copies a file, with holes in place of zeros.
fn copy_sparse(from: &PathBuf, to: &Path) {
    let (mut from, to) = (File::open(from).unwrap(), File::create(to).unwrap());
    let (mut chunk, mut offset) = (vec![0; 256 * PAGE_SIZE], 0);
    to.set_len(from.metadata().unwrap().len()).unwrap();
    loop {
        let length = from.read(&mut chunk).unwrap();
        if length == 0 {
            break;
        }
        for (page, at) in chunk[..length].chunks(PAGE_SIZE).zip((offset..).step_by(PAGE_SIZE)) {
            if page.iter().any(|byte| *byte != 0) {
                to.write_all_at(page, at).unwrap();
            }
        }
        offset += length as u64;
    }
    (&to).flush().unwrap();
}
