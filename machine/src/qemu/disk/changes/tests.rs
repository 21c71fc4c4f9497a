use std::path::PathBuf;
use std::process::Command;

use proptest::prelude::*;
use retrovisor_guest::DiskBlocks as _;

use super::*;
use crate::qemu::disk::blocks::OverlayBlocks;

const SIZE: usize = (3 << 20) + 5 * 512;

/// Actions of a guest on its disk, in sectors; the last is a snapshot.
#[derive(Clone, Debug)]
enum DiskAction {
    Write {
        sector: usize,
        sectors: usize,
        pattern: u8,
    },
    Zero {
        sector: usize,
        sectors: usize,
    },
    Discard {
        sector: usize,
        sectors: usize,
    },
    Snapshot,
    /// A rollback to one of the snapshots.
    Return(usize),
}

fn action() -> impl Strategy<Value = DiskAction> {
    let place = (0..SIZE / 512, prop_oneof![1_usize..9, 1_usize..900]);
    prop_oneof![
        4 => (place.clone(), any::<u8>()).prop_map(|((sector, sectors), pattern)| DiskAction::Write { sector, sectors, pattern }),
        1 => place.clone().prop_map(|(sector, sectors)| DiskAction::Zero { sector, sectors }),
        1 => place.prop_map(|(sector, sectors)| DiskAction::Discard { sector, sectors }),
        3 => Just(DiskAction::Snapshot),
        1 => any::<usize>().prop_map(DiskAction::Return),
    ]
}

/// The base of the overlay.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Under {
    Nothing,
    Raw,
    Compressed(&'static str),
}

fn run(dir: &Path, program: &str, arguments: &[&str]) -> bool {
    match Command::new(program).args(arguments).current_dir(dir).output() {
        Ok(output) => {
            assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
            true
        }
        Err(_) => false,
    }
}

fn installed() -> bool {
    let there = Command::new("qemu-io").arg("--version").output().is_ok();
    if !there {
        eprintln!("SKIPPED: qemu-img and qemu-io (package qemu-utils) are not installed");
    }
    there
}

/// Creates the image, and returns its contents.
fn make(dir: &Path, under: Under, cluster_bytes: usize) -> Vec<u8> {
    let mut begin = vec![0; SIZE];
    // Shorter than the disk, with a hole.
    let length = 2 << 20;
    for (at, byte) in begin[..length].iter_mut().enumerate().filter(|(at, _)| at >> 18 != 3) {
        *byte = u8::try_from((at >> 9) * 7 % 251).unwrap();
    }
    std::fs::write(dir.join("base.raw"), &begin[..length]).unwrap();
    let size = SIZE.to_string();
    let clusters = format!("cluster_size={cluster_bytes}");
    let mut arguments = vec!["create", "-fqcow2", "-o", &clusters];
    match under {
        Under::Nothing => begin.fill(0),
        Under::Raw => arguments.extend(["-bbase.raw", "-Fraw"]),
        Under::Compressed(method) => {
            let method = format!("compression_type={method}");
            run(dir, "qemu-img", &["convert", "-c", "-Oqcow2", "-o", &method, "base.raw", "base.qcow2"]);
            arguments.extend(["-bbase.qcow2", "-Fqcow2"]);
        }
    }
    arguments.extend(["o.qcow2", &size]);
    run(dir, "qemu-img", &arguments);
    begin
}

/// The image at a snapshot, from the image at another and the changes.
fn apply(path: &Path, mut image: Vec<u8>, begin: &[u8], at: &str, since: Option<&str>) -> Vec<u8> {
    let base = Base::of(path).unwrap().map(|(_, base)| base);
    let mut changes = OverlayChanges::new("d0", path, base, at, since).unwrap();
    let (mut bytes, mut last) = (Vec::new(), 0);
    while let Some(run) = changes.next_run(&mut bytes).unwrap() {
        assert!(run.first >= last && run.count > 0, "{run:?} after {last}");
        last = run.first + run.count;
        let start = usize::try_from(run.first).unwrap() * BLOCK_SIZE;
        let end = (start + usize::try_from(run.count).unwrap() * BLOCK_SIZE).min(SIZE);
        match run.content {
            RunContent::Zero => image[start..end].fill(0),
            RunContent::Base => image[start..end].copy_from_slice(&begin[start..end]),
            RunContent::Data => {
                assert!(run.count <= RUN_BLOCKS_MAX && bytes.len() as u64 == run.count * 4096);
                image[start..end].copy_from_slice(&bytes[..end - start]);
                assert!(bytes[end - start..].iter().all(|byte| *byte == 0));
            }
        }
    }
    image
}

