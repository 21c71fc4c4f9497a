//! The kernel's symbol table in the form of kallsyms: found by its structure, in any layout since 4.6.

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod sample;

use crate::{
    image::{Image, ImageRange, KERNEL_MAP},
    symbols::Symbols,
};

/// Where kallsyms' tables begin in the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tables {
    /// `kallsyms_num_syms`; the names follow at the next multiple of the alignment.
    pub(crate) count_at: usize,
    /// `kallsyms_token_table`.
    pub(crate) tokens_at: usize,
    /// `kallsyms_token_index`.
    pub(crate) index_at: usize,
    /// Alignment of the tables: 8 bytes, and 4 since 7.0.
    pub(crate) align: usize,
}

/// The parts of an image that determine its symbols: offsets in it, and lengths, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extents {
    /// From the number of symbols to the end of the tokens' index; nothing in it is an address.
    pub(crate) tables: (usize, usize),
    /// The symbols' offsets.
    pub(crate) offsets: (usize, usize),
    /// Where the base address of the offsets is stored, if there is one: it moves with the kernel.
    pub(crate) base_at: Option<usize>,
    /// Whether exactly the symbols in the kernel's half of the address space move with the kernel.
    pub(crate) slides: bool,
}

/// The tokens 0x30 to 0x39 represent themselves in every kernel.
const DIGITS: &[u8] = b"0\x001\x002\x003\x004\x005\x006\x007\x008\x009\x00";
/// Bound on the distance from the names to the tokens.
const NAMES_BYTES_MAX: usize = 32 << 20;
/// Bound on the bytes that a search walks through in false tables.
const WALK_BYTES_MAX: usize = 64 << 20;
/// Bound on all expanded names: a hostile table could expand to gigabytes. Real ones have 4 MiB.
const TEXT_BYTES_MAX: usize = 64 << 20;
/// Accepted numbers of symbols. With a single marker, which is zero, any bytes would be accepted as a table.
const SYMBOLS: std::ops::RangeInclusive<u32> = NAMES_PER_MARKER + 1..=Symbols::COUNT_MAX;
const NAMES_PER_MARKER: u32 = 256;

impl Tables {
    /// Finds the tables by their structure. Bytes that only resemble them are skipped.
    pub(crate) fn scan(image: &Image) -> Option<Self> {
        let digits = memchr::memmem::find_iter(&image.bytes, DIGITS);
        digits.into_iter().find_map(|digits_at| Self::around(image, digits_at))
    }

    /// The tables around a place where the ten digits are.
    fn around(image: &Image, digits_at: usize) -> Option<Self> {
        let end = after_strings(&image.bytes, digits_at, 256 - 0x30)?;
        // At some positions both alignments are possible.
        let places: Vec<_> = [8, 4]
            .into_iter()
            .filter_map(|align| {
                let index_at = end.next_multiple_of(align);
                let tokens_at = digits_at.checked_sub(image.u16(index_at + 2 * 0x30)?.into())?;
                let fits = TokenIndex { image, tokens_at, index_at }.is_cumulative();
                fits.then_some((align, tokens_at, index_at))
            })
            .collect();
        let (_, last, _) = *places.first()?;
        let mut budget = WALK_BYTES_MAX;
        let mut candidates = (last.saturating_sub(NAMES_BYTES_MAX) & !7..last & !3).step_by(4).rev();
        candidates.find_map(|count_at| {
            let mut fits = |(align, tokens_at): (usize, usize)| {
                count_at.is_multiple_of(align)
                    && count_in(image, count_at, align).is_some_and(|count| {
                        names_agree_with_markers(image, (count_at, align), count, tokens_at, &mut budget)
                    })
            };
            let place = places.iter().find(|(align, tokens_at, _)| fits((*align, *tokens_at)));
            place.map(|(align, tokens_at, index_at)| Self {
                count_at,
                tokens_at: *tokens_at,
                index_at: *index_at,
                align: *align,
            })
        })
    }

    /// Checks tables at places from another source (VMCOREINFO), and determines their alignment.
    pub(crate) fn check(count_at: usize, tokens_at: usize, index_at: usize, image: &Image) -> Option<Self> {
        let count = count_in(image, count_at, 4)?;
        if !(TokenIndex { image, tokens_at, index_at }).is_cumulative() {
            return None;
        }
        let agree = |align: &usize| {
            names_agree_with_markers(image, (count_at, *align), count, tokens_at, &mut WALK_BYTES_MAX.clone())
        };
        let align = [8, 4].into_iter().find(agree)?;
        Some(Self { count_at, tokens_at, index_at, align })
    }

