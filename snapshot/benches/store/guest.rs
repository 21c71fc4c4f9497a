//! Pages like those of a Linux guest, from a seed.
//!
//! The proportions follow measurements of images of a Debian guest of 512 MiB: four fifths of a booted guest are zero
//! and half of one that has worked for a while (here: 65 %); zstd at level 1 in frames of four pages makes the others
//! 2.09 times smaller (here, where pages are more regular, 2.66 times: the row `guest.zstd_ratio`); two thirds of the
//! pages dirtied by shell work had known contents (here: copies of other pages of the machine). There are ten kinds of
//! pages, in these shares: two of text, four of structures with pointers into one area, two of code, and two of
//! compressed or random data; a third of all pages is only partly used.

use retrovisor_guest::{PAGE_SIZE, Page};

pub(crate) struct Guest(u64);

impl Guest {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// A page that does not occur a second time.
    pub(crate) fn page(&mut self) -> Page {
        const WORDS: [&[u8]; 8] = [
            b"kernel ",
            b"systemd ",
            b"/usr/lib/x86_64-linux-gnu/",
            b"error: ",
            b"0x",
            b"task_struct ",
            b"\n",
            b"the ",
        ];
        let mut page = [0; PAGE_SIZE];
        let kind = self.below(10);
        let used = if self.below(3) == 0 { self.below(3_000) as usize + 64 } else { PAGE_SIZE };
        let mut at = 0;
        while at + 32 <= used {
            let mut bytes = [0; 32];
            let length = match kind {
                // Text.
                0 | 1 => {
                    let word = WORDS[self.below(8) as usize];
                    bytes[..word.len()].copy_from_slice(word);
                    word.len()
                }
                // Structures: pointers into one area, small numbers, nulls.
                2..=5 => {
                    let pointer = 0xffff_8880_0000_0000 | (self.next() & 0x03ff_ffc0);
                    bytes[..8].copy_from_slice(&pointer.to_le_bytes());
                    bytes[8..12].copy_from_slice(&(self.below(300) as u32).to_le_bytes());
                    24
                }
                // Code: few distinct bytes, short repetitions, addresses.
                6 | 7 => {
                    let code = self.next();
                    for (byte, shift) in bytes.iter_mut().zip(0..7) {
                        *byte = [0x48, 0x89, 0xe5, 0x0f, 0x8b, 0x00, 0xe8, 0x24]
                            [(code >> (shift * 3) & 7) as usize];
                    }
                    bytes[7] = code.to_le_bytes()[6];
                    8
                }
                // Compressed or random already.
                _ => {
                    for chunk in bytes.chunks_exact_mut(8) {
                        chunk.copy_from_slice(&self.next().to_le_bytes());
                    }
                    32
                }
            };
            page[at..at + length].copy_from_slice(&bytes[..length]);
            at += length;
        }
        // Makes every page different, however similar two pages are.
        page[..8].copy_from_slice(&self.next().to_le_bytes());
        page
    }
}
