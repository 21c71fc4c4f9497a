#![expect(clippy::cast_possible_truncation, reason = "patterns of bytes")]

use std::collections::BTreeMap;
use std::path::Path;

use proptest::prelude::*;
use retrovisor_guest::{BLOCK_SIZE, BlockContent, BlockRun, DiskState, RunContent};

use super::config::DiskConfig;
use super::overlay::SharedOverlay;
use super::set::DiskSet;

const BLOCKS: usize = 24;
/// The last block is cut off.
const SIZE_BYTES: usize = BLOCKS * BLOCK_SIZE - 1536;

fn base_bytes() -> Vec<u8> {
    // Shorter than the disk, and with a block of zeros in it.
    (0..SIZE_BYTES * 2 / 3).map(|at| if at / BLOCK_SIZE == 3 { 0 } else { (at / 7 % 251) as u8 }).collect()
}

fn open(dir: &Path, with_base: bool) -> (DiskSet, SharedOverlay, Vec<u8>) {
    let base = with_base.then(|| dir.join("base.raw"));
    let mut bytes = Vec::new();
    if let Some(path) = &base {
        bytes = base_bytes();
        std::fs::write(path, &bytes).unwrap();
    }
    bytes.resize(SIZE_BYTES, 0);
    let config = DiskConfig {
        base,
        size_bytes: Some(SIZE_BYTES as u64),
        read_only: false,
        changes_dir: dir.to_owned(),
    };
    let (set, mut disks) = DiskSet::open(&[config]).unwrap();
    (set, disks.remove(0), bytes)
}

fn contents(disk: &SharedOverlay) -> Vec<u8> {
    let mut bytes = vec![0xaa; SIZE_BYTES];
    disk.lock().unwrap().read(0, &mut bytes).unwrap();
    bytes
}

/// What the changes make of `old`.
fn patched(
    set: &DiskSet,
    at: &DiskState,
    since: Option<&DiskState>,
    mut old: Vec<u8>,
    base: &[u8],
) -> Vec<u8> {
    let mut changes = set.changes(at, since).unwrap();
    let mut bytes = Vec::new();
    let mut next = 0;
    while let Some(run) = changes.next_run(&mut bytes).unwrap() {
        assert!(run.first >= next && run.count > 0);
        next = run.first + run.count;
        let start = run.first as usize * BLOCK_SIZE;
        let end = (next as usize * BLOCK_SIZE).min(SIZE_BYTES);
        match run.content {
            RunContent::Zero => old[start..end].fill(0),
            RunContent::Base => old[start..end].copy_from_slice(&base[start..end]),
            RunContent::Data => {
                assert_eq!(bytes.len(), run.count as usize * BLOCK_SIZE);
                assert!(bytes[end - start..].iter().all(|byte| *byte == 0), "past the disk's end");
                old[start..end].copy_from_slice(&bytes[..end - start]);
            }
        }
    }
    old
}

/// A state, read block by block.
fn read_blocks(set: &DiskSet, at: &DiskState) -> Vec<u8> {
    let mut blocks = set.blocks(at).unwrap();
    let ranges: Vec<_> = (0..BLOCKS as u64).map(|block| block..block + 1).rev().collect();
    let (mut image, mut bytes) = (vec![0xaa; BLOCKS * BLOCK_SIZE], Vec::new());
    let mut done = 0;
    while done < ranges.len() {
        for run in blocks.read(&ranges[done..], 1, &mut bytes).unwrap() {
            assert_eq!((run.first, run.count), (ranges[done].start, 1));
            let into = &mut image[run.first as usize * BLOCK_SIZE..][..BLOCK_SIZE];
            match run.content {
                RunContent::Zero => into.fill(0),
                RunContent::Data => into.copy_from_slice(&bytes),
                RunContent::Base => blocks.read_base(run.first, into.try_into().unwrap()).unwrap(),
            }
            done += 1;
        }
    }
    assert!(image[SIZE_BYTES..].iter().all(|byte| *byte == 0), "past the disk's end");
    image.truncate(SIZE_BYTES);
    image
}

