//! A small symbol table that tests and fuzzers begin from.
#![allow(clippy::unwrap_used, reason = "what is built here is known")]

use super::DIGITS;
use crate::image::Image;

pub(crate) const VIRT: u64 = 0xffff_ffff_8a00_0000;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Layout {
    Before,
    After,
    OwnPlace,
    /// As `OwnPlace`, aligned to 4 bytes only.
    Packed,
}

/// Tables of 300 symbols: `Tsym<number>`, 16 bytes apart; the token 0x80 is "Tsym", and one name is 200 tokens long.
pub(crate) fn image(layout: Layout) -> Image {
    image_with(layout, VIRT, &[])
}

/// The same at an address, with other names (each behind its type letter) for some of the symbols.
pub(crate) fn image_with(layout: Layout, virt: u64, names: &[(u32, &str)]) -> Image {
    let count = 300_u32;
    let own_place = matches!(layout, Layout::OwnPlace | Layout::Packed);
    let alignment = if layout == Layout::Packed { 4 } else { 8 };
    let align = |bytes: &mut Vec<u8>| bytes.resize(bytes.len().next_multiple_of(alignment), 0);
    let mut bytes = vec![0; 4096 + alignment % 8];
    // A decoy: digits without tables.
    bytes.extend_from_slice(DIGITS);
    align(&mut bytes);
    let offsets = |bytes: &mut Vec<u8>| {
        for number in 0..count {
            let offset = match layout {
                _ if own_place => {
                    let own = u32::try_from(bytes.len()).unwrap();
                    (number * 16).wrapping_sub(own)
                }
                _ => (-1 - (number * 16).cast_signed()).cast_unsigned(),
            };
            bytes.extend(offset.to_le_bytes());
        }
        align(bytes);
        if !own_place {
            bytes.extend(virt.to_le_bytes());
        }
    };
    if layout == Layout::Before {
        offsets(&mut bytes);
    }
    bytes.extend(&u64::from(count).to_le_bytes()[..alignment]);
    let (names_at, mut markers) = (bytes.len(), Vec::new());
    for number in 0..count {
        if number % 256 == 0 {
            markers.extend(u32::try_from(bytes.len() - names_at).unwrap().to_le_bytes());
        }
        let mut name = vec![0x80];
        name.extend(format!("{number}").bytes());
        if let Some((_, other)) = names.iter().find(|(named, _)| *named == number) {
            name = other.bytes().collect();
        }
        if number == 299 {
            name.resize(200, b'x');
            bytes.extend([0xc8, 1]);
        } else {
            bytes.push(u8::try_from(name.len()).unwrap());
        }
        bytes.extend(name);
    }
    align(&mut bytes);
    bytes.extend(markers);
    align(&mut bytes);
    let (tokens_at, mut index) = (bytes.len(), Vec::new());
    for token in 0..=255_u8 {
        index.extend(u16::try_from(bytes.len() - tokens_at).unwrap().to_le_bytes());
        match token {
            0x80 => bytes.extend(b"Tsym"),
            b'0'..=b'9' | b'A'..=b'Z' | b'_' | b'a'..=b'z' => bytes.push(token),
            _ => (),
        }
        bytes.push(0);
    }
    align(&mut bytes);
    bytes.extend(index);
    align(&mut bytes);
    if layout != Layout::Before {
        offsets(&mut bytes);
    }
    bytes.resize(bytes.len() + 4096, 0);
    Image { virt, bytes }
}
