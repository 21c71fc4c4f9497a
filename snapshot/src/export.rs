//! Checkpoints and histories as files that others read: raw memory, ELF cores, archives; and the way back.

mod archive;
mod core;
mod dump;
mod notes;
mod output;
mod pages;
mod raw;

pub use archive::{ARCHIVE_MAGIC, ArchiveReport};
pub use dump::{DumpFormat, ImportReport};
pub use pages::{ExportProgress, ExportReport};
