use retrovisor_guest::{DescriptorTable, VcpuRegisters};

/// Parses the registers of each CPU as printed by QEMU's monitor.
pub(crate) fn parse(text: &str) -> Vec<VcpuRegisters> {
    let number = |text: &str| u64::from_str_radix(text, 16).unwrap_or(0);
    let of_cpu = |text: &str| {
        let named = |name: &str| {
            let after = text.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
            after.map_or(0, number)
        };
        let table = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            let mut words = line.unwrap_or_default().split_whitespace();
            DescriptorTable {
                base: words.next().map_or(0, number),
                limit: u16::try_from(words.next().map_or(0, number)).unwrap_or(u16::MAX),
            }
        };
        VcpuRegisters {
            rip: named("RIP"),
            cr0: named("CR0"),
            cr2: named("CR2"),
            cr3: named("CR3"),
            cr4: named("CR4"),
            efer: named("EFER"),
            idt: table("IDT"),
            gdt: table("GDT"),
            ..VcpuRegisters::default()
        }
    };
    text.split("CPU#").skip(1).map(of_cpu).collect()
}
