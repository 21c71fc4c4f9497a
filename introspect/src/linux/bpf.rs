use std::fmt::Write;

use super::{code::Code, xarray::Entries};
use crate::fact::BpfProgram;

const NAME_MAX: usize = 16;
const FUNCTION_MAX: usize = 128;
const PROGRAMS_MAX: usize = 1 << 14;
const TAG_BYTES: usize = 8;

/// All loaded eBPF programs, ascending by id. `None` when they cannot be read.
pub(crate) fn programs(code: &Code) -> Option<Vec<BpfProgram>> {
    let (probe, reader) = (code.probe, code.probe.reader);
    let program = |path: &str| probe.field("bpf_prog", path);
    let aux = |path: &str| probe.field("bpf_prog_aux", path);
    let head = probe.number("prog_idr", "idr", "idr_rt.xa_head")?;
    let (kind, tag, details) = (program("type")?, program("tag")?, program("aux")?);
    let (id, name) = (aux("id")?, aux("name")?);
    let kinds = probe.types.enum_with("BPF_PROG_TYPE_KPROBE");
    let entries = Entries::walk(probe, head)?;
    if !entries.whole {
        probe.mark_torn();
    }
    let read = |at: u64| {
        let details = reader.pointer(at, details)?;
        let number = reader.number(at, kind)?;
        let kind = kinds.iter().find(|(_, value)| u64::try_from(*value) == Ok(number));
        let mut bytes = [0; TAG_BYTES];
        reader.read(at.checked_add(tag.offset_bytes)?, &mut bytes)?;
        let tag = bytes.iter().fold(String::new(), |mut tag, byte| {
            // Writing to a string cannot fail.
            let _ = write!(tag, "{byte:02x}");
            tag
        });
        let attached =
            aux("attach_func_name").and_then(|field| reader.pointer(details, field)).filter(|at| *at != 0);
        Some(BpfProgram {
            id: u32::try_from(reader.number(details, id)?).ok()?,
            kind: kind.map_or_else(
                || number.to_string(),
                |(name, _)| name.strip_prefix("BPF_PROG_TYPE_").unwrap_or(name).to_owned(),
            ),
            name: reader.string(details.checked_add(name.offset_bytes)?, NAME_MAX)?,
            tag,
            address: program("bpf_func").and_then(|field| reader.pointer(at, field)),
            jited_bytes: program("jited_len").and_then(|field| reader.number(at, field)).unwrap_or(0),
            attached: attached.and_then(|at| reader.string(at, FUNCTION_MAX)),
            loaded_ns: aux("load_time").and_then(|field| reader.number(details, field)),
        })
    };
    let mut programs: Vec<_> = entries.pointers.into_iter().take(PROGRAMS_MAX).filter_map(read).collect();
    programs.sort_by_key(|program| program.id);
    Some(programs)
}
