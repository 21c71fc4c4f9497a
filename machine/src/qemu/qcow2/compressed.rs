use std::io::Read as _;

/// Decompresses a cluster. Bytes after the compressed data in `bytes` are ignored.
pub(super) fn decompress(method: u8, bytes: &[u8], cluster_bytes: usize) -> Result<Vec<u8>, String> {
    let mut out = vec![0; cluster_bytes];
    let done = match method {
        0 => {
            let parts = std::iter::once(bytes);
            miniz_oxide::inflate::decompress_slice_iter_to_slice(&mut out, parts, false, true).ok()
        }
        1 => {
            let decoder = zstd::stream::read::Decoder::with_buffer(bytes);
            let read = decoder.and_then(|decoder| decoder.single_frame().read_exact(&mut out));
            read.is_ok().then_some(cluster_bytes)
        }
        _ => None,
    };
    if done == Some(cluster_bytes) { Ok(out) } else { Err("a compressed cluster cannot be read".into()) }
}
