//! The store: opening it, and reading what is in it.

mod change;
mod contents;
mod image;
mod maps;
mod marker;
mod opening;
mod reserve;
mod states;
mod verify;
mod view;

pub use change::PageChange;
pub use image::image_hash;
pub use opening::{Access, Store, StoreOptions};
pub use verify::{VerifyProgress, VerifyReport};
pub use view::CheckpointView;

pub(crate) use contents::missing;
pub(crate) use maps::{changes_hash, decode_keyframe, keyframe};
pub(crate) use marker::Marker;
pub(crate) use states::{pieces, state_hash, store_state};