/// The image at a snapshot, read block by block in ranges.
fn read_blocks(path: &Path, begin: &[u8], at: &str, length: u64) -> Vec<u8> {
    let mut blocks = OverlayBlocks::new("d0", path, at).unwrap();
    let end = (SIZE as u64).div_ceil(BLOCK_SIZE as u64);
    let starts = (0..end).step_by(usize::try_from(length).unwrap());
    let ranges: Vec<_> = starts.map(|first| first..(first + length).min(end)).collect();
    let (mut image, mut bytes) = (begin.to_vec(), Vec::new());
    image.resize(usize::try_from(end).unwrap() * BLOCK_SIZE, 0);
    let mut next = 0;
    while next < end {
        let rest = &ranges[usize::try_from(next / length).unwrap()..];
        let runs = blocks.read(rest, 1, &mut bytes).unwrap();
        let mut data = &bytes[..];
        for run in runs {
            assert_eq!(run.first, next);
            next += run.count;
            let first = usize::try_from(run.first).unwrap() * BLOCK_SIZE;
            let into = &mut image[first..usize::try_from(next).unwrap() * BLOCK_SIZE];
            match run.content {
                RunContent::Zero => into.fill(0),
                RunContent::Data => into.copy_from_slice(data.split_off(..into.len()).unwrap()),
                RunContent::Base => {
                    for (number, page) in (run.first..).zip(into.as_chunks_mut::<BLOCK_SIZE>().0) {
                        blocks.read_base(number, page).unwrap();
                    }
                }
            }
        }
        assert!(data.is_empty());
    }
    assert!(image[SIZE..].iter().all(|byte| *byte == 0));
    image.truncate(SIZE);
    image
}

