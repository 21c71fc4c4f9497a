fact! {
    /// A loaded eBPF program.
    pub struct BpfProgram in "fact_bpf" {
        /// Its id, as `bpftool` shows it.
        pub id: u32 => integer,
        /// Its type by the kernel's name (`KPROBE`, `CGROUP_SKB`), or the type's number.
        pub kind: String => text,
        /// The name its loader gave it, at most 15 bytes.
        pub name: String => text sought,
        /// The hash of its instructions, 16 hexadecimal digits.
        pub tag: String => text,
        /// Address of the code that runs: its machine code, or the interpreter.
        pub address: Option<u64> => address,
        /// Bytes of machine code; 0 when it is interpreted.
        pub jited_bytes: u64 => bits,
        /// The kernel function it is attached to, for the types that name one.
        pub attached: Option<String> => text,
        /// When it was loaded, since boot.
        pub loaded_ns: Option<u64> => bits,
    }
    question "bpf": "Loaded eBPF programs"
        titled "eBPF programs" from "SELECT id, kind, name, tag, attached, jited_bytes FROM fact_bpf WHERE checkpoint = ?1 ORDER BY id";
}
