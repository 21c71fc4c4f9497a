//! Reads a Linux guest from its memory alone.
#![forbid(unsafe_code)]