    /// Expands all names and computes all addresses.
    pub(crate) fn read(&self, image: &Image, range: &ImageRange) -> Option<(Symbols, Extents)> {
        let count = image.u32(self.count_at)?;
        let offsets_bytes = usize::try_from(count).ok()?.checked_mul(4)?.next_multiple_of(self.align);
        let after = (self.index_at + 512).next_multiple_of(self.align);
        let is_base = |at: &usize| image.u64(*at).is_some_and(|base| range.contains(base));
        let before_base = self.count_at.checked_sub(8);
        // 4.6: offsets, relative_base, num_syms… · 6.4: …token_index, offsets, relative_base.
        let mut layouts = Vec::new();
        if let Some((at, base_at)) =
            before_base.filter(is_base).and_then(|at| Some((at.checked_sub(offsets_bytes)?, at)))
        {
            layouts.push((at, Some(base_at)));
        }
        if let Some(base_at) = Some(after + offsets_bytes).filter(is_base) {
            layouts.push((after, Some(base_at)));
        }
        // 7.0: every offset is relative to its own address.
        layouts.push((after, None));
        layouts.extend(self.count_at.checked_sub(offsets_bytes).map(|at| (at, None)));
        layouts.into_iter().find_map(|(offsets_at, base_at)| {
            let (addresses, slides) =
                addresses(image, offsets_at, count, base_at.and_then(|at| image.u64(at)))?;
            let within = addresses.iter().filter(|address| range.contains(**address)).count();
            (within * 100 / addresses.len().max(1) >= 80).then_some(())?;
            let symbols = self.expand(image, count, &addresses)?;
            let offsets = (offsets_at, count as usize * 4);
            let tables = (self.count_at, (self.index_at + 512).checked_sub(self.count_at)?);
            Some((symbols, Extents { tables, offsets, base_at, slides }))
        })
    }

    fn expand(&self, image: &Image, count: u32, addresses: &[u64]) -> Option<Symbols> {
        let tokens = TokenIndex { image, tokens_at: self.tokens_at, index_at: self.index_at }.tokens()?;
        let (mut text, mut ends) =
            (Vec::with_capacity(addresses.len() * 24), Vec::with_capacity(addresses.len()));
        let mut at = self.count_at + self.align;
        for _ in 0..count {
            let (length, first) = name_length(&image.bytes, at)?;
            for token in image.bytes.get(first..first + length)? {
                text.extend_from_slice(tokens[usize::from(*token)]);
            }
            if text.len() > TEXT_BYTES_MAX {
                return None;
            }
            ends.push(text.len());
            at = first + length;
        }
        let starts = std::iter::once(0).chain(ends.iter().copied());
        let names = starts.zip(&ends).map(|(start, end)| &text[start..*end]);
        let all = names.zip(addresses).filter_map(|(name, address)| {
            let (kind, name) = name.split_first()?;
            Some((*address, *kind, name))
        });
        Some(Symbols::new(all))
    }
}

/// Converts offsets to addresses, and returns whether exactly those in the kernel's half move with the kernel. With a
/// base and mostly negative offsets (`ABSOLUTE_PERCPU`), negative ones count down from the base and the others are
/// absolute.
fn addresses(image: &Image, offsets_at: usize, count: u32, base: Option<u64>) -> Option<(Vec<u64>, bool)> {
    let bytes = image.bytes.get(offsets_at..offsets_at + count as usize * 4)?;
    let offsets: Vec<u32> = bytes.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
    let of_kernel = |address: &u64| *address >= KERNEL_MAP;
    let Some(base) = base else {
        let own = (image.virt + offsets_at as u64..).step_by(4);
        let addresses: Vec<_> =
            own.zip(&offsets).map(|(own, offset)| own.wrapping_add(extend(*offset))).collect();
        let slides = addresses.iter().all(of_kernel);
        return Some((addresses, slides));
    };
    let negative = offsets.iter().filter(|offset| offset.cast_signed() < 0).count();
    let percpu_absolute = negative * 2 > offsets.len();
    let address = |offset: &u32| match offset.cast_signed() {
        0.. if percpu_absolute => u64::from(*offset),
        _ if percpu_absolute => base.wrapping_sub(1).wrapping_sub(extend(*offset)),
        _ => base.wrapping_add(u64::from(*offset)),
    };
    let addresses: Vec<_> = offsets.iter().map(address).collect();
    let mut moving =
        offsets.iter().zip(&addresses).filter(|(offset, _)| !percpu_absolute || offset.cast_signed() < 0);
    let slides = moving.all(|(_, address)| of_kernel(address));
    Some((addresses, slides))
}

/// The number of symbols at an offset, if it is in the accepted range; in a field of 8 bytes the upper ones are
/// padding.
fn count_in(image: &Image, at: usize, align: usize) -> Option<u32> {
    let padded = align == 4 || image.u32(at + 4) == Some(0);
    image.u32(at).filter(|count| padded && SYMBOLS.contains(count))
}

fn extend(offset: u32) -> u64 {
    i64::from(offset.cast_signed()).cast_unsigned()
}

