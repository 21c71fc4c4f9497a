//! One file a group of rows.

mod branch;
mod lab;
mod pause;
mod peers;
mod rollback;
mod slowdown;
mod worker;

pub(crate) use branch::measure as branch;
pub(crate) use lab::Lab;
pub(crate) use pause::{measure as pause, measure_roomy as roomy};
pub(crate) use peers::print as print_peers;
pub(crate) use rollback::measure as rollback;
pub(crate) use slowdown::measure as slowdown;
pub(crate) use worker::{WORD, measure as worker};
