use std::collections::BTreeMap;

use retrovisor_guest::{MemoryView, PAGE_SIZE};

use super::{
    ChangedFrame, Difference, FieldChange, ObjectChange,
    groups::group,
    objects::{field_rank, is_alive, is_plumbing, label, structure_rank, type_of, variable_rank},
    values,
};
use crate::{
    Kernel, OwnerMap, PageOwner,
    btf::{Leaf, LeafKind, Types},
    hash::IntegerMap,
    linux::paths::Paths,
    pages::Pages,
    probe::Probe,
    reader::Reader,
};

/// Objects and variables that are listed.
const OBJECTS_MAX: usize = 40;
const FIELDS_MAX: usize = 8;
/// A structure in which only fields of this rank or above changed is not reported.
const QUIET_RANK: usize = 150;
/// Changed objects whose fields are compared; further ones are only counted.
const CANDIDATES_MAX: usize = 20_000;

/// One of the two instants.
pub(crate) struct Side<'s> {
    probe: Probe<'s>,
    paths: Option<Paths>,
}

/// Words of one structure that differ.
struct Touched {
    structure: String,
    type_id: Option<u32>,
    since: u64,
    /// Offsets of 8-byte words from the start of the structure.
    words: Vec<u64>,
}

/// Compares two instants of one kernel by their owner maps, in the frames that differ. Each frame has the step at which
/// it first differed.
#[must_use]
pub fn compare(
    kernel: &Kernel,
    (before, old): (&dyn MemoryView, &OwnerMap),
    (after, new): (&dyn MemoryView, &OwnerMap),
    changed: &[ChangedFrame],
) -> Difference {
    let mut difference = Difference::default();
    group(old, new, changed, &mut difference);
    let (old_pages, new_pages) = (Pages::new(before), Pages::new(after));
    let old_reader = Reader::new(&old_pages, kernel.address_space());
    let new_reader = Reader::new(&new_pages, kernel.address_space());
    let (Some(old_probe), Some(new_probe)) =
        (Probe::new(kernel, &old_reader), Probe::new(kernel, &new_reader))
    else {
        return difference;
    };
    let sides = [old_probe, new_probe].map(|probe| Side { paths: Paths::new(&probe), probe });
    let mut structures: BTreeMap<u64, Touched> = BTreeMap::new();
    let mut variables: BTreeMap<(u64, String), Touched> = BTreeMap::new();
    let types: BTreeMap<String, u32> = sides[1].probe.types.variables().into_iter().collect();
    for frame in changed {
        let owner = new.explain(frame.gfn);
        if !matches!(
            owner,
            PageOwner::Slab { .. } | PageOwner::Kernel { part: "data", .. } | PageOwner::PerCpu { .. }
        ) {
            continue;
        }
        let (Some(then), Some(now)) = (old_pages.frame(frame.gfn), new_pages.frame(frame.gfn)) else {
            continue;
        };
        let differing =
            (0..PAGE_SIZE as u64).step_by(8).zip(then.as_chunks::<8>().0.iter().zip(now.as_chunks::<8>().0));
        let differing = differing.filter(|(_, (then, now))| then != now).map(|(offset, _)| offset);
        match owner {
            PageOwner::Slab { .. } => {
                slab_words(&sides[1].probe, new, *frame, differing, &mut structures);
            }
            PageOwner::Kernel { virt, .. } => {
                for offset in differing {
                    let Some(place) = kernel.place(virt + offset) else { continue };
                    let base = virt + offset - place.offset;
                    touch(
                        &mut variables,
                        (base, place.name.to_owned()),
                        None,
                        frame.since,
                        place.offset & !7,
                    );
                }
            }
            PageOwner::PerCpu { cpu, offset: start, .. } => {
                let first = kernel.symbol("__per_cpu_start").unwrap_or(0);
                let end = kernel.symbol("__per_cpu_end").unwrap_or(0);
                let of_cpu = sides[1].probe.cpu_offsets().iter().find(|(number, _)| *number == cpu);
                let Some((_, of_cpu)) = of_cpu else { continue };
                for offset in differing {
                    let at = first.wrapping_add(start + offset);
                    let Some(place) = (at < end).then(|| kernel.symbols().place(at)).flatten() else {
                        continue;
                    };
                    let base = (at - place.offset).wrapping_add(*of_cpu);
                    let known = types.get(place.name).copied();
                    touch(
                        &mut variables,
                        (base, format!("{} of CPU {cpu}", place.name)),
                        known,
                        frame.since,
                        place.offset & !7,
                    );
                }
            }
            _ => {}
        }
    }
    tell_objects(&sides, structures, &mut difference);
    tell_variables(&sides, variables, &mut difference);
    difference
}

