use retrovisor_guest::fact::{Schema, Value};

use super::{Fact, bits, integer, text};

/// A file system mounted somewhere.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mount {
    /// The mount namespace's number, as `/proc/<pid>/ns/mnt` shows it.
    pub namespace: u64,
    /// The mount's number.
    pub id: i32,
    /// The number of the mount below it; its own when there is none.
    pub parent_id: i32,
    /// `254:0`: major and minor number of the device.
    pub device: String,
    /// The folder of the file system that is shown.
    pub root: String,
    /// Where it is mounted.
    pub point: String,
    /// The type: `ext4`, `tmpfs`.
    pub kind: String,
    /// What is mounted: a device, or a word.
    pub source: String,
    /// `ro`, `nosuid`, …: what holds for this mount, joined by commas, in the order of /proc.
    pub options: String,
    /// Whether the file system itself can only be read.
    pub read_only: bool,
}

impl Fact for Mount {
    const SCHEMA: Schema = Schema {
        table: "fact_mount",
        columns: &[
            integer("namespace"),
            integer("id"),
            integer("parent_id"),
            text("device"),
            text("root"),
            text("point"),
            text("kind"),
            text("source"),
            text("options"),
            integer("read_only"),
        ],
    };

    fn row(&self) -> Vec<Value> {
        vec![
            bits(self.namespace),
            i64::from(self.id).into(),
            i64::from(self.parent_id).into(),
            self.device.clone().into(),
            self.root.clone().into(),
            self.point.clone().into(),
            self.kind.clone().into(),
            self.source.clone().into(),
            self.options.clone().into(),
            self.read_only.into(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_fits_its_columns() {
        crate::fact::assert_row_fits(&Mount::default());
    }
}
