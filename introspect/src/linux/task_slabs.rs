//! Finds tasks in the allocator's memory, independently of the kernel's lists.

use retrovisor_guest::{Gpa, PageToken};

use super::tasks::Tasks;
use crate::{
    btf::Field,
    hash::{IntegerMap, IntegerSet},
    pages::ReadAhead,
    probe::Probe,
};

/// The frames that hold tasks, kept from one observation to the next.
#[derive(Default)]
pub(crate) struct TaskSlabs {
    /// For each frame of page descriptors, by its number: its page token, and the descriptors (by number) of frames
    /// with tasks.
    known: IntegerMap<u64, (PageToken, Vec<u64>)>,
    /// Tasks on no list in the last observation, not yet confirmed: address and start time.
    suspects: IntegerMap<u64, u64>,
}

const PAGE: u64 = 4096;
const SLABS_MAX: usize = 1 << 15;
const OBJECTS_MAX: u64 = 128;
const FOUND_MAX: usize = 256;
const PID_MAX: u64 = 1 << 22;
/// `TASK_DEAD` and `TASK_NEW`.
const DEAD_OR_NEW: u64 = 0x80 | 0x800;

struct Fields {
    state: Field,
    exit_state: Field,
    usage: Field,
    pid: Field,
    thread_pid: Field,
    links: Field,
    first: Field,
    signal: Field,
    credential: Field,
    start_time: Field,
}

impl Fields {
    fn of(probe: &Probe) -> Option<Self> {
        let task = |path: &str| probe.field("task_struct", path);
        Some(Self {
            state: task("__state").or_else(|| task("state"))?,
            exit_state: task("exit_state")?,
            usage: task("usage.refs.counter")?,
            pid: task("pid")?,
            thread_pid: task("thread_pid")?,
            links: task("pid_links")?,
            first: probe.field("pid", "tasks")?,
            signal: task("signal")?,
            credential: task("real_cred")?,
            start_time: task("start_boottime").or_else(|| task("real_start_time"))?,
        })
    }
}

impl TaskSlabs {
    /// Drops the state of the last observation.
    pub(crate) fn forget(&mut self) {
        self.suspects.clear();
    }

    /// Adds the living tasks that none of the kernel's lists contains.
    pub(crate) fn find_unlisted(&mut self, probe: &Probe, tasks: &mut Tasks) {
        if !tasks.comparable {
            self.suspects.clear();
            return;
        }
        let listed: IntegerSet<u64> = tasks.all.iter().map(|task| task.address).collect();
        let Some(fields) = Fields::of(probe) else { return };
        let objects = self.objects(probe).unwrap_or_default();
        let mut suspects = IntegerMap::default();
        for address in objects.into_iter().filter(|address| !listed.contains(address)) {
            let Some((start_time, proven)) = living(probe, &fields, address) else { continue };
            let again = self.suspects.get(&address) == Some(&start_time);
            if (proven || again) && tasks.hidden.len() < FOUND_MAX {
                tasks.add_unlisted(probe, address);
            }
            suspects.insert(address, start_time);
        }
        self.suspects = suspects;
    }

    /// The addresses of current and former tasks.
    fn objects(&mut self, probe: &Probe) -> Option<Vec<u64>> {
        let cache = probe.word("task_struct_cachep").filter(|cache| *cache != 0)?;
        let number = |path: &str| probe.reader.number(cache, probe.field("kmem_cache", path)?);
        let size = number("size").filter(|size| (512..=1 << 16).contains(size))?;
        let first = number("red_left_pad").unwrap_or(0);
        let count = probe.field("slab", "objects").or_else(|| probe.field("page", "objects"))?;
        let (base, direct) = (probe.word("vmemmap_base")?, probe.word("page_offset_base")?);
        let descriptor = probe.types.size_of("page")?;
        let mut objects = Vec::new();
        for frame in self.slabs(probe, cache, base, descriptor)? {
            let Some(count) = probe.reader.number(base + frame * descriptor, count) else { continue };
            let start = direct.checked_add(frame * PAGE)?.checked_add(first)?;
            objects.extend((0..count.min(OBJECTS_MAX)).map(|index| start.wrapping_add(index * size)));
        }
        Some(objects)
    }

    /// The frames (the first of each block) that the allocator uses for tasks.
    fn slabs(&mut self, probe: &Probe, cache: u64, base: u64, descriptor: u64) -> Option<Vec<u64>> {
        let owner = probe.field("slab", "slab_cache").or_else(|| probe.field("page", "slab_cache"))?;
        let owner = usize::try_from(owner.offset_bytes).ok()?;
        if !PAGE.is_multiple_of(descriptor) {
            return None;
        }
        let (pages, per_frame) = (probe.reader.pages(), PAGE / descriptor);
        let count = pages.view().layout().gfns().last().map_or(0, |last| last.0 + 1);
        let (mut slabs, mut ahead) = (Vec::new(), ReadAhead::default());
        for number in 0..count.div_ceil(per_frame) {
            let virt = base.checked_add(number * PAGE)?;
            // Holes of guest memory have no descriptors.
            let Some(gfn) = probe.reader.translate(virt).map(Gpa::gfn) else { continue };
            let token = pages.view().token(gfn);
            if let Some((_, known)) = self.known.get(&number).filter(|(known, _)| Some(*known) == token) {
                slabs.extend(known);
                continue;
            }
            // Without page tokens all are read, many at once.
            let kept = token.and_then(|_| pages.frame(gfn));
            let frame = match &kept {
                Some(kept) => Some(&**kept),
                None => ahead.frame(pages, gfn, usize::MAX),
            };
            let Some(frame) = frame else { continue };
            let step = usize::try_from(descriptor).ok()?;
            let found: Vec<u64> = (number * per_frame..)
                .zip(frame.chunks_exact(step))
                .filter(|(_, page)| {
                    page.get(owner..).and_then(|bytes| bytes.first_chunk()) == Some(&cache.to_le_bytes())
                })
                .map(|(index, _)| index)
                .collect();
            slabs.extend(&found);
            if let Some(token) = token {
                self.known.insert(number, (token, found));
            }
            if slabs.len() > SLABS_MAX {
                break;
            }
        }
        slabs.truncate(SLABS_MAX);
        Some(slabs)
    }
}

/// The start time of a living task, and whether its pid leads back to it; `None` for a task that is dead or being
/// created, and for other data.
fn living(probe: &Probe, fields: &Fields, address: u64) -> Option<(u64, bool)> {
    let number = |field: Field| probe.reader.number(address, field);
    let alive = number(fields.state)? & DEAD_OR_NEW == 0
        && number(fields.exit_state)? == 0
        && (1..1 << 31).contains(&number(fields.usage)?)
        && (1..=PID_MAX).contains(&number(fields.pid)?)
        && number(fields.signal)? != 0
        && number(fields.credential)? != 0;
    let start_time = number(fields.start_time).filter(|time| alive && *time != 0)?;
    let pid = number(fields.thread_pid).filter(|pid| *pid != 0)?;
    let back = probe.reader.pointer(pid, fields.first)?;
    Some((start_time, back == address.wrapping_add(fields.links.offset_bytes)))
}
