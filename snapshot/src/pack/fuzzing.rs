//! The decoders of packs, for [`crate::fuzzing`].

use retrovisor_guest::PAGE_SIZE;

use super::format::{
    FRAME_HEADER, FRAME_MAX, PACK_HEADER, StoreId, check_pack_header, compressor, decode_frame, encode_frame,
    pack_header, seal,
};

const STORE: StoreId = [7; 16];
const PACK: u32 = 3;
const OFFSET: u64 = 64;

/// The first bytes of a pack.
pub(crate) fn fuzz_header(bytes: &[u8]) {
    let Some(header) = bytes.first_chunk::<PACK_HEADER>() else { return };
    if check_pack_header(header, &STORE, PACK).is_none() {
        assert_eq!(*header, pack_header(&STORE, PACK));
    }
}

/// A frame as it is, and with a header that fits.
pub(crate) fn fuzz_frame(pages: usize, frame: &[u8]) {
    let whole = |raw: Result<Vec<u8>, &str>| {
        if let Ok(raw) = raw {
            assert_eq!(raw.len(), pages * PAGE_SIZE);
        }
    };
    whole(decode_frame(frame, pages, &STORE, PACK, OFFSET));
    if !(FRAME_HEADER..=FRAME_MAX).contains(&frame.len()) {
        return;
    }
    let mut fitting = frame.to_vec();
    fitting[..4].copy_from_slice(b"RVFR");
    fitting[4] &= 1;
    #[expect(clippy::cast_possible_truncation, reason = "a byte says how many pages")]
    {
        fitting[5] = pages as u8;
        fitting[8..12].copy_from_slice(&((frame.len() - FRAME_HEADER) as u32).to_le_bytes());
    }
    seal(&mut fitting, &STORE, PACK, OFFSET);
    whole(decode_frame(&fitting, pages, &STORE, PACK, OFFSET));
}

/// A header as it is written.
pub(crate) fn seed_header() -> [u8; PACK_HEADER] {
    pack_header(&STORE, PACK)
}

/// Frames as they are written, with their numbers of pages.
pub(crate) fn seed_frames() -> Vec<(u8, Vec<u8>)> {
    let mut seeds = Vec::new();
    let Ok(mut compressor) = compressor() else { return seeds };
    for pages in [1_u8, 2, 4] {
        let length = usize::from(pages) * PAGE_SIZE;
        let soft =
            (0..length).map(|at| if at % 3 == 0 { b'a' } else { b"0123456789"[at / 100 % 10] }).collect();
        let hard: Vec<u8> =
            (0..length / 32).flat_map(|at| *blake3::hash(&at.to_le_bytes()).as_bytes()).collect();
        for raw in [soft, hard] {
            let mut frame = encode_frame(&raw, &mut compressor);
            seal(&mut frame, &STORE, PACK, OFFSET);
            seeds.push((pages, frame));
        }
    }
    seeds
}
