//! The possible contents of a disk after a power cut. The model guarantees less than file systems do: unsynced data may
//! be there or not, in any combination and in parts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::random::Random;
use super::trace::{Event, Inode};

const SECTOR: usize = 512;
/// A write or a name is not durable before it was synced; until then it has a number.
type At = usize;

#[derive(Clone)]
enum Change {
    Write { offset: u64, bytes: Vec<u8> },
    SetLen(u64),
}

#[derive(Clone)]
enum NameChange {
    Set(PathBuf, Node),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Node {
    File(Inode),
    Dir,
}

#[derive(Clone, Default)]
struct Contents {
    /// Durable.
    durable: Vec<u8>,
    /// Not durable yet: when they began, when the call returned, their effect.
    pending: Vec<(At, At, Change)>,
}

/// A disk with writes that are not durable yet.
#[derive(Clone, Default)]
pub(super) struct Disk {
    files: BTreeMap<Inode, Contents>,
    names: BTreeMap<PathBuf, Node>,
    pending_names: Vec<(At, NameChange)>,
    now: At,
}

/// The loss of writes that were not durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loss {
    /// Nothing is lost: the process was killed, the disk continues.
    Nothing,
    /// Everything is lost.
    Everything,
    /// Of the last write, this many bytes are there; of the others, all, or nothing.
    Torn { bytes: usize, others: bool },
    /// Random: writes whole, not at all, or some of their sectors; names there or not.
    Some { seed: u64 },
}

/// The files and directories of an image.
pub(super) type Image = BTreeMap<PathBuf, Option<Vec<u8>>>;

impl Disk {
    /// The next event happens.
    pub(super) fn apply(&mut self, event: &Event) {
        let at = self.now;
        self.now += 1;
        match event {
            Event::Write { inode, offset, bytes, done_at } => {
                let change = Change::Write { offset: *offset, bytes: bytes.clone() };
                self.files.entry(*inode).or_default().pending.push((at, *done_at, change));
            }
            Event::SetLen { inode, bytes, done_at } => {
                self.files.entry(*inode).or_default().pending.push((at, *done_at, Change::SetLen(*bytes)));
            }
            Event::Sync { inode, began } => {
                let file = self.files.entry(*inode).or_default();
                let (done, pending) = std::mem::take(&mut file.pending)
                    .into_iter()
                    .partition(|(_, done_at, _)| done_at <= began);
                file.pending = pending;
                let done: Vec<(At, At, Change)> = done;
                for (.., change) in done {
                    change.apply(&mut file.durable);
                }
            }
            Event::Create { path, inode } => self.name(NameChange::Set(path.clone(), Node::File(*inode))),
            Event::MakeDir { path } => self.name(NameChange::Set(path.clone(), Node::Dir)),
            Event::Rename { from, to } => self.name(NameChange::Rename(from.clone(), to.clone())),
            Event::Remove { path } => self.name(NameChange::Remove(path.clone())),
            Event::SyncDir { path, began } => {
                let (done, pending) = std::mem::take(&mut self.pending_names)
                    .into_iter()
                    .partition(|(at, change)| at < began && change.is_in(path));
                self.pending_names = pending;
                let done: Vec<(At, NameChange)> = done;
                for (_, change) in done {
                    change.apply(&mut self.names);
                }
            }
            Event::Mark(_) => (),
        }
    }

    fn name(&mut self, change: NameChange) {
        self.pending_names.push((self.now - 1, change));
    }

    /// Whether the last event is a write that is not durable, and its length.
    pub(super) fn last_write(&self) -> Option<usize> {
        let last = self.now.checked_sub(1)?;
        self.files.values().find_map(|file| match file.pending.last() {
            Some((at, _, Change::Write { bytes, .. })) if *at == last => Some(bytes.len()),
            _ => None,
        })
    }

    /// Whether anything is not durable.
    pub(super) fn is_settled(&self) -> bool {
        self.pending_names.is_empty() && self.files.values().all(|file| file.pending.is_empty())
    }

