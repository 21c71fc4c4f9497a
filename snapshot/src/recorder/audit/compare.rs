use retrovisor_guest::Page;

use super::sample::Sample;
use crate::content::ContentId;
use crate::error::Result;
use crate::page_map::PageMap;
use crate::parallel;
use crate::store::Store;

/// Fewest pages worth a thread of their own.
const HASH_PAGES_MIN: usize = 1024;

/// What became of the frames that were compared.
pub(super) struct Compared {
    /// Indices of those that hold what the map says.
    pub(super) same: Vec<u64>,
    /// Indices of those that do not, ascending.
    pub(super) different: Vec<u64>,
}

/// Compares copies of frames with a checkpoint's map: by the hashes of contents, so that no pack is read. A content
/// that was removed from the catalogue meanwhile is passed over.
pub(super) fn compare(store: &Store, map: &PageMap, sample: &Sample) -> Result<Compared> {
    let mut compared = Compared { same: Vec::with_capacity(sample.len()), different: Vec::new() };
    let mut wanted: Vec<(ContentId, u64, &Page)> = Vec::new();
    for (index, page) in sample.frames() {
        let expected = usize::try_from(index).ok().and_then(|index| map.get(index).stored());
        match (expected, page) {
            (Some(id), Some(page)) => wanted.push((id, index, page)),
            (None, None) => compared.same.push(index),
            // Stored contents are never zero.
            _ => compared.different.push(index),
        }
    }
    wanted.sort_unstable_by_key(|(id, index, _)| (*id, *index));
    let hashes = parallel::map(&wanted, HASH_PAGES_MIN, |(_, _, page)| store.key.page(page));
    let mut ids: Vec<ContentId> = wanted.iter().map(|(id, ..)| *id).collect();
    ids.dedup();
    let places = store.catalogue().places(&ids)?;
    let mut places = places.iter().peekable();
    for ((id, index, _), hash) in wanted.iter().zip(&hashes) {
        while places.next_if(|place| place.id < *id).is_some() {}
        match places.peek() {
            Some(place) if place.id == *id && place.hash == *hash => compared.same.push(*index),
            Some(place) if place.id == *id => compared.different.push(*index),
            _ => (),
        }
    }
    compared.different.sort_unstable();
    Ok(compared)
}
