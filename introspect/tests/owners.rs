//! Compares the owners of frames with the guest's own reports: /proc/kpageflags, /proc/PID/pagemap and maps,
//! /proc/slabinfo.
#![expect(clippy::unwrap_used, reason = "a test")]

mod live;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use live::{Guest, Setting, cache};
use retrovisor_guest::{Gfn, MemoryView};
use retrovisor_introspect::{Introspector, OwnerMap, OwnerReader, PageOwner};

/// Bits of /proc/kpageflags.
const SLAB: u64 = 1 << 7;
const BUDDY: u64 = 1 << 10;
const ANONYMOUS: u64 = 1 << 12;
const LRU: u64 = 1 << 5;
const PAGE_TABLE: u64 = 1 << 26;
const NO_PAGE: u64 = 1 << 20;

/// One line of /proc/PID/maps with its frames from pagemap.
struct Area {
    pid: i32,
    start: u64,
    name: String,
    /// Page of the area → frame.
    frames: Vec<(u64, Gfn)>,
}

/// The guest's reports about its frames.
struct Reported {
    /// The flags of each frame.
    flags: Vec<u64>,
    /// Cache → frames.
    slabs: BTreeMap<String, usize>,
}

impl Reported {
    fn ask(guest: &mut Guest) -> Self {
        let text = guest.run("hexdump -v -e '8/1 \"%02x\" \"\\n\"' /proc/kpageflags | uniq -c");
        let mut flags = Vec::new();
        for line in text.lines() {
            let (count, bytes) = line.trim().split_once(' ').unwrap();
            let word = u64::from_str_radix(bytes.trim(), 16).unwrap().swap_bytes();
            flags.extend(std::iter::repeat_n(word, count.parse().unwrap()));
        }
        let text = guest.run("cat /proc/slabinfo");
        let slabs = text.lines().skip(2).filter_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let pages: usize = words.get(5)?.parse().ok()?;
            Some((words[0].to_owned(), pages * words.get(14)?.parse::<usize>().ok()?))
        });
        Self { flags, slabs: slabs.collect() }
    }
}

fn areas_of(guest: &mut Guest, comm: &str) -> Vec<Area> {
    let pid: i32 = guest.run(&format!("pidof {comm}")).split_whitespace().next().unwrap().parse().unwrap();
    let maps = guest.run(&format!("cat /proc/{pid}/maps"));
    let mut areas = Vec::new();
    for line in maps.lines().filter(|line| !line.contains("[vsyscall]")) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (start, end) = words[0].split_once('-').unwrap();
        let (start, end) = (u64::from_str_radix(start, 16).unwrap(), u64::from_str_radix(end, 16).unwrap());
        let entries = guest.run(&format!(
            "dd if=/proc/{pid}/pagemap bs=8 skip={} count={} 2>/dev/null | hexdump -v -e '8/1 \"%02x\" \"\\n\"'",
            start / 4096,
            (end - start) / 4096
        ));
        let entry = |line: &str| u64::from_str_radix(line.trim(), 16).unwrap().swap_bytes();
        let frames = (0..)
            .zip(entries.lines().map(entry))
            .filter(|(_, entry)| entry >> 63 == 1)
            .map(|(page, entry)| (page, Gfn(entry & ((1 << 55) - 1))));
        let name = words.get(5..).unwrap_or_default().join(" ");
        areas.push(Area { pid, start, name, frames: frames.collect() });
    }
    areas
}

#[test]
fn frames_of_6_1_cloud() {
    frames_belong_to_whom_the_guest_says(&Setting::default());
}
#[test]
fn frames_of_5_10_cloud() {
    frames_of("bullseye-cloud", "pti=on");
}
#[test]
fn frames_of_7_cloud() {
    frames_of("sid-cloud", "");
}
#[test]
#[ignore = "of the full matrix: make test-kernels"]
fn frames_of_6_12_cloud() {
    frames_of("trixie-cloud", "pti=on");
}
#[test]
#[ignore = "of the full matrix: make test-kernels"]
fn frames_of_5_10_plain() {
    frames_of("bullseye-plain", "");
}
#[test]
#[ignore = "of the full matrix: make test-kernels"]
fn frames_of_6_1_plain() {
    frames_of("bookworm-plain", "pti=on");
}
#[test]
#[ignore = "of the full matrix: make test-kernels"]
fn frames_of_6_12_plain() {
    frames_of("trixie-plain", "");
}
#[test]
#[ignore = "of the full matrix: make test-kernels"]
fn frames_of_7_plain() {
    frames_of("sid-plain", "pti=on");
}

fn frames_of(kernel: &str, append: &'static str) {
    let folder = cache().unwrap_or_default().join("kernels").join(kernel);
    if !folder.join("vmlinuz").is_file() {
        eprintln!(
            "SKIPPED: there is no kernel {kernel}: `make setup` (all of them: `make test-kernels`) fetches it"
        );
        return;
    }
    frames_belong_to_whom_the_guest_says(&Setting {
        folder,
        append,
        accelerator: "tcg,thread=single",
        ..Setting::default()
    });
}