fn touch(
    variables: &mut BTreeMap<(u64, String), Touched>,
    key: (u64, String),
    type_id: Option<u32>,
    since: u64,
    word: u64,
) {
    if variables.len() >= CANDIDATES_MAX && !variables.contains_key(&key) {
        return;
    }
    let touched = variables.entry(key).or_insert_with(|| Touched {
        structure: String::new(),
        type_id,
        since,
        words: Vec::new(),
    });
    touched.since = touched.since.min(since);
    touched.words.push(word);
}

/// Assigns the words of a slab's frame that differ to the objects they are in.
fn slab_words(
    probe: &Probe,
    map: &OwnerMap,
    frame: ChangedFrame,
    words: impl Iterator<Item = u64>,
    structures: &mut BTreeMap<u64, Touched>,
) {
    let Some((cache, part, objects)) = map.slab(frame.gfn) else { return };
    let Some((type_id, structure)) = type_of(probe, cache) else { return };
    let Some(direct) = probe.word("page_offset_base") else { return };
    let start = direct.wrapping_add(frame.gfn.gpa().0.wrapping_sub(part * PAGE_SIZE as u64));
    for word in words {
        let offset = part * PAGE_SIZE as u64 + word;
        let (Some(number), Some(inside)) =
            (offset.checked_div(cache.stride_bytes), offset.checked_rem(cache.stride_bytes))
        else {
            return;
        };
        if number >= objects || (structures.len() >= CANDIDATES_MAX) {
            continue;
        }
        let base = start.wrapping_add(number * cache.stride_bytes);
        let touched = structures.entry(base).or_insert_with(|| Touched {
            structure: structure.clone(),
            type_id: Some(type_id),
            since: frame.since,
            words: Vec::new(),
        });
        touched.since = touched.since.min(frame.since);
        touched.words.push(inside & !7);
    }
}

/// The fields in which the given words differ and whose own values differ.
fn fields(sides: &[Side; 2], leaves: &[Leaf], base: u64, words: &[u64]) -> (Vec<FieldChange>, u64) {
    let mut found: Vec<(usize, FieldChange)> = Vec::new();
    let mut last = None;
    for word in words {
        let first = leaves.partition_point(|leaf| leaf.offset_bytes + leaf.size_bytes.max(1) <= *word);
        // A long leaf can end after a leaf that begins later: stepping back finds long leaves that reach into the word.
        for (at, leaf) in leaves.iter().enumerate().skip(first.saturating_sub(8)) {
            if leaf.offset_bytes >= word + 8 {
                break;
            }
            if leaf.offset_bytes + leaf.size_bytes <= *word || last.is_some_and(|last| at <= last) {
                continue;
            }
            last = Some(at);
            let [before, after] = [&sides[0], &sides[1]].map(|side| values::format(&side.probe, base, leaf));
            if let (Some(before), Some(after)) = (before, after)
                && before != after
            {
                // What an object is tells more than its address.
                let nameless = matches!(leaf.kind, LeafKind::Pointer) && after.starts_with("0x");
                let rank = field_rank(&leaf.path);
                let rank = if nameless { rank.max(QUIET_RANK) } else { rank };
                let field = leaf.path.strip_prefix("vfs_inode.").unwrap_or(&leaf.path).to_owned();
                found.push((rank, FieldChange { field, before, after }));
            }
        }
    }
    found.sort_by_key(|(rank, _)| *rank);
    // Only links, locks or statistics changed: nothing is reported.
    if found.first().is_none_or(|(rank, _)| *rank >= QUIET_RANK) {
        return (Vec::new(), 0);
    }
    let all = found.len() as u64;
    let reported = found.into_iter().take_while(|(rank, _)| *rank < QUIET_RANK).take(FIELDS_MAX);
    let reported: Vec<FieldChange> = reported.map(|(_, field)| field).collect();
    let rest = all - reported.len() as u64;
    (reported, rest)
}

/// The leaves of each type, computed once.
#[derive(Default)]
struct Gathered(IntegerMap<u32, Vec<Leaf>>);

impl Gathered {
    fn of(&mut self, types: &Types, type_id: u32) -> &[Leaf] {
        self.0.entry(type_id).or_insert_with(|| types.leaves(type_id))
    }
}

