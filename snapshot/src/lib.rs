//! The snapshot store: packs, catalogue, timelines, capture and restore.
#![forbid(unsafe_code)]
