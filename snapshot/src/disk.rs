//! Disks in the store: their blocks are contents like pages, their maps like those of memory, but sparse.

mod draft;
mod image;
mod intake;
mod map;
mod maps;
mod prune;
mod put;
mod record;
mod stand;
mod verify;

pub use image::DiskImage;
pub use record::DiskRecord;

pub(crate) use draft::{DiskDraft, since};
pub(crate) use intake::DiskReady;
pub(crate) use map::DiskMap;
pub(crate) use maps::{block_changes_hash, decode_disk_keyframe, disk_keyframe};
pub(crate) use put::DiskRoute;
pub(crate) use stand::{DiskStand, DiskStands};
