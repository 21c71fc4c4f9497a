//! The blocks of a disk that differ between two snapshots, read from outside while QEMU continues.

use std::collections::VecDeque;
use std::fs::File;
use std::path::Path;

use retrovisor_guest::{BLOCK_SIZE, BlockRun, DiskChanges, MachineError, RUN_BLOCKS_MAX, RunContent};

use super::base::Base;
use crate::qemu::qcow2::disk::{Change, Content, Differences, Disk};

/// The changes of one disk. The snapshots' clusters and tables are never written while the snapshots exist, and QEMU
/// flushed the tables when it made them: they can be read at any time.
pub(in crate::qemu) struct OverlayChanges {
    name: String,
    differences: Differences<File>,
    base: Option<Base>,
    size_bytes: u64,
    /// Runs that were found and not returned yet.
    ready: VecDeque<(BlockRun, Vec<u8>)>,
}

impl OverlayChanges {
    /// Between the snapshots `at` and `since`; without the latter, between `at` and the initial contents. Reads the
    /// list of snapshots: no snapshot may be made or deleted meanwhile.
    pub(in crate::qemu) fn new(
        name: &str,
        path: &Path,
        base: Option<Base>,
        at: &str,
        since: Option<&str>,
    ) -> Result<Self, MachineError> {
        let open = || -> Result<_, String> {
            let file = File::open(path).map_err(|error| error.to_string())?;
            let disk = Disk::at(file, at)?;
            let size_bytes = disk.size_bytes();
            Ok((disk.differences(since)?, size_bytes))
        };
        let (differences, size_bytes) = open().map_err(|message| unreadable(name, message))?;
        Ok(Self { name: name.to_owned(), differences, base, size_bytes, ready: VecDeque::new() })
    }

    /// Reads clusters until there is a run, or none are left.
    fn find(&mut self) -> Result<bool, String> {
        while self.ready.is_empty() {
            let Some(change) = self.differences.next()? else { return Ok(false) };
            self.look(&change)?;
        }
        Ok(true)
    }

    /// The blocks of a cluster that differ: the guest writes blocks, QEMU copies the cluster around them.
    fn look(&mut self, change: &Change) -> Result<(), String> {
        let cluster_bytes = self.differences.disk.cluster_bytes();
        let offset = change.cluster * cluster_bytes as u64;
        let within = usize::try_from(self.size_bytes.saturating_sub(offset)).unwrap_or(usize::MAX);
        let within = within.min(cluster_bytes);
        let first = offset / BLOCK_SIZE as u64;
        let count = within.div_ceil(BLOCK_SIZE);
        let (new, old) = self.differences.disk.contents(change)?;
        let mut new = match new {
            Content::Backing => {
                let content = if self.base.is_some() { RunContent::Base } else { RunContent::Zero };
                self.ready.push_back((BlockRun { first, count: count as u64, content }, Vec::new()));
                return Ok(());
            }
            Content::Zero => {
                let run = BlockRun { first, count: count as u64, content: RunContent::Zero };
                self.ready.push_back((run, Vec::new()));
                return Ok(());
            }
            Content::Data(bytes) => bytes,
        };
        new[within..].fill(0);
        let old = match (old, &mut self.base) {
            (Content::Data(mut bytes), _) => {
                bytes[within..].fill(0);
                bytes
            }
            (Content::Backing, Some(base)) => {
                let mut bytes = vec![0; cluster_bytes];
                base.read(offset, &mut bytes[..within])?;
                bytes
            }
            (Content::Zero, _) | (Content::Backing, None) => vec![0; cluster_bytes],
        };
        let blocks = new.as_chunks::<BLOCK_SIZE>().0.iter().zip(old.as_chunks::<BLOCK_SIZE>().0);
        let mut run: Option<(BlockRun, Vec<u8>)> = None;
        for ((new, old), block) in blocks.zip(first..).take(count) {
            if new == old {
                self.ready.extend(run.take());
                continue;
            }
            let start = || (BlockRun { first: block, count: 0, content: RunContent::Data }, Vec::new());
            let (run, bytes) = run.get_or_insert_with(start);
            run.count += 1;
            bytes.extend_from_slice(new);
        }
        self.ready.extend(run);
        Ok(())
    }
}

impl DiskChanges for OverlayChanges {
    fn next_run(&mut self, bytes: &mut Vec<u8>) -> Result<Option<BlockRun>, MachineError> {
        let found = self.find().and_then(|more| {
            let first = if more { self.ready.pop_front() } else { None };
            let Some((mut run, first_bytes)) = first else { return Ok(None) };
            *bytes = first_bytes;
            // Consecutive blocks extend the run.
            while self.find()? {
                let fits = self.ready.front().is_some_and(|(next, _)| {
                    next.content == run.content
                        && next.first == run.first + run.count
                        && (run.content != RunContent::Data || run.count + next.count <= RUN_BLOCKS_MAX)
                });
                let Some((next, more)) = fits.then(|| self.ready.pop_front()).flatten() else { break };
                run.count += next.count;
                bytes.extend(more);
            }
            Ok(Some(run))
        });
        found.map_err(|message| unreadable(&self.name, message))
    }
}

fn unreadable(name: &str, message: String) -> MachineError {
    MachineError::Driver { doing: format!("reading the overlay of disk {name}"), message }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;

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

    fn follow(under: Under, cluster_bytes: usize, actions: &[DiskAction]) {
        let dir = tempfile::tempdir().unwrap();
        let path: PathBuf = dir.path().join("o.qcow2");
        let begin = make(dir.path(), under, cluster_bytes);
        let (mut now, mut snapshots) = (begin.clone(), Vec::<(String, Vec<u8>)>::new());
        for action in actions.iter().chain([&DiskAction::Snapshot]) {
            let io = |command: String| {
                run(dir.path(), "qemu-io", &["-fqcow2", "-c", &command, "-dunmap", "o.qcow2"])
            };
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
            for (other, from) in &snapshots {
                assert!(
                    apply(&path, from.clone(), &begin, tag, Some(other)) == *image,
                    "{tag} since {other}"
                );
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
                if let Ok(mut differences) = Disk::at(bytes, "b").and_then(|disk| disk.differences(Some("a")))
                {
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
}
