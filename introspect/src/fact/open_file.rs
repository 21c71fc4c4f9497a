use retrovisor_guest::fact::{Schema, Value};

use super::{Fact, bits, integer, text};

/// A file that a process holds open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenFile {
    /// The process; a thread where it has a table of files of its own.
    pub pid: i32,
    /// Its name.
    pub comm: String,
    /// The descriptor.
    pub fd: i32,
    /// `file`, `directory`, `socket`, `pipe`, `character device`, `block device`, `link` or `anonymous`.
    pub kind: &'static str,
    /// The path as /proc shows it: `/data/journal`, `socket:[4711]`; one that was removed ends in ` (deleted)`.
    pub path: Option<String>,
    /// The inode's number in its file system.
    pub inode: u64,
    /// The type of the file system: `ext4`, `tmpfs`, `sockfs`.
    pub file_system: String,
    /// `r`, `w`, `rw` or `-`.
    pub access: &'static str,
    /// `f_flags`: what it was opened with.
    pub flags: u64,
    /// Where the next read or write begins, in bytes.
    pub position: i64,
}

impl Fact for OpenFile {
    const SCHEMA: Schema = Schema {
        table: "fact_open_file",
        columns: &[
            integer("pid"),
            text("comm"),
            integer("fd"),
            text("kind"),
            text("path"),
            integer("inode"),
            text("file_system"),
            text("access"),
            integer("flags"),
            integer("position"),
        ],
    };

    fn row(&self) -> Vec<Value> {
        vec![
            i64::from(self.pid).into(),
            self.comm.clone().into(),
            i64::from(self.fd).into(),
            self.kind.into(),
            self.path.clone().into(),
            bits(self.inode),
            self.file_system.clone().into(),
            self.access.into(),
            bits(self.flags),
            self.position.into(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_fits_its_columns() {
        crate::fact::assert_row_fits(&OpenFile {
            path: Some("/".into()),
            inode: u64::MAX,
            ..Default::default()
        });
    }
}
