fact! {
    /// One gate of the interrupt descriptor table.
    pub struct Gate in "fact_gate" {
        /// The interrupt's or exception's number.
        pub vector: u32 => integer,
        /// The address of its handler.
        pub handler: u64 => address,
        /// The symbol at the handler (`name`, `name+0x…`, `name [module]`); `None` outside all symbols.
        pub symbol: Option<String> => text,
        /// `interrupt`, `trap`, or the type's number.
        pub kind: String => text,
        /// The lowest privilege level that may raise it with an instruction: 0 only the kernel, 3 every process.
        pub dpl: u32 => integer,
        /// The stack it switches to, 0 for none.
        pub stack: u32 => integer,
        /// Whether the gate is in use.
        pub present: bool => integer,
    }
    question "gates": "Interrupt gates: all in the first checkpoint of a boot, later those that differ"
        titled "Interrupt gates" from "SELECT vector, handler, symbol, kind, dpl, stack, present FROM fact_gate WHERE checkpoint = ?1 ORDER BY vector";
}
