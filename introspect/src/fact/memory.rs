fact! {
    /// Page statistics that cost next to nothing.
    #[derive(Default)]
    pub struct MemoryStatistics in "fact_memory" {
        /// Frames of RAM.
        pub pages: u64 => integer,
        /// Frames that the source knows to be zero; `None` when it knows of none (a raw dump never does).
        pub zero_pages: Option<u64> => integer,
        /// The other frames.
        pub data_pages: Option<u64> => integer,
        /// Frames of kernel text; 0 when there is no Linux.
        pub kernel_text_pages: u64 => integer,
        /// Of these, how many differ from the first observation of this boot, lawful changes included.
        pub kernel_text_pages_changed: u64 => integer,
        /// Frames that this observation had to read.
        pub pages_read: u64 => integer,
        /// Frames that could not be read (damaged in the store).
        pub pages_unreadable: u64 => integer,
    }
}
