use std::collections::HashMap;

use retrovisor_guest::PAGE_SIZE;

use super::compact::CompactReport;
use super::garbage::{Census, FrameUse, PackUse};
use crate::catalogue::{Moved, NewFrame};
use crate::content::ContentId;
use crate::error::{Error, Result};
use crate::key::Hash;
use crate::pack::{FRAME_PAGES, Frame, PackCopy, compressor, encode_frame};
use crate::store::Store;

/// Numbers of contents examined at once.
const WINDOW: u64 = 1 << 16;

/// Contents of a frame: number, place and hash.
type Contents = Vec<(ContentId, u32, Hash)>;

impl Store {
    /// Moves the live contents of a pack to a new one, and removes the pack. A pack in which something is damaged
    /// stays.
    pub(super) fn rewrite_pack(&self, old: u32, census: &Census, report: &mut CompactReport) -> Result<()> {
        // What is written from now on goes elsewhere; when the pack is being written to just now, it is left for the
        // next time.
        let (number, next) = {
            let mut content_writer = self.content_writer()?;
            content_writer.packs().close(old);
            if content_writer.packs().current() == Some(old) {
                return Ok(());
            }
            content_writer.packs().reserve()
        };
        let frames: Vec<FrameUse> = census.packs[&old].frames.iter().map(|at| census.frames[*at]).collect();
        // Frames may have come since the census.
        let known = census.packs[&old].bytes;
        if self.catalogue().packs()?.iter().any(|(pack, bytes)| *pack == old && *bytes != known) {
            return Ok(());
        }
        let alive: Vec<FrameUse> = frames.into_iter().filter(|frame| frame.live > 0).collect();
        let mut moved = Moved::default();
        let mut copy = None;
        if !alive.is_empty() {
            let target = copy.insert(self.packs.begin_copy(number)?);
            let contents = self.contents_by_frame(&census.packs[&old])?;
            match self.move_frames(&alive, contents, target, &mut moved) {
                Ok(()) => {
                    let bytes = target.finish()?;
                    moved.pack = Some((number, bytes));
                    report.packs_written += 1;
                    report.bytes_copied += bytes;
                }
                Err(Error::Damaged(damage)) => {
                    tracing::warn!(%damage, "a damaged pack is left as it is");
                    report.damaged_packs.push(old);
                    return target.discard();
                }
                Err(other) => {
                    target.discard()?;
                    return Err(other);
                }
            }
        }
        if let Err(error) = self.catalogue().replace_pack(old, &moved, next) {
            if let Some(target) = copy {
                target.discard()?;
            }
            return Err(error);
        }
        report.packs_removed += 1;
        // Readers that still look for it there look up the new place.
        self.packs.remove(old)
    }

    /// Copies whole frames, and the live pages of others.
    fn move_frames(
        &self,
        frames: &[FrameUse],
        mut contents: HashMap<i64, Contents>,
        target: &mut PackCopy,
        moved: &mut Moved,
    ) -> Result<()> {
        let mut tail: Vec<u8> = Vec::new();
        let mut waiting: Vec<(ContentId, u32)> = Vec::new();
        let mut compressor = compressor().map_err(|source| Error::Io {
            doing: "starting compression for",
            path: "packs".into(),
            source,
        })?;
        let mut flush = |tail: &mut Vec<u8>,
                         waiting: &mut Vec<(ContentId, u32)>,
                         target: &mut PackCopy,
                         moved: &mut Moved| {
            if tail.is_empty() {
                return Ok::<(), Error>(());
            }
            let frame = encode_frame(tail, &mut compressor);
            #[expect(clippy::cast_possible_truncation, reason = "little over 64 KiB, and few pages")]
            let new = NewFrame {
                pack: target.number(),
                stored_bytes: frame.len() as u32,
                pages: (tail.len() / PAGE_SIZE) as u32,
                offset: target.append(frame)?,
            };
            let at = moved.new_frames.len();
            moved.new_frames.push(new);
            moved.contents.extend(waiting.drain(..).map(|(id, slot)| (id, at, slot)));
            tail.clear();
            Ok(())
        };
        for frame in frames {
            let row = frame.row;
            let (bytes, pages) = self.packs.read_whole(row.pack, row.offset, row.stored_bytes, row.pages)?;
            let live_contents = contents.remove(&row.id).unwrap_or_default();
            self.check_all(frame, &live_contents, &pages)?;
            if frame.live_pages() == row.pages {
                moved.frames.push((row.id, target.append(bytes)?));
                continue;
            }
            for (id, slot, _) in live_contents {
                let Some(page) = pages.page(slot) else { continue };
                #[expect(clippy::cast_possible_truncation, reason = "below the pages of a frame")]
                waiting.push((id, (tail.len() / PAGE_SIZE) as u32));
                tail.extend_from_slice(page);
                if tail.len() == FRAME_PAGES * PAGE_SIZE {
                    flush(&mut tail, &mut waiting, target, moved)?;
                }
            }
        }
        flush(&mut tail, &mut waiting, target, moved)
    }

    /// Each page is checked: damaged bytes must not be given a new header.
    fn check_all(&self, frame: &FrameUse, live_contents: &Contents, pages: &Frame) -> Result<()> {
        for (id, slot, hash) in live_contents {
            let place = crate::catalogue::ContentPlace {
                id: *id,
                hash: *hash,
                pack: frame.row.pack,
                offset: frame.row.offset,
                stored_bytes: frame.row.stored_bytes,
                pages: frame.row.pages,
                slot: *slot,
            };
            self.check(&place, pages)?;
        }
        Ok(())
    }

    /// The contents of a pack, by frame.
    fn contents_by_frame(&self, pack: &PackUse) -> Result<HashMap<i64, Contents>> {
        let mut by_frame: HashMap<i64, Contents> = HashMap::new();
        let Some((mut first, last)) = pack.contents else { return Ok(by_frame) };
        // Numbers are in the order of frames: little of other packs is between them.
        while first <= last {
            let upto = ContentId(first.0.saturating_add(WINDOW).min(last.0));
            for (frame, id, slot, hash) in self.catalogue().contents_between(first, upto)? {
                by_frame.entry(frame).or_default().push((id, slot, hash));
            }
            first = ContentId(upto.0 + 1);
        }
        Ok(by_frame)
    }
}
