//! A small BTF blob that tests and fuzzers begin from.
#![allow(clippy::unwrap_used, reason = "what is built here is known")]

use super::header::{KIND_ARRAY, KIND_ENUM, KIND_INT, KIND_STRUCT, KIND_TYPEDEF, KIND_UNION};

/// `struct outer { int a; union { struct { int b; int c : 3; int d : 5; }; long e; }; char name[16]; }`,
/// `typedef struct outer outer_t`, `enum { RED, BLUE = 5 }`.
pub(crate) fn blob() -> Vec<u8> {
    let strings = b"\0int\0outer\0a\0b\0c\0d\0e\0name\0outer_t\0RED\0BLUE\0char\0long\0";
    let name = |wanted: &str| {
        let wanted = format!("\0{wanted}\0");
        u32::try_from(strings.windows(wanted.len()).position(|w| w == wanted.as_bytes()).unwrap() + 1)
            .unwrap()
    };
    let info = |kind: u8, length: u32, flag: u32| u32::from(kind) << 24 | length | flag << 31;
    let bits = |offset: u32, count: u32| count << 24 | offset;
    let words: Vec<u32> = [
        vec![name("int"), info(KIND_INT, 0, 0), 4, 32],
        vec![name("char"), info(KIND_INT, 0, 0), 1, 8],
        vec![name("long"), info(KIND_INT, 0, 0), 8, 64],
        vec![0, info(KIND_ARRAY, 0, 0), 0, 2, 1, 16],
        vec![
            0,
            info(KIND_STRUCT, 3, 1),
            8,
            name("b"),
            1,
            0,
            name("c"),
            1,
            bits(32, 3),
            name("d"),
            1,
            bits(35, 5),
        ],
        vec![0, info(KIND_UNION, 2, 0), 8, 0, 5, 0, name("e"), 3, 0],
        vec![name("outer"), info(KIND_STRUCT, 3, 0), 32, name("a"), 1, 0, 0, 6, 64, name("name"), 4, 128],
        vec![name("outer_t"), info(KIND_TYPEDEF, 0, 0), 7],
        vec![0, info(KIND_ENUM, 2, 0), 4, name("RED"), 0, name("BLUE"), 5],
    ]
    .concat();
    let type_length = u32::try_from(words.len() * 4).unwrap();
    let header = [0x0001_eb9f, 24, 0, type_length, type_length, u32::try_from(strings.len()).unwrap()];
    let words = header.iter().chain(&words).flat_map(|word| word.to_le_bytes());
    words.chain(strings.iter().copied()).collect()
}