    /// The disk after a power cut.
    pub(super) fn image(&self, loss: Loss) -> Image {
        let mut random = Random::new(if let Loss::Some { seed } = loss { seed } else { 0 });
        let mut names = self.names.clone();
        for (_, change) in &self.pending_names {
            let there = match loss {
                Loss::Nothing => true,
                Loss::Everything => false,
                Loss::Torn { others, .. } => others,
                Loss::Some { .. } => random.one_in(2),
            };
            if there {
                change.apply(&mut names);
            }
        }
        let mut image = Image::new();
        for (path, node) in &names {
            // The contents of a directory that does not exist do not exist either.
            let here = path.ancestors().skip(1).filter(|dir| !dir.as_os_str().is_empty());
            if !here.into_iter().all(|dir| names.get(dir) == Some(&Node::Dir)) {
                continue;
            }
            let bytes = match node {
                Node::Dir => None,
                Node::File(inode) => Some(
                    self.files.get(inode).map(|file| self.bytes(file, loss, &mut random)).unwrap_or_default(),
                ),
            };
            image.insert(path.clone(), bytes);
        }
        image
    }

    fn bytes(&self, file: &Contents, loss: Loss, random: &mut Random) -> Vec<u8> {
        let mut bytes = file.durable.clone();
        // A length that is durable before the bytes: zeros, or old contents of the disk.
        let garbage = matches!(loss, Loss::Some { .. }) && random.one_in(3);
        for (at, _, change) in &file.pending {
            match (loss, change) {
                (Loss::Nothing, _) => change.apply(&mut bytes),
                (Loss::Everything, _) => (),
                (Loss::Torn { bytes: there, .. }, Change::Write { offset, bytes: new })
                    if at + 1 == self.now =>
                {
                    put(&mut bytes, *offset, &new[..there.min(new.len())]);
                }
                (Loss::Torn { others, .. }, _) => {
                    if others {
                        change.apply(&mut bytes);
                    }
                }
                (Loss::Some { .. }, Change::SetLen(_)) => {
                    if random.one_in(2) {
                        change.apply(&mut bytes);
                    }
                }
                (Loss::Some { .. }, Change::Write { offset, bytes: new }) => match random.below(4) {
                    0 => (),
                    1 => change.apply(&mut bytes),
                    2 => {
                        let mut there = *offset;
                        for sector in new.chunks(SECTOR) {
                            if random.one_in(2) {
                                put(&mut bytes, there, sector);
                            }
                            there += sector.len() as u64;
                        }
                    }
                    _ => {
                        let end = usize::try_from(*offset).unwrap() + new.len();
                        if bytes.len() < end {
                            bytes.resize(end, if garbage { 0xa5 } else { 0 });
                        }
                    }
                },
            }
        }
        bytes
    }
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Write { offset, bytes: new } => put(bytes, *offset, new),
            Self::SetLen(length) => bytes.resize(usize::try_from(*length).unwrap(), 0),
        }
    }
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<PathBuf, Node>) {
        match self {
            Self::Set(path, node) => {
                names.insert(path.clone(), *node);
            }
            Self::Rename(from, to) => {
                if let Some(node) = names.remove(from) {
                    names.insert(to.clone(), node);
                }
            }
            Self::Remove(path) => {
                names.remove(path);
            }
        }
    }

    /// Whether syncing the directory makes it durable. After renaming to another directory, that is the target.
    fn is_in(&self, dir: &Path) -> bool {
        let (Self::Set(path, _) | Self::Rename(_, path) | Self::Remove(path)) = self;
        path.parent() == Some(dir)
    }
}

fn put(bytes: &mut Vec<u8>, offset: u64, new: &[u8]) {
    let from = usize::try_from(offset).unwrap();
    if bytes.len() < from + new.len() {
        bytes.resize(from + new.len(), 0);
    }
    bytes[from..from + new.len()].copy_from_slice(new);
}

/// Writes an image into a directory, which must be empty.
pub(super) fn write_image(image: &Image, dir: &Path) {
    for (path, bytes) in image {
        match bytes {
            None => std::fs::create_dir(dir.join(path)).unwrap(),
            Some(bytes) => std::fs::write(dir.join(path), bytes).unwrap(),
        }
    }
}