fn frames_belong_to_whom_the_guest_says(setting: &Setting) {
    let Some(mut guest) = Guest::boot_on(setting, None) else { return };
    guest.run("dd if=/dev/urandom of=/run/known bs=4096 count=13; mkdir -p /run/work/deep; cp /run/known /run/work/deep/copy");
    let areas: Vec<Area> = ["httpd", "syslogd"].iter().flat_map(|comm| areas_of(&mut guest, comm)).collect();
    let before = Reported::ask(&mut guest);
    guest.stop();
    let (memory, registers) = (guest.memory(), guest.registers());
    let mut introspector = Introspector::new();
    let observation = introspector.observe(&memory, &registers);
    let kernel = introspector.kernel().unwrap();
    let start = Instant::now();
    let mut map = OwnerReader::new().read(&kernel, &memory, &observation);
    eprintln!("owner map: {:?}", start.elapsed());
    let start = Instant::now();
    map.trace_allocations(&memory);
    eprintln!("trace of allocations: {:?}", start.elapsed());
    let owners: Vec<PageOwner> = memory.layout().gfns().map(|gfn| map.explain(gfn)).collect();
    files_are_found(&memory, &owners);
    areas_agree(&map, &areas);
    kernel_memory_is_named(&kernel, &memory, &map, &owners, &observation);
    coverage(&owners);
    shares_are_the_sum(&map, &owners);
    guest.resume();
    let after = Reported::ask(&mut guest);
    flags_agree(&owners, &before, &after);
    slabs_agree(&owners, &before, &after);
}

/// The frames of two newly written files have the expected contents, in order.
fn files_are_found(memory: &dyn MemoryView, owners: &[PageOwner]) {
    let pages = |path: &str| {
        let mut found: Vec<(u64, usize)> = Vec::new();
        for (frame, owner) in owners.iter().enumerate() {
            if let PageOwner::PageCache { file: Some(file), page, .. } = owner
                && &**file == path
            {
                found.push((*page, frame));
            }
        }
        found.sort_unstable();
        found
    };
    let (known, copy) = (pages("/run/known"), pages("/run/work/deep/copy"));
    let numbers = |pages: &[(u64, usize)]| pages.iter().map(|(page, _)| *page).collect::<Vec<_>>();
    assert_eq!(numbers(&known), (0..13).collect::<Vec<_>>());
    assert_eq!(numbers(&copy), (0..13).collect::<Vec<_>>());
    for ((_, one), (_, other)) in known.iter().zip(&copy) {
        let (mut first, mut second) = ([0; 4096], [0; 4096]);
        memory.read_page(Gfn(*one as u64), &mut first).unwrap();
        memory.read_page(Gfn(*other as u64), &mut second).unwrap();
        assert!(first == second && first != [0; 4096]);
    }
}

/// Every page in pagemap has its process, address and area as owner.
fn areas_agree(map: &OwnerMap, areas: &[Area]) {
    let mut compared = 0;
    for area in areas {
        for (page, gfn) in &area.frames {
            let virt = area.start + page * 4096;
            let mappers = map.mappers(*gfn, usize::MAX);
            let own = mappers.iter().find(|mapper| (mapper.pid, mapper.virt) == (area.pid, virt));
            let own = own.unwrap_or_else(|| panic!("{} {virt:#x} {gfn}: {mappers:?}", area.pid));
            assert_eq!(own.area.as_deref().unwrap_or_default(), area.name, "{own:?}");
            assert_eq!(own.others as usize + 1, mappers.len());
            compared += 1;
        }
    }
    let names: BTreeSet<&str> = areas.iter().map(|area| area.name.as_str()).collect();
    eprintln!("{compared} pages of {} areas: {names:?}", areas.len());
    assert!(compared > 100 && names.contains("[stack]") && names.contains("/bin/busybox"));
}

