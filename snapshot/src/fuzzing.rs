//! The decoders of stored bytes, for the fuzzers in `fuzz/` and for the tests below. Each accepts any bytes and must
//! neither panic nor use memory without bound; accepted input must be the same after encoding and decoding.

use retrovisor_guest::{DiskState, MachineIdentity, PAGE_SIZE, VcpuRegisters};

use crate::catalogue::StoredSection;
use crate::content::ContentRef;
use crate::page_map::{self, PageMap};
use crate::store::pieces;
use crate::{content_list, pack, varint};

/// A decoder that takes any bytes.
pub type Target = fn(&[u8]);

/// The decoders, by the names of the fuzz targets.
pub const TARGETS: &[(&str, Target)] = &[
    ("content_list", content_list),
    ("frame", frame),
    ("machine_state", machine_state),
    ("pack_header", pack_header),
    ("page_map", page_map),
    ("varint", varint),
];

/// The first bytes of a pack.
pub fn pack_header(bytes: &[u8]) {
    pack::fuzz_header(bytes);
}

/// A frame of a pack: first the number of pages in the catalogue, then the frame; unchanged, and with a
/// header that is made to fit.
pub fn frame(bytes: &[u8]) {
    let Some((pages, frame)) = bytes.split_first() else { return };
    pack::fuzz_frame(usize::from(*pages), frame);
}

/// Numbers.
pub fn varint(bytes: &[u8]) {
    let mut rest = bytes;
    while let Some(number) = varint::take(&mut rest) {
        let mut again = Vec::new();
        varint::push(&mut again, number);
        assert_eq!(varint::take(&mut again.as_slice()), Some(number));
        assert_eq!(varint::zigzag(varint::unzigzag(number)), number);
    }
}

/// A list of contents, after its length (two bytes).
pub fn content_list(bytes: &[u8]) {
    let Some((length, list)) = bytes.split_first_chunk() else { return };
    let length = usize::from(u16::from_le_bytes(*length));
    let Some(list) = content_list::decode(list, length) else { return };
    assert_eq!(list.len(), length);
    let again = content_list::encode(list.iter().copied());
    assert_eq!(content_list::decode(&again, length), Some(list));
}

/// A full map as it is stored, after the number of frames (two bytes).
pub fn page_map(bytes: &[u8]) {
    let Some((pages, map)) = bytes.split_first_chunk() else { return };
    let pages = usize::from(u16::from_le_bytes(*pages));
    let Ok(encoded) = page_map::decompress(map, pages) else { return };
    let Some(map) = PageMap::decode(&encoded, pages) else { return };
    assert_eq!(map.iter().count(), pages);
    let again = PageMap::decode(&map.encode(), pages);
    assert!(again.is_some_and(|again| again.iter().eq(map.iter())));
}

/// The text and lists in the catalogue about a machine: registers, disks, identity, and the pieces of a section after
/// its length (eight bytes).
pub fn machine_state(bytes: &[u8]) {
    same::<Vec<VcpuRegisters>>(bytes);
    same::<Vec<DiskState>>(bytes);
    same::<MachineIdentity>(bytes);
    let Some((length, contents)) = bytes.split_first_chunk() else { return };
    let length_bytes = u64::from_le_bytes(*length);
    let section = StoredSection { format: "any/1".into(), length_bytes, contents: contents.to_vec() };
    // A long list of zeros is short, so few bytes can encode the longest possible section.
    if let Some(pieces) = pieces(&section) {
        assert_eq!(pieces.len() as u64, length_bytes.div_ceil(PAGE_SIZE as u64));
    }
}

fn same<T: serde::de::DeserializeOwned + serde::Serialize>(bytes: &[u8]) {
    let Ok(value) = serde_json::from_slice::<T>(bytes) else { return };
    let text = serde_json::to_string(&value).ok();
    let again = text.as_deref().and_then(|text| serde_json::from_str::<T>(text).ok());
    assert_eq!(again.and_then(|again| serde_json::to_string(&again).ok()), text);
}

/// Initial inputs, as the store writes them: the target's name, and an input to it.
#[must_use]
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let codes = (0..300_u64).map(|at| if at % 7 < 3 { at % 3 } else { 10 + at / 2 });
    let list: Vec<ContentRef> = codes.map(ContentRef::from_code).collect();
    let mut numbers = Vec::new();
    for shift in 0..64 {
        varint::push(&mut numbers, (1 << shift) | 5);
    }
    let mut map = PageMap::zero(list.len());
    for (index, content) in list.iter().enumerate() {
        map.set(index, *content);
    }
    let length = 300_u16.to_le_bytes();
    let with = |head: &[u8], rest: Vec<u8>| [head, &rest].concat();
    let encoded = content_list::encode(list.iter().copied());
    let mut seeds = vec![
        ("varint", numbers),
        ("content_list", with(&length, encoded.clone())),
        ("page_map", with(&length, page_map::compress(&map.encode()).unwrap_or_default())),
        ("pack_header", pack::seed_header().to_vec()),
        ("machine_state", with(&(300 * PAGE_SIZE as u64).to_le_bytes(), encoded)),
        ("machine_state", serde_json::to_vec(&vec![VcpuRegisters::default(); 2]).unwrap_or_default()),
    ];
    let identity = br#"{"name":"a","driver":"kvm","version":"1","accelerator":"kvm","vcpus":2,"layout":[{"gpa":0,"length_bytes":8192}]}"#;
    seeds.push(("machine_state", identity.to_vec()));
    seeds.extend(pack::seed_frames().into_iter().map(|(pages, frame)| ("frame", with(&[pages], frame))));
    seeds
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Changes some bytes and keeps most.
    fn mutate(bytes: &mut Vec<u8>, changes: &[(u8, prop::sample::Index, u8)]) {
        for (what, place, value) in changes {
            if bytes.is_empty() {
                return;
            }
            let at = place.index(bytes.len());
            match what {
                0 => bytes[at] ^= 1 << (value & 7),
                1 => bytes[at] = *value,
                2 => bytes.truncate(at),
                3 => bytes.insert(at, *value),
                4 => bytes.drain(at..(at + usize::from(*value % 16)).min(bytes.len())).for_each(drop),
                5 => bytes[at] = if value & 1 == 0 { 0xff } else { 0 },
                _ => {
                    let part = bytes[at..(at + usize::from(*value)).min(bytes.len())].to_vec();
                    bytes.splice(at..at, part);
                }
            }
        }
    }

    #[test]
    fn what_the_store_writes_is_accepted() {
        for (name, bytes) in seeds() {
            let (_, target) = TARGETS.iter().find(|(target, _)| *target == name).unwrap();
            target(&bytes);
        }
        for (name, _) in TARGETS {
            assert!(seeds().iter().any(|(seed, _)| seed == name), "{name} has no seed");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn changed_bytes_do_no_harm(
            seed: prop::sample::Index,
            changes in prop::collection::vec((0_u8..7, any::<prop::sample::Index>(), any::<u8>()), 1..12),
        ) {
            let seeds = seeds();
            let (name, bytes) = &seeds[seed.index(seeds.len())];
            let (_, target) = TARGETS.iter().find(|(target, _)| target == name).unwrap();
            let mut bytes = bytes.clone();
            mutate(&mut bytes, &changes);
            target(&bytes);
        }
    }
}
