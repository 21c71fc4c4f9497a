use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use retrovisor_guest::{Machine as _, MemoryIo as _, PAGE_SIZE};
use retrovisor_machine::qemu::QemuMachine;
use retrovisor_tests::{GuestImage, launch_config, wait_until};

/// Successive images of a guest's memory, as sparse files.
pub(crate) fn take(guest: &GuestImage, dir: &Path, count: usize, interval: Duration) -> Vec<PathBuf> {
    let mut machine =
        QemuMachine::launch(&launch_config(guest, "images", &dir.join("machine"), false)).unwrap();
    let log = machine.console_log().unwrap();
    wait_until("the guest's third tick line", Duration::from_mins(1), || {
        std::fs::read_to_string(&log).is_ok_and(|text| text.matches("tick ").count() >= 3)
    });
    let images = (0..count)
        .map(|number| {
            std::thread::sleep(interval);
            machine.pause().unwrap();
            let path = dir.join(format!("image-{number:02}.raw"));
            write(&machine, &path);
            machine.resume().unwrap();
            path
        })
        .collect();
    machine.quit();
    images
}

fn write(machine: &QemuMachine, path: &Path) {
    let view = machine.memory();
    let file = File::create(path).unwrap();
    file.set_len(view.layout().bytes()).unwrap();
    let mut page = [0; PAGE_SIZE];
    for index in 0..view.layout().pages() {
        let gfn = view.layout().gfn(index).unwrap();
        if view.known_zero(gfn) {
            continue;
        }
        view.read_page(gfn, &mut page).unwrap();
        if page.iter().any(|byte| *byte != 0) {
            file.write_all_at(&page, index * PAGE_SIZE as u64).unwrap();
        }
    }
    file.sync_all().unwrap();
}
