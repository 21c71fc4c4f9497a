use std::fs::File;
use std::os::unix::fs::FileExt;

/// Bytes that are read by offset: a file, or memory in tests and fuzzers.
pub(in crate::qemu) trait Source {
    /// Length in bytes.
    fn length_bytes(&self) -> std::io::Result<u64>;
    /// Fills `into` from `offset` on; an error when there are not this many bytes.
    fn read_at(&self, into: &mut [u8], offset: u64) -> std::io::Result<()>;
}

impl Source for File {
    fn length_bytes(&self) -> std::io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, into: &mut [u8], offset: u64) -> std::io::Result<()> {
        self.read_exact_at(into, offset)
    }
}

#[cfg(test)]
impl Source for Vec<u8> {
    fn length_bytes(&self) -> std::io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn read_at(&self, into: &mut [u8], offset: u64) -> std::io::Result<()> {
        let start = usize::try_from(offset).ok();
        let bytes = start.and_then(|start| self.get(start..start.checked_add(into.len())?));
        into.copy_from_slice(bytes.ok_or(std::io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// Bytes at an offset from the file itself.
pub(super) fn read(source: &dyn Source, offset: u64, length: usize) -> Result<Vec<u8>, String> {
    // Files are addressed with signed offsets.
    if offset > i64::MAX as u64 - length as u64 {
        return Err("a table past all files".into());
    }
    let mut bytes = vec![0; length];
    source.read_at(&mut bytes, offset).map_err(|error| error.to_string())?;
    Ok(bytes)
}
