//! The image under an overlay, and its backing images in turn: read, never written.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use retrovisor_guest::{BaseFile, DiskBase};

use crate::qemu::qcow2::disk::{Content, Disk};
use crate::qemu::qcow2::header::Header;

/// Bound on the number of backing images.
const DEPTH_MAX: usize = 32;

/// The initial contents of a disk.
pub(in crate::qemu) struct Base {
    /// Top first.
    layers: Vec<Layer>,
}

enum Layer {
    Raw(File),
    Qcow2(Box<Disk<File>>),
}

/// The path and the format of an image.
struct Place {
    path: PathBuf,
    format: String,
}

impl Base {
    /// The base of the overlay at `path`; `None` when it has none.
    pub(in crate::qemu) fn of(path: &Path) -> Result<Option<(DiskBase, Self)>, String> {
        let mut identity = DiskBase::default();
        let mut base = Self { layers: Vec::new() };
        let mut next = under(path)?;
        while let Some(place) = next {
            let at = |error: String| format!("{}: {error}", place.path.display());
            if base.layers.len() == DEPTH_MAX {
                return Err(at(format!("more than {DEPTH_MAX} images are based on one another")));
            }
            let file = File::open(&place.path).map_err(|error| at(error.to_string()))?;
            let found = file.metadata().map_err(|error| at(error.to_string()))?;
            identity.files.push(BaseFile {
                path: place.path.display().to_string(),
                length_bytes: found.len(),
                modified_ns: found.mtime().saturating_mul(1_000_000_000).saturating_add(found.mtime_nsec()),
            });
            match place.format.as_str() {
                "raw" => {
                    base.layers.push(Layer::Raw(file));
                    next = None;
                }
                "qcow2" => {
                    base.layers.push(Layer::Qcow2(Box::new(Disk::now(file).map_err(at)?)));
                    next = under(&place.path)?;
                }
                format => return Err(at(format!("images of format {format} are not read here"))),
            }
        }
        Ok((!identity.files.is_empty()).then_some((identity, base)))
    }

    /// Reads the initial contents of the disk from `offset` on into `into`. Past an image's end are zeros.
    pub(in crate::qemu) fn read(&mut self, offset: u64, into: &mut [u8]) -> Result<(), String> {
        read(&mut self.layers, offset, into)
    }
}

fn read(layers: &mut [Layer], offset: u64, into: &mut [u8]) -> Result<(), String> {
    let Some((layer, lower)) = layers.split_first_mut() else {
        into.fill(0);
        return Ok(());
    };
    match layer {
        Layer::Raw(file) => {
            let mut done = 0;
            while done < into.len() {
                match file.read_at(&mut into[done..], offset + done as u64) {
                    Ok(0) => break,
                    Ok(length) => done += length,
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error.to_string()),
                }
            }
            into[done..].fill(0);
            Ok(())
        }
        Layer::Qcow2(disk) => {
            let cluster_bytes = disk.cluster_bytes() as u64;
            let mut done = 0;
            while done < into.len() {
                let at = offset + done as u64;
                // Below the bytes of a cluster, which is at most 2 MiB.
                let within = usize::try_from(at % cluster_bytes).unwrap_or(0);
                let rest = disk.cluster_bytes() - within;
                let end = disk.size_bytes();
                let length = rest.min(into.len() - done);
                let part = &mut into[done..done + length];
                if at >= end {
                    part.fill(0);
                } else {
                    // Past the end of this image the images under it are not visible.
                    let seen = usize::try_from(end - at).unwrap_or(usize::MAX).min(length);
                    match disk.cluster(at / cluster_bytes)? {
                        Content::Backing => read(lower, at, &mut part[..seen])?,
                        Content::Zero => part[..seen].fill(0),
                        Content::Data(bytes) => part[..seen].copy_from_slice(&bytes[within..within + seen]),
                    }
                    part[seen..].fill(0);
                }
                done += length;
            }
            Ok(())
        }
    }
}

/// The backing file that a qcow2 file names.
fn under(path: &Path) -> Result<Option<Place>, String> {
    let at = |error: String| format!("{}: {error}", path.display());
    let file = File::open(path).map_err(|error| at(error.to_string()))?;
    let header = Header::read(&file).map_err(|error| at(error.to_string()))?;
    let header = header.ok_or_else(|| at("it is not a qcow2 file".into()))?;
    let Some(name) = header.backing_file(&file).map_err(|error| at(error.to_string()))? else {
        return Ok(None);
    };
    let format = header.backing_format(&file).map_err(at)?;
    let format = format.ok_or_else(|| at("it does not say which format the image under it has".into()))?;
    let name = Path::new(OsStr::from_bytes(&name));
    let path = path.parent().unwrap_or(Path::new("/")).join(name);
    Ok(Some(Place { path, format: String::from_utf8_lossy(&format).into_owned() }))
}
