use retrovisor_guest::fact::{Schema, Value};

use super::{Fact, bits, integer, text};

/// The kernel itself: which, since when, and where it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelFact {
    /// `6.1.0-50-cloud-amd64`.
    pub release: String,
    /// The line that /proc/version shows.
    pub banner: String,
    /// Time since boot, suspend included, as of the last timer tick.
    pub uptime_ns: Option<u64>,
    /// Wall-clock second of the boot, since 1970.
    pub boot_time_s: Option<i64>,
    /// `jiffies_64`.
    pub jiffies: Option<u64>,
    /// KASLR: where `_text` is minus where it was linked.
    pub virtual_slide: u64,
    /// The kernel's `phys_base`: physical address of the image minus its linked offset; wraps below zero.
    pub physical_base: u64,
    /// 4 or 5.
    pub page_levels: u8,
    /// Taint bits.
    pub tainted: Option<u64>,
    /// The letters for the taint bits, as an oops message has them: `OE`.
    pub taints: Option<String>,
    /// `booting`, `running`, `panic`, …
    pub state: Option<String>,
    /// The CPU that panicked.
    pub panic_cpu: Option<u32>,
    /// Times that the kernel went on after an error of its own.
    pub oopses: Option<u64>,
    /// CPUs online.
    pub cpus: u32,
    /// Control register 0 of the first vCPU, if registers were given.
    pub cr0: Option<u64>,
    /// Control register 4 of the first vCPU.
    pub cr4: Option<u64>,
    /// `MSR_EFER` of the first vCPU.
    pub efer: Option<u64>,
    /// Base of the first vCPU's interrupt descriptor table.
    pub idt_base: Option<u64>,
    /// Whether a walk met a structure in the middle of an update: some facts may be missing this time.
    pub torn: bool,
}

impl Fact for KernelFact {
    const SCHEMA: Schema = Schema {
        table: "fact_kernel",
        columns: &[
            text("release"),
            text("banner"),
            integer("uptime_ns"),
            integer("boot_time_s"),
            integer("jiffies"),
            text("virtual_slide"),
            text("physical_base"),
            integer("page_levels"),
            integer("tainted"),
            text("taints"),
            text("state"),
            integer("panic_cpu"),
            integer("oopses"),
            integer("cpus"),
            text("cr0"),
            text("cr4"),
            text("efer"),
            text("idt_base"),
            integer("torn"),
        ],
    };

    fn row(&self) -> Vec<Value> {
        vec![
            self.release.clone().into(),
            self.banner.clone().into(),
            self.uptime_ns.into(),
            self.boot_time_s.into(),
            self.jiffies.into(),
            Value::address(self.virtual_slide),
            Value::address(self.physical_base),
            i64::from(self.page_levels).into(),
            self.tainted.map_or(Value::Null, bits),
            self.taints.clone().into(),
            self.state.clone().into(),
            self.panic_cpu.into(),
            self.oopses.into(),
            self.cpus.into(),
            super::address(self.cr0),
            super::address(self.cr4),
            super::address(self.efer),
            super::address(self.idt_base),
            self.torn.into(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_fits_its_columns() {
        crate::fact::assert_row_fits(&KernelFact::default());
        crate::fact::assert_row_fits(&KernelFact {
            cr0: Some(1),
            uptime_ns: Some(u64::MAX),
            ..Default::default()
        });
    }
}
