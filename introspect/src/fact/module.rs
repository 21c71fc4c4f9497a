fact! {
    /// A loaded kernel module.
    #[derive(Default)]
    pub struct Module in "fact_module" {
        /// Its name, made printable.
        pub name: String => text sought,
        /// Where its code starts.
        pub address: u64 => address,
        /// Bytes of all its parts, as /proc/modules counts.
        pub size_bytes: u64 => integer,
        /// `live`, `coming`, `going` or `unformed`.
        pub state: &'static str => text,
        /// Users, as /proc/modules counts.
        pub refcount: Option<i64> => integer volatile,
        /// The views that contain it: `list`, `kset`, `tree`, `memory`, joined by `+` in this order.
        pub views: String => text,
    }
    question "modules": "Loaded kernel modules"
        titled "Modules" from "SELECT * FROM fact_module WHERE checkpoint = ?1 ORDER BY name";
}
