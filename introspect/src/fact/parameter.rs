fact! {
    /// One parameter on the kernel's command line.
    #[derive(Default)]
    pub struct Parameter in "fact_parameter" {
        /// Its place on the command line, from 0.
        pub position: u32 => integer,
        /// The part before `=`, as it is written: `console`, `usbcore.autosuspend`.
        pub name: String => text,
        /// The part behind `=`, without quotes; null for a parameter without a value: `quiet`.
        pub value: Option<String> => text,
    }
    question "parameters": "Parameters on the kernel's command line"
        titled "Kernel parameters" from "SELECT name, value FROM fact_parameter WHERE checkpoint = ?1 ORDER BY position";
}
