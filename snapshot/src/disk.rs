//! Disks in the store: their blocks are contents like pages, their maps like those of memory, but sparse.

mod baseline;
mod captured;
mod image;
mod map;
mod maps;
mod prepared;
mod prune;
mod record;
mod restore;
mod verify;

pub use image::DiskImage;
pub use record::DiskRecord;

pub(crate) use baseline::{DiskBaseline, DiskBaselines};
pub(crate) use captured::{CapturedDisk, since};
pub(crate) use map::DiskMap;
pub(crate) use maps::{block_changes_hash, decode_disk_keyframe, disk_keyframe};
pub(crate) use prepared::PreparedDisk;
pub(crate) use restore::DiskRestore;
