//! Takes requests of gRPC's C core (Python, C++, Ruby) over a Unix socket.
//!
//! The C core sends the escaped path of the socket as `:authority` (`tmp%2Fdaemon.sock`). An authority must not contain
//! `%` outside of an IPv6 zone, so the HTTP/2 library answers each such request with `RST_STREAM`, before any code of a
//! service runs. Nothing here depends on the authority of a request that came over a Unix socket, which is why it may be
//! corrected in the bytes of the connection.
//!
//! The correction replaces characters of the value by `-`, one byte by one byte, in literals that are not Huffman-coded
//! and whose name is certainly `:authority`. Lengths stay what they were: of the frame, of the string, and of the entry
//! in the dynamic table that the decoder may make of it. So the client's and the server's state stay equal, and neither
//! a decoder nor an encoder is needed. Everything else passes unchanged, including malformed frames, which the
//! server refuses.

use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tonic::transport::server::{Connected, UdsConnectInfo};

/// What a client's side of a connection begins with.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Bytes before the payload of a frame: length, type, flags, stream.
const FRAME_HEADER_BYTES: usize = 9;
/// A longer frame is refused by the server, which announces no other limit.
const FRAME_BYTES_MAX: usize = 16 << 10;
const HEADERS: u8 = 1;
const FLAG_END_HEADERS: u8 = 0x4;
const FLAG_PADDED: u8 = 0x8;
const FLAG_PRIORITY: u8 = 0x20;
/// Stream dependency and weight.
const PRIORITY_BYTES: usize = 5;
/// The index of `:authority` in the static table.
const AUTHORITY_INDEX: usize = 1;

/// A connection whose requests have an authority that can be parsed.
pub(super) struct AuthorityStream {
    inner: UnixStream,
    /// Bytes that were read; the first `checked` of them may be passed on.
    buffer: Vec<u8>,
    checked: usize,
    scanner: Scanner,
}

impl AuthorityStream {
    pub(super) fn new(inner: UnixStream) -> Self {
        Self { inner, buffer: Vec::new(), checked: 0, scanner: Scanner::Preface }
    }
}

impl Connected for AuthorityStream {
    type ConnectInfo = UdsConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.inner.connect_info()
    }
}

impl AsyncRead for AuthorityStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let this = self.get_mut();
        while this.checked == 0 {
            let mut bytes = [0; FRAME_BYTES_MAX];
            let mut read = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut this.inner).poll_read(context, &mut read))?;
            if read.filled().is_empty() {
                // The end: an incomplete frame passes as it is.
                this.checked = this.buffer.len();
                break;
            }
            this.buffer.extend_from_slice(read.filled());
            this.checked = this.scanner.scan(&mut this.buffer);
        }
        let count = this.checked.min(into.remaining());
        into.put_slice(&this.buffer[..count]);
        this.buffer.drain(..count);
        this.checked -= count;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for AuthorityStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

/// Where in the client's bytes the scan is.
enum Scanner {
    Preface,
    /// In the frames; this many bytes of the current one pass unchanged.
    Frames(usize),
    /// This is not HTTP/2: all bytes pass.
    Opaque,
}

impl Scanner {
    /// Corrects the frames that are complete. Returns how many bytes may be passed on; the scan continues after them.
    fn scan(&mut self, bytes: &mut [u8]) -> usize {
        let mut at = 0;
        loop {
            let rest = &mut bytes[at..];
            match self {
                Self::Opaque => return at + rest.len(),
                Self::Preface if rest.len() < PREFACE.len() => return at,
                Self::Preface => {
                    *self =
                        if rest.starts_with(PREFACE) { Self::Frames(PREFACE.len()) } else { Self::Opaque };
                }
                Self::Frames(pass) if *pass > 0 => {
                    let count = rest.len().min(*pass);
                    *pass -= count;
                    at += count;
                    if *pass > 0 {
                        return at;
                    }
                }
                Self::Frames(pass) => {
                    let Some((header, payload)) = rest.split_at_mut_checked(FRAME_HEADER_BYTES) else {
                        return at;
                    };
                    let length =
                        usize::from(header[0]) << 16 | usize::from(header[1]) << 8 | usize::from(header[2]);
                    let (kind, flags) = (header[3], header[4]);
                    *pass = FRAME_HEADER_BYTES + length;
                    if kind == HEADERS && flags & FLAG_END_HEADERS != 0 && length <= FRAME_BYTES_MAX {
                        let Some(payload) = payload.get_mut(..length) else {
                            *pass = 0;
                            return at;
                        };
                        // What cannot be read is for the server to refuse.
                        let _ = correct_headers(payload, flags);
                    }
                }
            }
        }
    }
}

/// Corrects the authority in the payload of a HEADERS frame. `None` when it cannot be read to its end.
fn correct_headers(payload: &mut [u8], flags: u8) -> Option<()> {
    let (mut start, mut end) = (0, payload.len());
    if flags & FLAG_PADDED != 0 {
        end = end.checked_sub(usize::from(*payload.first()?))?;
        start += 1;
    }
    if flags & FLAG_PRIORITY != 0 {
        start += PRIORITY_BYTES;
    }
    correct_block(payload.get_mut(start..end)?)
}

