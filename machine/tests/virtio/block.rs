use proptest::prelude::*;
use retrovisor_machine::kvm::VirtioModel;

use crate::driver::*;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;
const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPPORTED: u8 = 2;

const SIZE_BYTES: u64 = 1 << 20;
const DATA: u64 = BUFFERS + 0x1000;

fn read(bytes: u32) -> Buffer {
    Buffer { at: DATA, bytes, write: true }
}

fn write(bytes: u32) -> Buffer {
    Buffer { at: DATA, bytes, write: false }
}

fn start(dir: &tempfile::TempDir) -> Driver {
    Driver::start(VirtioModel::block(MEMORY_BYTES, &disk(dir.path(), SIZE_BYTES)).unwrap())
}

#[test]
fn what_is_written_is_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut driver = start(&dir);
    let mut capacity = [0; 8];
    driver.model.read(CONFIG, &mut capacity);
    assert_eq!(u64::from_le_bytes(capacity) * 512, SIZE_BYTES);
    let bytes: Vec<u8> = (0..6000_u32).map(|at| u8::try_from(at % 251).unwrap()).collect();
    driver.put(DATA, &bytes[..5120]);
    // In parts, some of them odd.
    let parts = [0..1, 1..600, 600..601, 601..5120].map(|part: std::ops::Range<u64>| Buffer {
        at: DATA + part.start,
        bytes: u32::try_from(part.end - part.start).unwrap(),
        write: false,
    });
    assert_eq!(driver.block(OUT, 3, &parts), (1, OK));
    assert_eq!(driver.block(FLUSH, 0, &[]), (1, OK));
    driver.put(DATA, &[0xee; 6144]);
    assert_eq!(driver.block(IN, 2, &[read(6144)]), (6145, OK));
    let got = driver.memory(DATA, 6144);
    assert!(got[..512] == [0; 512] && got[512..5632] == bytes[..5120] && got[5632..] == [0; 512]);
    assert_eq!(driver.block(GET_ID, 0, &[read(20)]), (21, OK));
    assert_eq!(driver.memory(DATA, 3), *b"d0\0");
}

#[test]
fn ranges_are_discarded_and_zeroed() {
    let dir = tempfile::tempdir().unwrap();
    let mut driver = start(&dir);
    driver.put(DATA, &vec![7; 0x10000]);
    assert_eq!(driver.block(OUT, 0, &[write(0x10000)]).1, OK);
    let range = |sector: u64, count: u32, flags: u32| {
        let mut bytes = sector.to_le_bytes().to_vec();
        bytes.extend(count.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes
    };
    driver.put(DATA, &[range(1, 20, 0), range(40, 8, 0)].concat());
    assert_eq!(driver.block(WRITE_ZEROES, 0, &[write(32)]).1, OK);
    driver.put(DATA, &range(64, 16, 0));
    assert_eq!(driver.block(DISCARD, 0, &[write(16)]).1, OK);
    assert_eq!(driver.block(IN, 0, &[read(0x10000)]).1, OK);
    let got = driver.memory(DATA, 0x10000);
    for (sector, bytes) in got.chunks(512).enumerate() {
        let zero = (1..21).contains(&sector) || (40..48).contains(&sector) || (64..80).contains(&sector);
        assert!(bytes.iter().all(|byte| *byte == if zero { 0 } else { 7 }), "{sector}");
    }
    for (bytes, status) in [
        (range(2047, 2, 0), IOERR),
        (range(u64::MAX, 1, 0), IOERR),
        (range(u64::MAX / 512, 1, 0), IOERR),
        (range(0, u32::MAX, 0), IOERR),
        (range(0, 1, 2), UNSUPPORTED),
        (range(0, 1, 0)[..15].to_vec(), IOERR),
        (range(0, 1, 0).repeat(5), IOERR),
        (Vec::new(), IOERR),
    ] {
        driver.put(DATA, &bytes);
        let data = write(u32::try_from(bytes.len()).unwrap());
        assert_eq!(driver.block(WRITE_ZEROES, 0, &[data]).1, status, "{bytes:?}");
    }
}

#[test]
fn what_cannot_be_is_refused_and_the_disk_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut driver = start(&dir);
    let end = SIZE_BYTES / 512;
    for (kind, sector, data, status) in [
        (IN, end, read(512), IOERR),
        (IN, end - 1, read(1024), IOERR),
        (IN, u64::MAX, read(512), IOERR),
        (IN, u64::MAX / 512, read(512), IOERR),
        (IN, 0, read(511), IOERR),
        (OUT, end - 1, write(1024), IOERR),
        (OUT, 0, write(100), IOERR),
        (77, 0, read(512), UNSUPPORTED),
        (IN, end - 1, read(512), OK),
    ] {
        assert_eq!(driver.block(kind, sector, &[data]).1, status, "{kind} {sector} {data:?}");
    }
}

