fact! {
    /// One record of the kernel log.
    #[derive(Default)]
    pub struct LogLine in "fact_log" {
        /// The record's number since boot.
        pub sequence: u64 => integer,
        /// Time since boot.
        pub time_ns: u64 => integer,
        /// Severity, 0 (emergency) to 7 (debug).
        pub level: u8 => integer,
        /// Syslog facility; 0 is the kernel.
        pub facility: u8 => integer,
        /// The message, made printable; several lines remain one record.
        pub text: String => text,
    }
    question "log": "The kernel log up to the checkpoint"
        titled "Kernel log" from "SELECT printf('%.6f', time_ns / 1e9) AS seconds, level, text FROM fact_log \
         WHERE checkpoint IN (WITH RECURSIVE ancestor(id) AS (SELECT ?1 UNION ALL SELECT parent_checkpoint \
         FROM v_checkpoint JOIN ancestor ON checkpoint = id WHERE parent_checkpoint IS NOT NULL) SELECT id FROM ancestor) ORDER BY sequence";
}
