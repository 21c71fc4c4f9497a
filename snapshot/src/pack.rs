//! Packs: append-only files of compressed frames of pages. Described byte by byte in `docs/format.md`.

mod copy;
mod format;
#[cfg(any(test, feature = "fuzzing"))]
mod fuzzing;
mod reader;
mod storage;
mod writer;

pub(crate) use copy::PackCopy;
pub(crate) use format::{FRAME_PAGES, compressor, encode_frame};
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use fuzzing::{fuzz_frame, fuzz_header, seed_frames, seed_header};
pub(crate) use reader::{Frame, PackReader};
#[cfg(test)]
pub(crate) use storage::PackFile;
pub(crate) use storage::{Directory, PackStorage};
pub(crate) use writer::PackWriter;