#[test]
fn a_read_only_disk_is_only_read() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base");
    std::fs::write(&base, vec![9; 5000]).unwrap();
    let mut config = disk(dir.path(), SIZE_BYTES);
    (config.base, config.size_bytes, config.read_only) = (Some(base), None, true);
    let mut driver = Driver::start(VirtioModel::block(MEMORY_BYTES, &config).unwrap());
    driver.set(DEVICE_FEATURES_SEL, 0);
    assert_eq!(driver.get(DEVICE_FEATURES) & 1 << 5, 1 << 5);
    assert_eq!(driver.block(OUT, 0, &[write(512)]).1, IOERR);
    assert_eq!(driver.block(DISCARD, 0, &[write(16)]).1, IOERR);
    assert_eq!(driver.block(IN, 9, &[read(512)]).1, OK);
    // The base ends within the last sector.
    let got = driver.memory(DATA, 512);
    assert!(got[..392] == [9; 392] && got[392..] == [0; 120]);
}

#[test]
fn a_state_is_taken_in_the_middle_of_the_work_and_put_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut driver = start(&dir);
    let requests = 20;
    for number in 0..requests {
        let data = Buffer { at: DATA + 0x10000 + number * 0x8000, bytes: 0x8000, write: false };
        driver.put(data.at, &vec![u8::try_from(number).unwrap() + 1; 0x8000]);
        driver.offer_block(DATA + number * 32, OUT, number * 0x40, &[data]);
    }
    // This many bytes exceed one portion.
    assert!(driver.model.write_and_pause(NOTIFY, &[0; 4]));
    let first = driver.answers().len() as u64;
    assert!((1..requests).contains(&first), "{first}");
    let saved = driver.model.save().unwrap();

    // Another machine: the same memory, and a disk with what was written so far.
    let mut other = VirtioModel::block(MEMORY_BYTES, &disk(dir.path(), SIZE_BYTES)).unwrap();
    let memory = driver.memory(0, usize::try_from(MEMORY_BYTES).unwrap());
    assert!(other.write_memory(retrovisor_guest::Gpa(0), &memory));
    other.restore(&saved).unwrap();
    assert!(other.interrupt(), "the driver has not acknowledged it");
    let mut driver = driver.with_model(other);
    // Any access to the device, or the next entry into the guest, continues with the work.
    driver.set(NOTIFY, 0);
    assert_eq!(driver.answers().len() as u64, requests - first);
    assert!(driver.acknowledge());
    assert_eq!(driver.block(IN, 19 * 0x40, &[read(512)]).1, OK);
    assert_eq!(driver.memory(DATA, 512), [20; 512]);
}

#[test]
fn a_state_of_another_disk_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut driver = start(&dir);
    let saved = VirtioModel::block(MEMORY_BYTES, &disk(dir.path(), 4096)).unwrap().save().unwrap();
    assert!(driver.model.restore(&saved).is_err());
    let saved = VirtioModel::rng(MEMORY_BYTES).unwrap().save().unwrap();
    assert!(driver.model.restore(&saved).is_err());
    assert_eq!(driver.block(FLUSH, 0, &[]).1, OK, "it is as it was");
}

proptest! {
    #[test]
    fn bytes_that_are_no_state_are_refused_or_harmless(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut model = VirtioModel::rng(MEMORY_BYTES).unwrap();
        if model.restore(&bytes).is_ok() {
            model.write(NOTIFY, &[0; 4]);
        }
    }
}
