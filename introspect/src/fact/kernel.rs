fact! {
    /// The kernel: its version, addresses and state.
    #[derive(Default)]
    pub struct KernelFact in "fact_kernel" {
        /// `6.1.0-50-cloud-amd64`.
        pub release: String => text,
        /// The line of /proc/version.
        pub banner: String => text,
        /// Identifies the boot, by random values that it starts with. Missing until the kernel runs.
        pub boot: Option<String> => text,
        /// Time since boot, suspend included, as of the last timer tick.
        pub uptime_ns: Option<u64> => integer volatile,
        /// Wall-clock second of the boot, since 1970.
        pub boot_time_s: Option<i64> => integer,
        /// `jiffies_64`.
        pub jiffies: Option<u64> => integer volatile,
        /// KASLR: the address of `_text` minus its linked address.
        pub virtual_slide: u64 => address,
        /// The kernel's `phys_base`: physical address of the image minus its linked offset; wraps below zero.
        pub physical_base: u64 => address,
        /// Levels of the page tables: 4 or 5.
        pub page_levels: u8 => integer,
        /// Taint bits.
        pub tainted: Option<u64> => bits,
        /// The letters for the taint bits, as an oops message has them: `OE`.
        pub taints: Option<String> => text,
        /// `booting`, `running`, `panic`, …
        pub state: Option<String> => text,
        /// The CPU that panicked.
        pub panic_cpu: Option<u32> => integer,
        /// Number of kernel oopses since boot.
        pub oopses: Option<u64> => integer,
        /// CPUs online.
        pub cpus: u32 => integer,
        /// Control register 0 of the first vCPU, if registers were given.
        pub cr0: Option<u64> => address,
        /// Control register 4 of the first vCPU.
        pub cr4: Option<u64> => address,
        /// `MSR_EFER` of the first vCPU.
        pub efer: Option<u64> => address,
        /// Base of the first vCPU's interrupt descriptor table.
        pub idt_base: Option<u64> => address,
        /// Whether a structure was met in the middle of an update: some facts may be missing in this observation.
        pub torn: bool => integer volatile,
    }
    question "kernel": "The kernel: release, boot time, state, control registers"
        titled "Kernel" from "SELECT * FROM fact_kernel WHERE checkpoint = ?1";
}