/// Corrects the fields of a header block (RFC 7541, section 6). The length of each is known from its first bytes.
fn correct_block(block: &mut [u8]) -> Option<()> {
    let mut at = 0;
    while let Some(first) = block.get(at).copied() {
        let index_bits = match first {
            // An indexed field has no literal.
            0x80.. => {
                integer(block, &mut at, 7)?;
                continue;
            }
            0x40..0x80 => 6,
            // A new size of the dynamic table.
            0x20..0x40 => {
                integer(block, &mut at, 5)?;
                continue;
            }
            0x00..0x20 => 4,
        };
        let is_authority = match integer(block, &mut at, index_bits)? {
            0 => {
                let (name, coded) = string(block, &mut at)?;
                !coded && block[name] == *b":authority"
            }
            index => index == AUTHORITY_INDEX,
        };
        let (value, coded) = string(block, &mut at)?;
        if is_authority && !coded {
            correct_value(&mut block[value]);
        }
    }
    Some(())
}

/// An escaped path becomes a name.
fn correct_value(value: &mut [u8]) {
    if value.contains(&b'%') {
        for byte in value {
            if !byte.is_ascii_alphanumeric() && !b"-._~".contains(byte) {
                *byte = b'-';
            }
        }
    }
}

/// An integer of which the first byte has `bits` bits (RFC 7541, section 5.1).
fn integer(block: &[u8], at: &mut usize, bits: u32) -> Option<usize> {
    let mask = (1_usize << bits) - 1;
    let mut value = usize::from(*block.get(*at)?) & mask;
    *at += 1;
    if value < mask {
        return Some(value);
    }
    for shift in [0, 7, 14, 21] {
        let byte = *block.get(*at)?;
        *at += 1;
        value += usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// Where a string's bytes are, and whether they are Huffman-coded (RFC 7541, section 5.2).
fn string(block: &[u8], at: &mut usize) -> Option<(Range<usize>, bool)> {
    let coded = *block.get(*at)? & 0x80 != 0;
    let length = integer(block, at, 7)?;
    let range = *at..at.checked_add(length)?;
    block.get(range.clone())?;
    *at = range.end;
    Some((range, coded))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    fn literal(kind: &[u8], value: &[u8]) -> Vec<u8> {
        [kind, &[u8::try_from(value.len()).unwrap()], value].concat()
    }

    /// As the C core sends it: a path, an authority with a literal name, another field whose value has a `%`.
    fn block(authority: &[u8]) -> Vec<u8> {
        [
            &[0x83, 0x86][..],
            &literal(&[0x44], b"/retrovisor.v1.MachineService/ListMachines"),
            &literal(b"\x40\x0a:authority", authority),
            &literal(b"\x40\x01x", b"50%"),
        ]
        .concat()
    }

    fn scanned(stream: &[u8], step: usize) -> Vec<u8> {
        let (mut scanner, mut buffer, mut out) = (Scanner::Preface, Vec::new(), Vec::new());
        for bytes in stream.chunks(step) {
            buffer.extend_from_slice(bytes);
            let count = scanner.scan(&mut buffer);
            out.extend(buffer.drain(..count));
        }
        [out, buffer].concat()
    }

    #[test]
    fn an_escaped_path_is_corrected_in_place_and_nothing_else() {
        let stream = |authority: &[u8], data: &[u8]| {
            let padded = [&[3][..], &[0; PRIORITY_BYTES], &block(authority), &[0; 3]].concat();
            let static_name = literal(&[0x41], authority);
            [
                PREFACE,
                &frame(4, 0, &[]),
                &frame(HEADERS, FLAG_END_HEADERS, &block(authority)),
                &frame(0, 1, data),
                &frame(HEADERS, FLAG_END_HEADERS | FLAG_PADDED | FLAG_PRIORITY, &padded),
                &frame(HEADERS, FLAG_END_HEADERS, &static_name),
            ]
            .concat()
        };
        let data = block(b"tmp%2Fd.sock");
        for step in [1, 7, 4096] {
            assert_eq!(
                scanned(&stream(b"tmp%2Fd.sock", &data), step),
                stream(b"tmp-2Fd.sock", &data),
                "{step}"
            );
            let good = stream(b"localhost:7070", &data);
            assert_eq!(scanned(&good, step), good, "{step}");
        }
    }

    #[test]
    fn what_is_malformed_or_not_http2_passes_unchanged() {
        let cut = [PREFACE, &frame(HEADERS, FLAG_END_HEADERS, &block(b"a%2Fb"))[..20]].concat();
        let too_long = [PREFACE, &frame(HEADERS, FLAG_END_HEADERS, b"\x41\x7f\xff\xff\xff\xff%")].concat();
        let coded = [PREFACE, &frame(HEADERS, FLAG_END_HEADERS, b"\x41\x83%%%")].concat();
        for stream in [&cut[..], &too_long, &coded, b"GET / HTTP/1.1\r\nHost: a%2Fb\r\n\r\n", b"PRI"] {
            assert_eq!(scanned(stream, 3), stream);
        }
    }
}