fn kernel_memory_is_named(
    kernel: &retrovisor_introspect::Kernel,
    memory: &dyn MemoryView,
    map: &OwnerMap,
    owners: &[PageOwner],
    observation: &retrovisor_introspect::Observation,
) {
    let owner_of =
        |symbol: &str| map.explain(kernel.translate(memory, kernel.symbol(symbol).unwrap()).unwrap().gfn());
    assert!(matches!(owner_of("do_syscall_64"), PageOwner::Kernel { part: "text", .. }));
    assert!(matches!(owner_of("sys_call_table"), PageOwner::Kernel { part: "rodata", .. }));
    assert!(matches!(owner_of("init_task"), PageOwner::Kernel { part: "data", .. }));
    assert!(matches!(owner_of("init_top_pgt"), PageOwner::PageTable { pid: None, level: 4 | 5, .. }));
    assert!(owners.contains(&PageOwner::PageTable { pid: None, level: 1, virt: 0xffff_fe00_0000_0000 }));
    let linux = observation.linux.as_ref().unwrap();
    let stack =
        |owner: &&PageOwner| matches!(owner, PageOwner::KernelStack { comm, .. } if comm == "kthreadd");
    assert_eq!(owners.iter().filter(stack).count(), 4);
    for task in &linux.tasks {
        let owner = map.explain(kernel.translate(memory, task.address).unwrap().gfn());
        assert!(
            matches!(&owner, PageOwner::Slab { cache, objects: Some(_) } if cache == "task_struct"),
            "{owner}"
        );
    }
    for module in &linux.modules {
        let owner = map.explain(kernel.translate(memory, module.address).unwrap().gfn());
        let named = matches!(&owner, PageOwner::Module { name, section: Some(section), .. }
            if *name == module.name && section.starts_with('.'));
        assert!(named, "{module:?}: {owner}");
    }
    let task = linux.tasks.iter().find(|task| task.comm == "workload" && task.pid == task.tgid).unwrap();
    let own = |owner: &&PageOwner| matches!(owner, PageOwner::Process(mapper) if mapper.pid == task.pid);
    let own = owners.iter().filter(own).count() as u64;
    assert!(own > 1000 && own <= task.rss_pages + 64, "{own} of {task:?}");
}

/// Nearly every frame that is in use has a name.
fn coverage(owners: &[PageOwner]) {
    let mut kinds: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for owner in owners {
        let kind = kinds.entry(owner.kind()).or_default();
        kind.0 += 1;
        kind.1 += usize::from(!owner.is_named());
    }
    let used = owners.iter().filter(|owner| **owner != PageOwner::Free).count();
    let named = owners.iter().filter(|owner| **owner != PageOwner::Free && owner.is_named()).count();
    eprintln!("{named} of {used} frames in use have a name; by kind (frames, without a name): {kinds:?}");
    assert!(named * 1000 >= used * 995, "{named} of {used}");
}

/// The frames of all owners add up to all frames.
fn shares_are_the_sum(map: &OwnerMap, owners: &[PageOwner]) {
    let mut own: BTreeMap<(&str, String), u64> = BTreeMap::new();
    for owner in owners {
        *own.entry((owner.kind(), owner.group())).or_default() += 1;
    }
    let shares = map.shares();
    assert!(shares.is_sorted_by(|one, other| one.pages >= other.pages));
    let reported: BTreeMap<_, _> =
        shares.into_iter().map(|share| ((share.kind, share.owner), share.pages)).collect();
    assert_eq!(reported, own);
}

fn flags_agree(owners: &[PageOwner], before: &Reported, after: &Reported) {
    let (mut compared, mut wrong) = (0, Vec::new());
    for (frame, owner) in owners.iter().enumerate() {
        let flags = before.flags[frame];
        // A frame that changed while the guest was printing is not compared: its state at the instant between is
        // unknown.
        if after.flags[frame] != flags {
            continue;
        }
        let kind = owner.kind();
        let agrees = match flags {
            _ if flags & NO_PAGE != 0 => matches!(kind, "unknown" | "reserved"),
            _ if flags & SLAB != 0 => kind == "slab",
            _ if flags & BUDDY != 0 => kind == "free",
            _ if flags & PAGE_TABLE != 0 => kind == "page-table",
            _ if flags & ANONYMOUS != 0 => matches!(kind, "process" | "anonymous"),
            _ if flags & LRU != 0 => kind == "file",
            _ => !matches!(kind, "slab" | "process" | "unknown"),
        };
        compared += 1;
        if !agrees {
            wrong.push(format!("frame {frame:#x}: {owner}, but the guest says {flags:#x}"));
        }
    }
    eprintln!("{compared} of {} frames compared by flag, {} differ", owners.len(), wrong.len());
    for line in wrong.iter().take(5) {
        eprintln!("{line}");
    }
    assert!(compared * 10 >= owners.len() * 9, "only {compared} frames kept their flags");
    // A frame can leave and come back between the two listings.
    assert!(wrong.len() * 2000 <= compared, "{} differ: {:#?}", wrong.len(), &wrong[..wrong.len().min(20)]);
}

fn slabs_agree(owners: &[PageOwner], before: &Reported, after: &Reported) {
    let mut own: BTreeMap<&str, usize> = BTreeMap::new();
    for owner in owners {
        if let PageOwner::Slab { cache, .. } = owner {
            *own.entry(cache).or_default() += 1;
        }
    }
    let mut compared = 0;
    for (cache, frames) in &before.slabs {
        if after.slabs.get(cache) == Some(frames) {
            assert_eq!(own.get(cache.as_str()).copied().unwrap_or(0), *frames, "{cache}");
            compared += 1;
        }
    }
    eprintln!("{compared} of {} slab caches compared", before.slabs.len());
    assert!(compared * 10 >= before.slabs.len() * 8);
}