/// Walks the `count` names that follow the count; the markers behind them must contain the offset of every 256th.
fn names_agree_with_markers(
    image: &Image,
    (count_at, align): (usize, usize),
    count: u32,
    limit: usize,
    budget: &mut usize,
) -> bool {
    let names_at = count_at + align;
    let (mut at, mut starts) = (names_at, Vec::new());
    for number in 0..count {
        if number % NAMES_PER_MARKER == 0 {
            starts.push(at - names_at);
            // Rejects most false tables after a few kilobytes.
            if starts.len() == 2 && !some_marker_is(image, at - names_at, count, limit) {
                break;
            }
        }
        match name_length(&image.bytes, at) {
            Some((length, first)) if length > 0 && first + length <= limit => at = first + length,
            _ => break,
        }
    }
    *budget = budget.saturating_sub(at - names_at + 64);
    let markers_at = at.next_multiple_of(align);
    let whole =
        starts.len() == count.div_ceil(NAMES_PER_MARKER) as usize && markers_at + starts.len() * 4 <= limit;
    let marker = |number: usize| image.u32(markers_at + number * 4).map(|marker| marker as usize);
    *budget > 0 && whole && starts.iter().enumerate().all(|(number, start)| marker(number) == Some(*start))
}

/// Whether the second marker can have this value. The markers are before the tokens, in some kernels (6.1 to 6.3) with
/// a table of 3 or 4 bytes a name between them; padding makes their position uncertain by a few bytes.
fn some_marker_is(image: &Image, second: usize, count: u32, tokens_at: usize) -> bool {
    let (count, markers) = (count as usize, count.div_ceil(NAMES_PER_MARKER) as usize);
    [0, 3, 4].iter().any(|bytes_a_name| {
        let latest = tokens_at.checked_sub(count * bytes_a_name + markers * 4).map(|start| (start & !3) + 4);
        latest.is_some_and(|latest| {
            (0..=24).step_by(4).any(|padding| {
                let marker = latest.checked_sub(padding).and_then(|at| image.u32(at));
                marker.is_some_and(|marker| marker as usize == second)
            })
        })
    })
}

/// A name's length in tokens, and the offset of its first token.
fn name_length(bytes: &[u8], at: usize) -> Option<(usize, usize)> {
    let first = *bytes.get(at)?;
    if first & 0x80 == 0 {
        return Some((first.into(), at + 1));
    }
    let second = *bytes.get(at + 1)?;
    Some((usize::from(first & 0x7f) | usize::from(second) << 7, at + 2))
}

/// The end of the `count`-th NUL-terminated string from `at`; tokens are short.
fn after_strings(bytes: &[u8], mut at: usize, count: usize) -> Option<usize> {
    for _ in 0..count {
        let window = bytes.get(at..bytes.len().min(at + 256))?;
        at += window.iter().position(|byte| *byte == 0)? + 1;
    }
    Some(at)
}

struct TokenIndex<'i> {
    image: &'i Image,
    tokens_at: usize,
    index_at: usize,
}

impl<'i> TokenIndex<'i> {
    /// Whether each index entry is the end of the token before it.
    fn is_cumulative(&self) -> bool {
        let mut at = self.tokens_at;
        (0..256).all(|token| {
            let start = self.image.u16(self.index_at + 2 * token);
            let right = start.is_some_and(|start| self.tokens_at + usize::from(start) == at);
            match after_strings(&self.image.bytes, at, 1) {
                Some(next) if right => at = next,
                _ => return false,
            }
            true
        })
    }

    fn tokens(&self) -> Option<Vec<&'i [u8]>> {
        let mut at = self.tokens_at;
        (0..256)
            .map(|_| {
                let next = after_strings(&self.image.bytes, at, 1)?;
                let token = self.image.bytes.get(at..next - 1);
                at = next;
                token
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use retrovisor_guest::Gpa;

    use super::{
        sample::{Layout, VIRT, image},
        *,
    };

    fn range(image: &Image) -> ImageRange {
        ImageRange { virt: VIRT, gpa: Gpa(0), bytes: image.bytes.len() as u64 }
    }

    #[test]
    fn every_layout_is_read() {
        for layout in [Layout::Before, Layout::After, Layout::OwnPlace, Layout::Packed] {
            let image = image(layout);
            let tables = Tables::scan(&image).unwrap();
            let Tables { count_at, tokens_at, index_at, .. } = tables;
            assert_eq!(Tables::check(count_at, tokens_at, index_at, &image), Some(tables));
            let (symbols, extents) = tables.read(&image, &range(&image)).unwrap();
            assert_eq!(extents.base_at.is_some(), matches!(layout, Layout::Before | Layout::After));
            assert_eq!(symbols.len(), 300, "{layout:?}");
            assert_eq!(symbols.address("sym0"), Some(VIRT), "{layout:?}");
            assert_eq!(symbols.address("sym298"), Some(VIRT + 298 * 16), "{layout:?}");
            let long = format!("sym299{}", "x".repeat(196));
            assert_eq!(symbols.place(VIRT + 299 * 16 + 3).map(|place| place.name), Some(long.as_str()));
        }
    }

    proptest! {
        #[test]
        fn mutated_tables_never_panic(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20)) {
            for layout in [Layout::Before, Layout::After, Layout::Packed] {
                let mut image = image(layout);
                let whole = Tables::scan(&image).unwrap();
                for (at, byte) in &changes {
                    let at = at.index(image.bytes.len());
                    image.bytes[at] = *byte;
                }
                let range = range(&image);
                let _ = whole.read(&image, &range);
                let _ = Tables::scan(&image).and_then(|tables| tables.read(&image, &range));
            }
        }
    }
}
