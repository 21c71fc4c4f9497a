//! The changes between two instants of a real guest are named: a new process, a written file, a loaded module, a
//! changed credential.
#![expect(clippy::unwrap_used, reason = "a test")]

mod live;

use std::{fmt::Write, time::Instant};

use live::Guest;
use retrovisor_guest::{Gfn, MemoryError, MemoryLayout, MemoryView, Page};
use retrovisor_introspect::{ChangedFrame, Difference, Introspector, OwnerReader, compare};

/// A copy of a memory.
struct Kept {
    layout: MemoryLayout,
    pages: Vec<Page>,
}

impl Kept {
    fn of(view: &dyn MemoryView) -> Self {
        let layout = view.layout().clone();
        let mut pages = vec![[0; 4096]; usize::try_from(layout.pages()).unwrap()];
        for (gfn, page) in layout.gfns().zip(&mut pages) {
            view.read_page(gfn, page).unwrap();
        }
        Self { layout, pages }
    }
}

impl MemoryView for Kept {
    fn layout(&self) -> &MemoryLayout {
        &self.layout
    }
    fn read_page(&self, gfn: Gfn, into: &mut Page) -> Result<(), MemoryError> {
        let page = usize::try_from(gfn.0).ok().and_then(|at| self.pages.get(at));
        *into = *page.ok_or(MemoryError::NotMemory { gpa: gfn.gpa() })?;
        Ok(())
    }
}

fn difference_over(guest: &mut Guest, command: &str) -> Difference {
    guest.stop();
    let (before, registers) = (Kept::of(&guest.memory()), guest.registers());
    let mut introspector = Introspector::new();
    let first = introspector.observe(&before, &registers);
    guest.resume();
    let said = guest.run(&format!("{{ {command}; }} 2>&1"));
    guest.stop();
    let (after, registers) = (guest.memory(), guest.registers());
    let second = introspector.observe(&after, &registers);
    let kernel = introspector.kernel().unwrap();
    let changed: Vec<ChangedFrame> = after
        .layout()
        .gfns()
        .zip(&before.pages)
        .filter(|(gfn, page)| {
            let mut now = [0; 4096];
            after.read_page(*gfn, &mut now).unwrap();
            now != **page
        })
        .map(|(gfn, _)| ChangedFrame { gfn, since: 2 })
        .collect();
    let mut reader = OwnerReader::new();
    let start = Instant::now();
    let old = reader.read(&kernel, &before, &first);
    let mut new = reader.read(&kernel, &after, &second);
    new.trace_allocations(&after);
    let difference = compare(&kernel, (&before, &old), (&after, &new), &changed);
    eprintln!("{command}: {said} {} frames, {:?}", changed.len(), start.elapsed());
    guest.resume();
    let pages: u64 = difference.owners.iter().map(|owner| owner.pages).sum();
    assert_eq!(pages, changed.len() as u64, "every frame that changed is counted once");
    difference
}

fn said(difference: &Difference) -> String {
    let mut text = String::new();
    for object in difference.objects.iter().chain(&difference.variables) {
        write!(text, "{} {}:", object.structure, object.object).unwrap();
        for field in &object.fields {
            write!(text, " {} {} → {};", field.field, field.before, field.after).unwrap();
        }
        text.push('\n');
    }
    for group in difference.files.iter().chain(&difference.processes).chain(&difference.owners) {
        writeln!(text, "{} {} {:?} {}", group.owner, group.pages, group.range, group.new).unwrap();
    }
    text
}

#[test]
fn what_was_done_in_a_guest_is_named() {
    let Some(mut guest) = Guest::start() else { return };
    guest.wait_for_shell();
    guest.run("kill -STOP $(pidof housekeeper) $(pidof workload); sleep 1");

    let written = difference_over(
        &mut guest,
        "dd if=/dev/urandom of=/run/evidence bs=4096 count=5; chmod 751 /run/status",
    );
    let text = said(&written);
    let file = written.files.iter().find(|file| file.owner == "/run/evidence");
    let file = file.unwrap_or_else(|| panic!("the file is not named: {text}"));
    assert_eq!((file.pages, file.range, file.new), (5, Some((0, 4)), true));
    let inode = written
        .objects
        .iter()
        .find(|object| object.object == "/run/status" && object.structure == "shmem_inode_info");
    let inode = inode.unwrap_or_else(|| panic!("the inode is not named: {text}"));
    let mode = inode.fields.iter().find(|field| field.field == "i_mode").unwrap();
    assert_eq!((mode.before.as_str(), mode.after.as_str()), ("0100644", "0100751"), "{text}");

    let started = difference_over(&mut guest, "sleep 987 >/dev/null & sleep 1");
    let text = said(&started);
    assert!(
        started.processes.iter().any(|process| process.owner.starts_with("sleep (") && process.new),
        "{text}"
    );
    let task = started
        .objects
        .iter()
        .find(|object| object.structure == "new task_struct" && object.object.ends_with("(sleep)"));
    assert!(task.is_some(), "{text}");

    let loaded = difference_over(
        &mut guest,
        "rmmod virtio_rng; insmod $(find /lib/modules -name virtio_rng.ko | head -n 1); sleep 1",
    );
    let text = said(&loaded);
    assert!(loaded.owners.iter().any(|owner| owner.owner.starts_with("module virtio_rng")), "{text}");
    let reported = |wanted: &str| loaded.variables.iter().any(|variable| variable.object == wanted);
    assert!(reported("mod_tree") || reported("btf_modules"), "{text}");
}