fn follow(under: Under, cluster_bytes: usize, actions: &[DiskAction]) {
    let dir = tempfile::tempdir().unwrap();
    let path: PathBuf = dir.path().join("o.qcow2");
    let begin = make(dir.path(), under, cluster_bytes);
    let (mut now, mut snapshots) = (begin.clone(), Vec::<(String, Vec<u8>)>::new());
    for action in actions.iter().chain([&DiskAction::Snapshot]) {
        let io =
            |command: String| run(dir.path(), "qemu-io", &["-fqcow2", "-c", &command, "-dunmap", "o.qcow2"]);
        let clip = |sector: usize, sectors: usize| sector * 512..((sector + sectors) * 512).min(SIZE);
        match action {
            DiskAction::Write { sector, sectors, pattern } => {
                let range = clip(*sector, *sectors);
                io(format!("write -P {pattern} {} {}", range.start, range.len()));
                now[range].fill(*pattern);
            }
            DiskAction::Zero { sector, sectors } => {
                let range = clip(*sector, *sectors);
                io(format!("write -z {} {}", range.start, range.len()));
                now[range].fill(0);
            }
            DiskAction::Discard { sector, sectors } => {
                let range = clip(*sector, *sectors);
                io(format!("discard {} {}", range.start, range.len()));
                // The contents after a discard are QEMU's choice.
                run(dir.path(), "qemu-img", &["convert", "-Oraw", "o.qcow2", "now.raw"]);
                now = std::fs::read(dir.path().join("now.raw")).unwrap();
            }
            DiskAction::Snapshot => {
                let tag = format!("rv-{}", snapshots.len());
                run(dir.path(), "qemu-img", &["snapshot", "-c", &tag, "o.qcow2"]);
                snapshots.push((tag, now.clone()));
            }
            DiskAction::Return(number) => {
                if let Some((tag, image)) = snapshots.get(number % snapshots.len().max(1)) {
                    run(dir.path(), "qemu-img", &["snapshot", "-a", tag, "o.qcow2"]);
                    now.clone_from(image);
                }
            }
        }
    }
    for (tag, image) in &snapshots {
        let name = format!("snapshot.name={tag}");
        run(dir.path(), "qemu-img", &["convert", "-l", &name, "-Oraw", "o.qcow2", "converted.raw"]);
        assert!(std::fs::read(dir.path().join("converted.raw")).unwrap() == *image, "the model of {tag}");
        assert!(apply(&path, begin.clone(), &begin, tag, None) == *image, "{tag} from nothing");
        for length in [1, 16, 37] {
            assert!(read_blocks(&path, &begin, tag, length) == *image, "{tag} by {length} blocks");
        }
        for (other, from) in &snapshots {
            assert!(apply(&path, from.clone(), &begin, tag, Some(other)) == *image, "{tag} since {other}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 20, ..ProptestConfig::default() })]
    #[test]
    fn every_snapshot_is_read_as_qemu_reads_it(
        actions in prop::collection::vec(action(), 1..14),
        under in prop_oneof![Just(Under::Nothing), Just(Under::Raw), Just(Under::Compressed("zlib")), Just(Under::Compressed("zstd"))],
        cluster_bytes in prop_oneof![Just(4096_usize), Just(65536), Just(1 << 21)],
    ) {
        if installed() {
            follow(under, cluster_bytes, &actions);
        }
    }
}

#[test]
fn images_that_cannot_be_read_are_refused_with_the_reason() {
    if !installed() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let make = |name: &str, options: &str| {
        run(dir.path(), "qemu-img", &["create", "-fqcow2", "-o", options, name, "1M"]);
        if !options.starts_with("data") {
            run(dir.path(), "qemu-img", &["snapshot", "-c", "a", name]);
        }
        dir.path().join(name)
    };
    for (name, options, word) in [
        ("sub", "extended_l2=on,cluster_size=64k", "subclusters"),
        ("small", "cluster_size=512", "512 bytes"),
        ("fine", "cluster_size=64k", "no snapshot b"),
    ] {
        let tag = if name == "fine" { "b" } else { "a" };
        let error = OverlayChanges::new("d0", &make(name, options), None, tag, None).err().unwrap();
        assert!(error.to_string().contains(word), "{error}");
    }
    let path = make("data", "data_file=dir.raw");
    let error = OverlayChanges::new("d0", &path, None, "a", None).err();
    assert!(error.unwrap().to_string().contains("another file"));
}

/// A crash, or anyone who can write the file, may have left any contents.
#[test]
fn damaged_images_are_read_or_refused() {
    if !installed() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let begin = make(dir.path(), Under::Nothing, 4096);
    assert_eq!(begin.len(), SIZE);
    for command in ["write -P 7 4096 100000", "write -z 500000 90000"] {
        run(dir.path(), "qemu-io", &["-fqcow2", "-c", command, "o.qcow2"]);
    }
    run(dir.path(), "qemu-img", &["snapshot", "-c", "a", "o.qcow2"]);
    run(dir.path(), "qemu-io", &["-fqcow2", "-c", "write -P 9 0 9000", "o.qcow2"]);
    run(dir.path(), "qemu-img", &["snapshot", "-c", "b", "o.qcow2"]);
    let whole = std::fs::read(dir.path().join("o.qcow2")).unwrap();
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(2000));
    let damage = prop::collection::vec(
        (0..whole.len() / 8, prop_oneof![any::<u64>(), (0_u64..64).prop_map(|at| 1 << at)]),
        1..6,
    );
    runner
        .run(&(damage, 0..whole.len()), |(damage, cut)| {
            let mut bytes = whole.clone();
            for (word, bits) in damage {
                // Half of the changes are in the header and the tables.
                let at = if bits & 1 == 0 { word % 512 * 8 % 120 } else { word * 8 };
                for (byte, bits) in bytes[at..].iter_mut().zip(bits.to_be_bytes()) {
                    *byte ^= bits;
                }
            }
            if cut % 3 == 0 {
                bytes.truncate(cut);
            }
            if let Ok(mut differences) = Disk::at(bytes, "b").and_then(|disk| disk.differences(Some("a"))) {
                for _ in 0..2000 {
                    match differences.next() {
                        Ok(Some(change)) => drop(differences.disk.contents(&change)),
                        Ok(None) | Err(_) => break,
                    }
                }
            }
            Ok(())
        })
        .unwrap();
}
