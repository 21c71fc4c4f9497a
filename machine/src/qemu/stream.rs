//! QEMU's device-state stream, as far as introspection needs it: model-specific registers.

use retrovisor_guest::VcpuRegisters;
use serde_json::Value;

/// What every stream begins with.
const MAGIC: &[u8] = b"QEVM";
/// A section with all state of one device.
const SECTION_FULL: u8 = 4;
/// The section that describes the others, at the end.
const DESCRIPTION: u8 = 6;

/// Whether the bytes are a stream of the version that QEMU has written since 2006.
pub(super) fn is_stream(stream: &[u8]) -> bool {
    stream.starts_with(MAGIC) && stream.get(4..8) == Some(&[0, 0, 0, 3])
}

/// Offsets of fields in the state of a vCPU, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Fields {
    rip: usize,
    cr3: usize,
    lstar: usize,
    kernel_gs_base: usize,
}

/// Finds registers in the streams of one QEMU. Remembers their places, which seldom change.
#[derive(Default)]
pub(super) struct RegisterFinder {
    fields: Option<Fields>,
    places: Vec<usize>,
}

impl RegisterFinder {
    /// Adds registers that are in the stream and not in the monitor's output to `vcpus`. One that is not found, or is
    /// found next to other values of RIP and CR3 than the vCPU's, stays `None`.
    pub(super) fn complete(&mut self, stream: &[u8], vcpus: &mut [VcpuRegisters]) {
        if self.fields.is_none() {
            self.fields = describe(stream).and_then(|description| Fields::of(&description));
        }
        let Some(fields) = self.fields else { return };
        self.places.resize(vcpus.len(), 0);
        for (instance, (registers, place)) in vcpus.iter_mut().zip(&mut self.places).enumerate() {
            let is_own = |place: usize| {
                let state = stream.get(place..)?;
                let matches = begins_vcpu(stream, place, instance)
                    && be64(state, fields.rip)? == registers.rip
                    && be64(state, fields.cr3)? == registers.cr3;
                matches.then_some(place)
            };
            let Some(found) = is_own(*place).or_else(|| (0..stream.len()).find_map(is_own)) else { continue };
            *place = found;
            registers.lstar = be64(&stream[found..], fields.lstar);
            registers.kernel_gs_base = be64(&stream[found..], fields.kernel_gs_base);
        }
    }
}

impl Fields {
    fn of(description: &Value) -> Option<Self> {
        let devices = description.get("devices")?.as_array()?;
        let cpu = devices.iter().find(|device| device.get("name").and_then(Value::as_str) == Some("cpu"))?;
        let fields = cpu.get("fields")?.as_array()?;
        let offset = |wanted: &str| {
            let mut offset = 0_u64;
            for field in fields {
                if field.get("name")?.as_str()? == wanted {
                    return usize::try_from(offset).ok();
                }
                let count = field.get("array_len").map_or(Some(1), Value::as_u64)?;
                offset = offset.checked_add(field.get("size")?.as_u64()?.checked_mul(count)?)?;
            }
            None
        };
        Some(Self {
            rip: offset("env.eip")?,
            cr3: offset("env.cr[3]")?,
            lstar: offset("env.lstar")?,
            kernel_gs_base: offset("env.kernelgsbase")?,
        })
    }
}

/// The description at the end of a stream: a byte, its length, and JSON up to the last byte.
fn describe(stream: &[u8]) -> Option<Value> {
    (0..stream.len().checked_sub(5)?).rev().find_map(|at| {
        let length = u32::from_be_bytes(*stream.get(at + 1..)?.first_chunk()?) as usize;
        let whole = stream[at] == DESCRIPTION && at + 5 + length == stream.len();
        whole.then(|| serde_json::from_slice(&stream[at + 5..]).ok()).flatten()
    })
}

/// Whether the state of vCPU `instance` begins at `place`: type, id (4), name with its length, instance (4), version
/// (4).
fn begins_vcpu(stream: &[u8], place: usize, instance: usize) -> bool {
    let Some(head) = place.checked_sub(17).and_then(|start| stream.get(start..place)) else { return false };
    let own = u32::try_from(instance).is_ok_and(|instance| head[9..13] == instance.to_be_bytes());
    head[5..9] == *b"\x03cpu" && head[0] == SECTION_FULL && own
}

fn be64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DESCRIBED: &str = r#"{"page_size": 4096, "devices": [{"name": "timer", "fields": []}, {"name": "cpu", "fields": [
        {"name": "env.regs", "array_len": 2, "type": "uint64", "size": 8}, {"name": "env.eip", "size": 8},
        {"name": "env.cr[3]", "size": 8}, {"name": "x", "size": 3}, {"name": "env.lstar", "size": 8},
        {"name": "env.kernelgsbase", "size": 8}]}]}"#;

    fn stream(vcpus: u32, shift: usize) -> Vec<u8> {
        let mut out = [&b"QEVM\0\0\0\x03"[..], &vec![0; shift]].concat();
        for instance in 0..vcpus {
            out.extend(b"\x04\0\0\0\x09\x03cpu");
            out.extend(instance.to_be_bytes());
            out.extend(12_u32.to_be_bytes());
            out.extend([1; 16]);
            for value in [100, 200] {
                out.extend((u64::from(instance) + value).to_be_bytes());
            }
            out.extend([7; 3]);
            for value in [300, 400] {
                out.extend((u64::from(instance) + value).to_be_bytes());
            }
        }
        out.extend(b"\0\x06");
        out.extend(u32::try_from(DESCRIBED.len()).unwrap().to_be_bytes());
        out.extend(DESCRIBED.as_bytes());
        out
    }

    fn vcpu(number: u64) -> VcpuRegisters {
        VcpuRegisters { rip: 100 + number, cr3: 200 + number, ..VcpuRegisters::default() }
    }

    #[test]
    fn registers_are_found_where_the_description_says_also_after_they_moved() {
        let mut finder = RegisterFinder::default();
        for shift in [0, 0, 30] {
            let stream = stream(2, shift);
            assert!(is_stream(&stream));
            let mut vcpus = [vcpu(0), vcpu(1)];
            finder.complete(&stream, &mut vcpus);
            assert_eq!(
                vcpus.map(|vcpu| (vcpu.lstar, vcpu.kernel_gs_base)),
                [(Some(300), Some(400)), (Some(301), Some(401))]
            );
        }
        let mut other = [vcpu(5)];
        finder.complete(&stream(1, 0), &mut other);
        assert_eq!(other[0].lstar, None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_searched_safely(cut in 0_usize..400, damage in prop::collection::vec((0_usize..500, any::<u8>()), 0..9)) {
            let mut stream = stream(1, 0);
            for (at, byte) in damage { let end = stream.len() - 1; stream[at.min(end)] = byte; }
            stream.truncate(stream.len().saturating_sub(cut));
            RegisterFinder::default().complete(&stream, &mut [vcpu(0), vcpu(1)]);
        }
    }
}
