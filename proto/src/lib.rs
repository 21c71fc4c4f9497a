//! The gRPC interface of Retrovisor: the generated types and services of `retrovisor.v1`, and nothing else.
//!
//! Messages serialise to JSON as the command line's `--json` prints them: field names as in the .proto files,
//! numbers as numbers, enums as lower-case words.
#![forbid(unsafe_code)]

mod json;

/// Package `retrovisor.v1`.
pub mod v1 {
    #![expect(clippy::pedantic, clippy::large_enum_variant, reason = "generated code")]
    tonic::include_proto!("retrovisor.v1");
}

/// The encoded `FileDescriptorSet`, for server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
