//! What people see: clean text, quantities in words, colours, tables and paragraphs that fit.
//!
//! Everything that the program prints goes through [`output`]; printing in any other way does not compile.

pub(crate) mod clean;
#[macro_use]
pub(crate) mod output;
pub(crate) mod paragraph;
pub(crate) mod progress;
pub(crate) mod quantity;
pub(crate) mod table;
pub(crate) mod verdict;
pub(crate) mod width;
