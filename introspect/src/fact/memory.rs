fact! {
    /// Page statistics that need no further reads.
    #[derive(Default)]
    pub struct MemoryStatistics in "fact_memory" {
        /// Frames of RAM.
        pub pages: u64 => integer,
        /// Frames that the source knows to be zero; `None` when it has no such information (a raw dump never has).
        pub zero_pages: Option<u64> => integer volatile,
        /// Frames that are not known to be zero.
        pub data_pages: Option<u64> => integer volatile,
        /// Frames of kernel text; 0 without a Linux kernel.
        pub kernel_text_pages: u64 => integer,
        /// Frames of kernel text that differ from the first observation of this boot, explained changes included.
        pub kernel_text_pages_changed: u64 => integer,
        /// Frames that this observation had to read.
        pub pages_read: u64 => integer volatile,
        /// Frames that could not be read (for example damaged in the store).
        pub pages_unreadable: u64 => integer volatile,
    }
}
