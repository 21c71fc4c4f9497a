//! Export of checkpoints and histories to files (raw memory, ELF cores, archives), and import of them.

mod archive;
mod core;
mod dump;
mod import_contents;
mod notes;
mod output;
mod pages;
mod raw;

pub use archive::{ARCHIVE_MAGIC, ArchiveReport};
pub use dump::{DumpFormat, ImportReport};
pub use pages::{ExportProgress, ExportReport};
