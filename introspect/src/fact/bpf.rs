use retrovisor_guest::fact::{Schema, Value};

use super::{Fact, integer, text};

/// A loaded eBPF program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BpfProgram {
    /// Its id, as `bpftool` shows it.
    pub id: u32,
    /// Its type by the kernel's name (`KPROBE`, `CGROUP_SKB`), or the type's number.
    pub kind: String,
    /// The name its loader gave it, at most 15 bytes.
    pub name: String,
    /// The hash of its instructions, 16 hexadecimal digits.
    pub tag: String,
    /// What runs: its machine code, or the interpreter.
    pub address: Option<u64>,
    /// Bytes of machine code; 0 when it is interpreted.
    pub jited_bytes: u64,
    /// The kernel function it is attached to, for the types that name one.
    pub attached: Option<String>,
    /// When it was loaded, since boot.
    pub loaded_ns: Option<u64>,
}

impl Fact for BpfProgram {
    const SCHEMA: Schema = Schema {
        table: "fact_bpf",
        columns: &[
            integer("id"),
            text("kind"),
            text("name"),
            text("tag"),
            text("address"),
            integer("jited_bytes"),
            text("attached"),
            integer("loaded_ns"),
        ],
    };

    fn row(&self) -> Vec<Value> {
        vec![
            self.id.into(),
            self.kind.clone().into(),
            self.name.clone().into(),
            self.tag.clone().into(),
            super::address(self.address),
            super::bits(self.jited_bytes),
            self.attached.clone().into(),
            self.loaded_ns.map_or(Value::Null, super::bits),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_fits_its_columns() {
        crate::fact::assert_row_fits(&BpfProgram {
            id: 1,
            kind: "KPROBE".into(),
            name: "probe".into(),
            tag: "0011223344556677".into(),
            address: Some(1),
            jited_bytes: u64::MAX,
            attached: None,
            loaded_ns: Some(u64::MAX),
        });
    }
}
