//! The tables of facts that the synthetic guest fills.

use retrovisor_guest::fact::{Column, Kind, Schema};

const fn integer(name: &'static str) -> Column {
    Column::new(name, Kind::Integer)
}

const fn text(name: &'static str) -> Column {
    Column::new(name, Kind::Text)
}

pub static KERNEL: Schema =
    Schema { table: "fact_kernel", columns: &[text("release"), integer("uptime_ns"), integer("cpus")] };
pub static TASK: Schema = Schema {
    table: "fact_task",
    columns: &[
        integer("pid"),
        integer("tgid"),
        integer("ppid"),
        text("comm"),
        text("parent_comm"),
        text("state"),
        integer("start_time_ns"),
        integer("utime_ns"),
        integer("stime_ns"),
        integer("rss_pages"),
        integer("kernel_thread"),
    ],
};
pub static COUNTER: Schema = Schema { table: "fact_counter", columns: &[text("name"), integer("value")] };
pub static LOG: Schema = Schema {
    table: "fact_log",
    columns: &[integer("sequence"), integer("time_ns"), integer("level"), text("text")],
};
pub static INTEGRITY: Schema = Schema {
    table: "fact_integrity",
    columns: &[text("kind"), text("object"), text("symbol"), text("detail"), text("expected"), text("found")],
};
