use proptest::prelude::*;
use retrovisor_guest::Gpa;
use retrovisor_machine::kvm::VirtioModel;

use crate::driver::*;

#[derive(Clone, Debug)]
enum Act {
    Register { offset: u64, value: u32 },
    Access { offset: u64, bytes: Vec<u8> },
    Read { offset: u64, length: usize },
    Memory { at: u64, bytes: Vec<u8> },
    Descriptor { at: u16, buffer: u64, bytes: u32, flags: u16, next: u16 },
    Offer { head: u16, count: u16 },
    SaveAndRestore,
    Start,
}

/// Numbers near meaningful ones.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..0x20_u64,
        0..MEMORY_BYTES + 0x1000,
        (0..64_u32, 0..16_u64).prop_map(|(shift, less)| (1_u64 << shift).wrapping_sub(less)),
        any::<u64>(),
    ]
}

fn act() -> impl Strategy<Value = Act> {
    #[expect(clippy::cast_possible_truncation, reason = "any numbers will do")]
    let small = || number().prop_map(|number| (number as u32, number as u16));
    let bytes = || proptest::collection::vec(any::<u8>(), 0..40);
    prop_oneof![
        4 => (0..0x50_u64, small()).prop_map(|(word, (value, _))| Act::Register { offset: word * 4, value }),
        1 => (0..0x1000_u64, bytes()).prop_map(|(offset, bytes)| Act::Access { offset, bytes }),
        1 => (0..0x1000_u64, 0..20_usize).prop_map(|(offset, length)| Act::Read { offset, length }),
        1 => (0x1000..0x4000_u64, bytes()).prop_map(|(at, bytes)| Act::Memory { at, bytes }),
        6 => (0..QUEUE_SIZE, number(), small(), 0..8_u16, 0..QUEUE_SIZE + 2).prop_map(
            |(at, buffer, (bytes, _), flags, next)| Act::Descriptor { at, buffer, bytes, flags, next }
        ),
        4 => (0..QUEUE_SIZE + 2, 0..QUEUE_SIZE + 2).prop_map(|(head, count)| Act::Offer { head, count }),
        1 => Just(Act::SaveAndRestore),
        2 => Just(Act::Start),
    ]
}

fn attack(model: VirtioModel, acts: &[Act]) {
    let mut driver = Driver::start(model);
    let mut offered = 0_u16;
    for act in acts {
        match act {
            Act::Register { offset, value } => driver.set(*offset, *value),
            Act::Access { offset, bytes } => driver.model.write(*offset, bytes),
            Act::Read { offset, length } => driver.model.read(*offset, &mut vec![0; *length]),
            Act::Memory { at, bytes } => {
                let _ = driver.model.write_memory(Gpa(*at), bytes);
            }
            Act::Descriptor { at, buffer, bytes, flags, next } => {
                let mut descriptor = buffer.to_le_bytes().to_vec();
                descriptor.extend(bytes.to_le_bytes());
                descriptor.extend(flags.to_le_bytes());
                descriptor.extend(next.to_le_bytes());
                driver.put(DESCRIPTORS + u64::from(*at) * 16, &descriptor);
            }
            Act::Offer { head, count } => {
                driver.put(AVAILABLE + 4 + u64::from(offered % QUEUE_SIZE) * 2, &head.to_le_bytes());
                offered = offered.wrapping_add(*count);
                driver.put(AVAILABLE + 2, &offered.to_le_bytes());
                driver.set(NOTIFY, 0);
            }
            Act::SaveAndRestore => {
                let saved = driver.model.save().unwrap();
                driver.model.restore(&saved).unwrap();
                assert_eq!(driver.model.save().unwrap(), saved);
            }
            Act::Start => {
                offered = 0;
                driver.put(AVAILABLE, &[0; 4]);
                driver = Driver::start(driver.model);
            }
        }
    }
    // Whatever happened before, a reset makes it work.
    driver.put(AVAILABLE, &[0; 4]);
    driver.put(USED, &[0; 4]);
    let mut driver = Driver::start(driver.model);
    driver.offer(&[
        Buffer { at: BUFFERS, bytes: 16, write: false },
        Buffer { at: BUFFERS + 16, bytes: 16, write: true },
    ]);
    driver.set(NOTIFY, 0);
    assert_eq!(driver.answers().len(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn nothing_that_a_driver_does_breaks_a_disk(acts in proptest::collection::vec(act(), 0..80)) {
        let dir = tempfile::tempdir().unwrap();
        attack(VirtioModel::block(MEMORY_BYTES, &disk(dir.path(), 1 << 20)).unwrap(), &acts);
    }

    #[test]
    fn nothing_that_a_driver_does_breaks_the_source_of_entropy(acts in proptest::collection::vec(act(), 0..80)) {
        attack(VirtioModel::rng(MEMORY_BYTES).unwrap(), &acts);
    }
}

#[test]
fn a_chain_that_bites_its_tail_ends() {
    let mut driver = Driver::start(VirtioModel::rng(MEMORY_BYTES).unwrap());
    // Each points at the next, the last at the first; all of them are one buffer.
    for at in 0..QUEUE_SIZE {
        driver.offer(&[Buffer { at: BUFFERS, bytes: 8, write: true }]);
        let mut link = driver.memory(DESCRIPTORS + u64::from(at) * 16, 16);
        link[12] |= 1;
        link[14..].copy_from_slice(&((at + 1) % QUEUE_SIZE).to_le_bytes());
        driver.put(DESCRIPTORS + u64::from(at) * 16, &link);
    }
    driver.set(NOTIFY, 0);
    assert_eq!(driver.answers(), vec![u32::from(QUEUE_SIZE) * 8; QUEUE_SIZE.into()]);
}

#[test]
fn a_table_of_many_buffers_is_not_walked_to_its_end() {
    let mut driver = Driver::start(VirtioModel::rng(MEMORY_BYTES).unwrap());
    let count = 20_000_u32;
    let mut table = Vec::new();
    for next in 1..=count {
        table.extend(BUFFERS.to_le_bytes());
        table.extend(1_u32.to_le_bytes());
        table.extend(3_u16.to_le_bytes());
        table.extend(u16::try_from(next % count).unwrap().to_le_bytes());
    }
    driver.put(BUFFERS + 0x1000, &table);
    driver.offer(&[Buffer { at: BUFFERS + 0x1000, bytes: count * 16, write: false }]);
    let mut descriptor = driver.memory(DESCRIPTORS, 16);
    descriptor[12] = 4;
    driver.put(DESCRIPTORS, &descriptor);
    driver.set(NOTIFY, 0);
    assert_eq!(driver.get(STATUS) & NEEDS_RESET, NEEDS_RESET);
}
