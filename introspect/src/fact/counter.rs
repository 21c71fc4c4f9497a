fact! {
    /// One counter of the kernel.
    #[derive(Default)]
    pub struct Counter in "fact_counter" {
        /// The name as in /proc/vmstat, or one that this crate computes (`context_switches`, `cpu_user_ns`, …).
        pub name: String => text,
        /// The value.
        pub value: i64 => integer volatile,
    }
    question "counters": "The kernel's counters"
        titled "Counters" from "SELECT name, value FROM fact_counter WHERE checkpoint = ?1 ORDER BY name";
}
