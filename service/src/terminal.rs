//! What people see: quantities in words, colours, tables that fit.

pub(crate) mod paragraph;
pub(crate) mod progress;
pub(crate) mod reader;
pub(crate) mod style;
pub(crate) mod table;
