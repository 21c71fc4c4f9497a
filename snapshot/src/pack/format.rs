use std::cell::RefCell;

use retrovisor_guest::PAGE_SIZE;

/// Pages in the frames written here: 16 KiB compress as well as 64 KiB do, and one page is read at a third of the cost
/// (measured in `docs/format.md`).
pub(crate) const FRAME_PAGES: usize = 4;
/// Pages in a frame at most, for reading.
const FRAME_PAGES_MAX: usize = 16;
/// Bytes before the first frame.
pub(super) const PACK_HEADER: usize = 64;
/// Bytes before a frame's payload.
pub(super) const FRAME_HEADER: usize = 24;
/// Longest frame: stored without compression.
pub(super) const FRAME_MAX: usize = FRAME_HEADER + FRAME_PAGES_MAX * PAGE_SIZE;
/// The version of the pack format.
const VERSION: u32 = 1;
/// Compression level: see docs/format.md for what was measured.
const LEVEL: i32 = 1;

const PACK_MAGIC: &[u8; 8] = b"RVPACK\x1a\n";
const FRAME_MAGIC: &[u8; 4] = b"RVFR";
const RAW: u8 = 0;
const ZSTD: u8 = 1;

/// Which store.
pub(crate) type StoreId = [u8; 16];

/// The first bytes of a pack.
pub(super) fn pack_header(store: &StoreId, number: u32) -> [u8; PACK_HEADER] {
    let mut header = [0; PACK_HEADER];
    header[..8].copy_from_slice(PACK_MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[12..16].copy_from_slice(&number.to_le_bytes());
    header[16..32].copy_from_slice(store);
    let sum = checksum(&[&header[..56]]);
    header[56..].copy_from_slice(&sum);
    header
}

/// An error if the first bytes of a pack are invalid.
pub(super) fn check_pack_header(header: &[u8; PACK_HEADER], store: &StoreId, number: u32) -> Option<String> {
    let version = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
    if *header == pack_header(store, number) {
        None
    } else if &header[..8] != PACK_MAGIC {
        Some("the file is not a pack".into())
    } else if header[56..] != checksum(&[&header[..56]]) {
        Some("the header of the pack is damaged".into())
    } else if version != VERSION {
        Some(format!("the pack has version {version}, this program knows {VERSION}"))
    } else {
        Some("the pack belongs to another store, or has another pack's name".into())
    }
}

/// A frame of whole pages, complete except for its place, which [`seal`] adds.
pub(crate) fn encode_frame(pages: &[u8], compressor: &mut zstd::bulk::Compressor<'_>) -> Vec<u8> {
    debug_assert!(
        pages.len().is_multiple_of(PAGE_SIZE) && (1..=FRAME_PAGES_MAX).contains(&(pages.len() / PAGE_SIZE))
    );
    let mut frame = vec![0; FRAME_HEADER + pages.len()];
    // A payload that compression does not make smaller is stored without compression.
    let space = FRAME_HEADER..FRAME_HEADER + pages.len() - 1;
    let (codec, length) = if let Ok(length) = compressor.compress_to_buffer(pages, &mut frame[space]) {
        (ZSTD, length)
    } else {
        frame[FRAME_HEADER..FRAME_HEADER + pages.len()].copy_from_slice(pages);
        (RAW, pages.len())
    };
    frame.truncate(FRAME_HEADER + length);
    frame[..4].copy_from_slice(FRAME_MAGIC);
    frame[4] = codec;
    #[expect(clippy::cast_possible_truncation, reason = "at most 16 pages and 64 KiB")]
    {
        frame[5] = (pages.len() / PAGE_SIZE) as u8;
        frame[8..12].copy_from_slice(&(length as u32).to_le_bytes());
    }
    frame
}

/// The compressor of frames.
pub(crate) fn compressor() -> std::io::Result<zstd::bulk::Compressor<'static>> {
    zstd::bulk::Compressor::new(LEVEL)
}

/// Includes the frame's place in its hash, so that it is not accepted at another place.
pub(super) fn seal(frame: &mut [u8], store: &StoreId, pack: u32, offset: u64) {
    let sum = frame_checksum(frame, store, pack, offset);
    frame[16..FRAME_HEADER].copy_from_slice(&sum);
}

/// The length and the pages of the frame that begins with these bytes, if one does.
pub(super) fn frame_shape(
    header: &[u8; FRAME_HEADER],
    store: &StoreId,
    pack: u32,
    offset: u64,
) -> Option<(u32, u32)> {
    let length = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
    let stored_bytes = length.checked_add(u32::try_from(FRAME_HEADER).ok()?)?;
    let fits = &header[..4] == FRAME_MAGIC
        && header[16..] == frame_checksum(header, store, pack, offset)
        && stored_bytes as usize <= FRAME_MAX;
    fits.then_some((stored_bytes, u32::from(header[5])))
}