#[derive(Clone, Debug)]
enum Step {
    Write { offset: usize, length: usize, seed: u8 },
    Zero { offset: usize, length: usize },
    Put { block: usize, kind: u8 },
    Capture,
    GoTo(usize),
    Release(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let range = || (0..SIZE_BYTES, 0..5 * BLOCK_SIZE);
    prop_oneof![
        6 => (range(), 0..4_u8).prop_map(|((offset, length), seed)| Step::Write { offset, length, seed }),
        2 => range().prop_map(|(offset, length)| Step::Zero { offset, length }),
        1 => (0..BLOCKS, 0..3_u8).prop_map(|(block, kind)| Step::Put { block, kind }),
        4 => Just(Step::Capture),
        2 => any::<usize>().prop_map(Step::GoTo),
        2 => any::<usize>().prop_map(Step::Release),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Compared with a copy of the whole disk for each state.
    #[test]
    fn a_disk_is_what_was_written_to_it_in_every_state(
        with_base: bool,
        steps in proptest::collection::vec(step(), 1..60),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let (set, disk, base) = open(dir.path(), with_base);
        let mut now = base.clone();
        let mut kept: Vec<(DiskState, Vec<u8>)> = Vec::new();
        for step in steps {
            match step {
                Step::Write { offset, length, seed } => {
                    let end = (offset + length).min(SIZE_BYTES);
                    // A seed of zero writes zeros.
                    let bytes: Vec<u8> = (offset..end).map(|at| seed.wrapping_mul((at % 241) as u8)).collect();
                    disk.lock().unwrap().write(offset as u64, &bytes).unwrap();
                    now[offset..end].copy_from_slice(&bytes);
                }
                Step::Zero { offset, length } => {
                    let end = (offset + length).min(SIZE_BYTES);
                    disk.lock().unwrap().zero(offset as u64, (end - offset) as u64).unwrap();
                    now[offset..end].fill(0);
                }
                Step::Put { block, kind } => {
                    let page = [7; BLOCK_SIZE];
                    let content = [BlockContent::Zero, BlockContent::Base, BlockContent::Data(&page)][usize::from(kind)];
                    set.write("d0", block as u64, &[content]).unwrap();
                    let start = block * BLOCK_SIZE;
                    let end = (start + BLOCK_SIZE).min(SIZE_BYTES);
                    match kind {
                        0 => now[start..end].fill(0),
                        1 => now[start..end].copy_from_slice(&base[start..end]),
                        _ => now[start..end].fill(7),
                    }
                }
                Step::Capture => {
                    let state = set.capture().remove(0);
                    kept.push((state, now.clone()));
                }
                Step::GoTo(which) if !kept.is_empty() => {
                    let (state, bytes) = &kept[which % kept.len()];
                    set.check(std::slice::from_ref(state)).unwrap();
                    set.apply(std::slice::from_ref(state)).unwrap();
                    now.clone_from(bytes);
                }
                Step::Release(which) if !kept.is_empty() => {
                    let (state, _) = kept.remove(which % kept.len());
                    set.release(std::slice::from_ref(&state));
                    prop_assert!(set.check(&[state]).is_err());
                }
                Step::GoTo(_) | Step::Release(_) => {}
            }
            prop_assert_eq!(&contents(&disk), &now);
        }
        let names: Vec<_> = kept.iter().map(|(state, _)| state.clone()).collect();
        prop_assert_eq!(set.kept(), names);
        for (at, new) in &kept {
            prop_assert_eq!(&patched(&set, at, None, base.clone(), &base), new);
            prop_assert_eq!(&read_blocks(&set, at), new);
            for (since, old) in &kept {
                prop_assert_eq!(&patched(&set, at, Some(since), old.clone(), &base), new);
            }
        }
        // Every slot that is taken is used: the states' together need at least as many different contents.
        set.release(&set.kept());
        let own: BTreeMap<usize, &[u8]> = now.chunks(BLOCK_SIZE).enumerate().collect();
        prop_assert!(disk.lock().unwrap().slots_taken() <= own.len());
        prop_assert_eq!(&contents(&disk), &now);
    }
}

#[test]
fn a_reader_reads_what_it_was_made_for_while_the_guest_writes_on_and_lets_go() {
    let dir = tempfile::tempdir().unwrap();
    let (set, disk, base) = open(dir.path(), true);
    let write = |seed: u8| disk.lock().unwrap().write(0, &vec![seed; 8 * BLOCK_SIZE]).unwrap();
    write(1);
    let first = set.capture().remove(0);
    write(2);
    let second = set.capture().remove(0);
    let mut changes = set.changes(&second, Some(&first)).unwrap();
    let mut blocks = set.blocks(&second).unwrap();
    write(3);
    set.release(&[first, second]);
    write(4);
    let mut bytes = Vec::new();
    let run = BlockRun { first: 0, count: 8, content: RunContent::Data };
    assert_eq!(blocks.read(&[0..8, 8..9], 8, &mut bytes).unwrap(), [run]);
    assert!(bytes.len() == 8 * BLOCK_SIZE && bytes.iter().all(|byte| *byte == 2));
    drop(blocks);
    let run = changes.next_run(&mut bytes).unwrap().unwrap();
    assert_eq!((run.first, run.count), (0, 8));
    assert!(bytes.iter().all(|byte| *byte == 2));
    drop(changes);
    assert_eq!(disk.lock().unwrap().slots_taken(), 16, "the second's and the current state's");
    // The next release frees what the reader had held.
    set.release(&set.capture());
    assert_eq!(disk.lock().unwrap().slots_taken(), 8);
    assert_ne!(contents(&disk), base);
}

#[test]
fn captures_and_releases_in_turn_take_no_more_room() {
    let dir = tempfile::tempdir().unwrap();
    let (set, disk, _) = open(dir.path(), true);
    let mut kept = std::collections::VecDeque::new();
    for round in 0..500_usize {
        disk.lock()
            .unwrap()
            .write((round % 20 * BLOCK_SIZE) as u64, &[round as u8 | 1; 2 * BLOCK_SIZE])
            .unwrap();
        kept.push_back(set.capture());
        if kept.len() > 4 {
            set.release(&kept.pop_front().unwrap());
        }
    }
    assert!(disk.lock().unwrap().slots_taken() <= BLOCKS + 2 * 5);
}

#[test]
fn blocks_outside_and_other_machines_states_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (set, disk, _) = open(dir.path(), true);
    let (other, _, _) = open(dir.path(), true);
    let state = other.capture().remove(0);
    assert!(set.check(std::slice::from_ref(&state)).is_err());
    assert!(set.changes(&state, None).is_err());
    assert!(set.blocks(&state).is_err());
    assert!(set.check(&[]).is_err());
    assert!(set.check(&[DiskState::unchanged("d0")]).is_ok());
    assert!(set.check(&[DiskState::unchanged("d1")]).is_err());
    assert!(set.write("d0", BLOCKS as u64, &[BlockContent::Zero]).is_err());
    assert!(set.write("d0", u64::MAX, &[BlockContent::Zero]).is_err());
    let mut disk = disk.lock().unwrap();
    assert!(disk.write(SIZE_BYTES as u64, &[1]).is_err());
    assert!(disk.write(u64::MAX, &[1]).is_err());
    assert!(disk.zero(1, u64::MAX).is_err());
    assert!(disk.read(SIZE_BYTES as u64 - 1, &mut [0; 2]).is_err());
}

#[test]
fn a_qcow2_image_and_an_odd_size_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    std::fs::write(&path, b"QFI\xfb and more").unwrap();
    let mut config =
        DiskConfig { base: Some(path), size_bytes: None, read_only: false, changes_dir: dir.path().into() };
    assert!(DiskSet::open(std::slice::from_ref(&config)).is_err());
    config.base = None;
    for size_bytes in [None, Some(0), Some(513), Some(u64::MAX)] {
        config.size_bytes = size_bytes;
        assert!(DiskSet::open(std::slice::from_ref(&config)).is_err(), "{size_bytes:?}");
    }
}