fn tell_objects(sides: &[Side; 2], structures: BTreeMap<u64, Touched>, difference: &mut Difference) {
    let mut all: Vec<(u64, Touched, [bool; 2])> = structures
        .into_iter()
        .map(|(address, touched)| {
            let alive = [&sides[0], &sides[1]].map(|side| is_alive(&side.probe, &touched.structure, address));
            (address, touched, alive)
        })
        .filter(|(_, touched, alive)| *alive != [false, false] && !is_plumbing(&touched.structure))
        .collect();
    // Within one type: first what changed earliest; at equal steps objects that are new or gone, then those with the
    // fewest changes.
    all.sort_by_key(|(address, touched, alive)| {
        let stayed = *alive == [true, true];
        (structure_rank(&touched.structure), touched.since, stayed, touched.words.len(), *address)
    });
    let mut gathered = Gathered::default();
    // Limits each type, so that one type cannot displace the others.
    let mut reported: BTreeMap<String, usize> = BTreeMap::new();
    for (address, touched, alive) in all {
        let of_kind = reported.entry(touched.structure.clone()).or_default();
        if difference.objects.len() >= OBJECTS_MAX || *of_kind >= OBJECTS_MAX / 4 {
            difference.objects_left_out += 1;
            continue;
        }
        let Some(type_id) = touched.type_id else { continue };
        let leaves = gathered.of(sides[1].probe.types, type_id);
        let (fields, fields_left_out) = fields(sides, leaves, address, &touched.words);
        if fields.is_empty() {
            continue;
        }
        let (structure, fields, fields_left_out) = if alive == [true, true] {
            (touched.structure.clone(), fields, fields_left_out)
        } else {
            // Of a new or gone object only the fields that identify it are listed.
            let word = if alive[1] { "new" } else { "gone" };
            let telling = fields.into_iter().filter(|field| field_rank(&field.field) < 100).take(3);
            // The contents before an object was allocated, and after it was freed, are another object's.
            let own = |field: FieldChange| match alive {
                [false, _] => FieldChange { before: String::new(), ..field },
                _ => FieldChange { after: String::new(), ..field },
            };
            (format!("{word} {}", touched.structure), telling.map(own).collect(), 0)
        };
        let name = |side: &Side| label(&side.probe, side.paths.as_ref(), &touched.structure, address);
        let (first, second) = if alive[1] { (1, 0) } else { (0, 1) };
        let object = name(&sides[first]).or_else(|| name(&sides[second]));
        let object = object.unwrap_or_else(|| format!("{address:#x}"));
        *of_kind += 1;
        difference.objects.push(ObjectChange {
            structure,
            object,
            address,
            since: touched.since,
            fields,
            fields_left_out,
        });
    }
}

fn tell_variables(
    sides: &[Side; 2],
    variables: BTreeMap<(u64, String), Touched>,
    difference: &mut Difference,
) {
    let types = sides[1].probe.types;
    let mut gathered = Gathered::default();
    let mut all: Vec<((u64, String), Touched)> = variables.into_iter().collect();
    all.sort_by_key(|((_, name), touched)| {
        (variable_rank(name), touched.since, touched.words.len(), name.clone())
    });
    for ((address, object), touched) in all {
        if difference.variables.len() >= OBJECTS_MAX {
            difference.variables_left_out += 1;
            continue;
        }
        let known = touched.type_id.or_else(|| types.structure(known_type(&object)?));
        let (fields, fields_left_out) = match known {
            Some(type_id) => fields(sides, gathered.of(types, type_id), address, &touched.words),
            None => words(sides, address, &touched.words),
        };
        if fields.is_empty() {
            continue;
        }
        let structure = known_type(&object).unwrap_or_default().to_owned();
        difference.variables.push(ObjectChange {
            structure,
            object,
            address,
            since: touched.since,
            fields,
            fields_left_out,
        });
    }
}

/// The type of a variable that BTF does not describe, from a table in this crate.
fn known_type(symbol: &str) -> Option<&'static str> {
    Some(match symbol {
        "init_task" => "task_struct",
        "init_cred" => "cred",
        "init_mm" => "mm_struct",
        "init_net" => "net",
        "init_pid_ns" => "pid_namespace",
        "init_uts_ns" => "uts_namespace",
        "init_user_ns" => "user_namespace",
        "modules" => "list_head",
        "timekeeper" | "tk_core" => "timekeeper",
        "tcp_hashinfo" => "inet_hashinfo",
        "contig_page_data" => "pglist_data",
        _ => return None,
    })
}

fn words(sides: &[Side; 2], base: u64, words: &[u64]) -> (Vec<FieldChange>, u64) {
    let change = |offset: &u64| {
        let value = |side: &Side| side.probe.reader.u64(base.checked_add(*offset)?);
        let (before, after) = (value(&sides[0])?, value(&sides[1])?);
        Some(FieldChange {
            field: if *offset == 0 { String::new() } else { format!("+{offset:#x}") },
            before: values::word(&sides[0].probe, before),
            after: values::word(&sides[1].probe, after),
        })
    };
    let reported: Vec<FieldChange> = words.iter().take(FIELDS_MAX).filter_map(change).collect();
    (reported, words.len().saturating_sub(FIELDS_MAX) as u64)
}