/// The pages of a frame, or an error. They are unverified until each is hashed.
pub(super) fn decode_frame(
    frame: &[u8],
    pages: usize,
    store: &StoreId,
    pack: u32,
    offset: u64,
) -> Result<Vec<u8>, &'static str> {
    if frame.len() < FRAME_HEADER || &frame[..4] != FRAME_MAGIC {
        return Err("there is no frame here");
    }
    if frame[16..FRAME_HEADER] != frame_checksum(frame, store, pack, offset) {
        return Err("the frame's header is damaged");
    }
    let payload = &frame[FRAME_HEADER..];
    let length = u32::from_le_bytes([frame[8], frame[9], frame[10], frame[11]]);
    if usize::from(frame[5]) != pages || length as usize != payload.len() {
        return Err("the frame is not the one in the catalogue");
    }
    let whole = pages * PAGE_SIZE;
    let raw = match frame[4] {
        RAW => payload.to_vec(),
        ZSTD => decompress(payload, whole).ok_or("the frame cannot be decompressed")?,
        _ => return Err("the frame is compressed in a way this program does not know"),
    };
    if raw.len() == whole { Ok(raw) } else { Err("the frame is too short") }
}

/// Decompresses at most `length_max` bytes, with a context that each thread keeps: creating one takes as long as
/// decompressing a frame.
fn decompress(payload: &[u8], length_max: usize) -> Option<Vec<u8>> {
    thread_local! {
        static CONTEXT: RefCell<Option<zstd::bulk::Decompressor<'static>>> = const { RefCell::new(None) };
    }
    CONTEXT.with_borrow_mut(|context| {
        let context = match context {
            Some(context) => context,
            none => none.insert(zstd::bulk::Decompressor::new().ok()?),
        };
        context.decompress(payload, length_max).ok()
    })
}

fn frame_checksum(frame: &[u8], store: &StoreId, pack: u32, offset: u64) -> [u8; 8] {
    checksum(&[&frame[..16], store, &pack.to_le_bytes(), &offset.to_le_bytes()])
}

fn checksum(parts: &[&[u8]]) -> [u8; 8] {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(part);
    }
    let mut sum = [0; 8];
    sum.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    sum
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STORE: StoreId = [7; 16];

    fn frame(pages: &[u8]) -> Vec<u8> {
        let mut frame = encode_frame(pages, &mut compressor().unwrap());
        seal(&mut frame, &STORE, 3, 4096);
        frame
    }

    #[test]
    fn frames_come_back_compressed_or_not() {
        let soft = vec![b'a'; 3 * PAGE_SIZE];
        let hard: Vec<u8> =
            (0..2 * PAGE_SIZE / 32).flat_map(|at| *blake3::hash(&at.to_le_bytes()).as_bytes()).collect();
        assert!(frame(&soft).len() < 200);
        assert_eq!(frame(&hard).len(), hard.len() + FRAME_HEADER);
        assert_eq!(decode_frame(&frame(&soft), 3, &STORE, 3, 4096), Ok(soft.clone()));
        assert_eq!(decode_frame(&frame(&hard), 2, &STORE, 3, 4096), Ok(hard));
        assert!(decode_frame(&frame(&soft), 2, &STORE, 3, 4096).is_err());
        assert!(decode_frame(&frame(&soft), 3, &STORE, 3, 4097).is_err());
        assert!(decode_frame(&frame(&soft), 3, &STORE, 4, 4096).is_err());
    }

    #[test]
    fn a_pack_of_another_store_is_detected() {
        let header = pack_header(&STORE, 1);
        assert_eq!(check_pack_header(&header, &STORE, 1), None);
        assert!(check_pack_header(&header, &[8; 16], 1).unwrap().contains("another store"));
        let mut torn = header;
        torn[20] ^= 1;
        assert!(check_pack_header(&torn, &STORE, 1).unwrap().contains("damaged"));
        assert!(check_pack_header(&[0; PACK_HEADER], &STORE, 1).unwrap().contains("not a pack"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(mut bytes in prop::collection::vec(any::<u8>(), 0..200), pages in 1_usize..17, zstd: bool) {
            if bytes.len() >= FRAME_HEADER {
                bytes[..4].copy_from_slice(FRAME_MAGIC);
                bytes[4] = u8::from(zstd);
                bytes[5] = u8::try_from(pages).unwrap();
                let length = u32::try_from(bytes.len() - FRAME_HEADER).unwrap();
                bytes[8..12].copy_from_slice(&length.to_le_bytes());
                seal(&mut bytes, &STORE, 0, 0);
            }
            if let Ok(raw) = decode_frame(&bytes, pages, &STORE, 0, 0) {
                prop_assert_eq!(raw.len(), pages * PAGE_SIZE);
            }
        }
    }
}
