//! The machine in a separate process: this program, started again, is the worker.

use std::ffi::OsString;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use retrovisor_guest::{
    ClockPolicy, DiskIo as _, Gpa, Machine, MachineError, MemoryIo as _, MemoryLayout, PageSet, RunState,
    StateIo as _,
};
use retrovisor_machine::kvm::{DiskConfig, Limits, RemoteConfig, RemoteMachine, worker_process};

use crate::{bare, ordinary_user};

/// The argument with which this program becomes a worker.
const WORKER: &str = "machine-worker";
const FIRST: Gpa = Gpa(0x20_0000);

/// Runs before the test harness does anything: a worker begins with one thread.
#[used]
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = become_worker;

extern "C" fn become_worker() {
    if std::env::args_os().nth(1) == Some(OsString::from(WORKER)) {
        // `exit` would run the harness's own end.
        let code = worker_process();
        std::process::exit(i32::from(code != std::process::ExitCode::SUCCESS));
    }
    ordinary_user::become_parent();
}

pub(crate) fn config(dir: &Path, detached: bool) -> RemoteConfig {
    RemoteConfig {
        machine: bare::config(bare::split_layout(), 2, retrovisor_machine::kvm::bare::writer()),
        program: std::env::current_exe().unwrap(),
        arguments: vec![WORKER.into()],
        runtime_dir: dir.join("m"),
        awaits_state: false,
        detached,
        limits: Limits::of("bare"),
    }
}

/// The bare guest in a worker; `None`, with a message, without KVM.
pub(crate) fn launch(dir: &Path, detached: bool) -> Option<RemoteMachine> {
    launch_config(&config(dir, detached))
}

pub(crate) fn launch_config(config: &RemoteConfig) -> Option<RemoteMachine> {
    match RemoteMachine::launch(config) {
        Ok(machine) => Some(machine),
        Err(error @ (MachineError::Config { .. } | MachineError::Unsupported { .. })) => {
            eprintln!("SKIPPED: no KVM for a bare guest: {error}");
            None
        }
        Err(error) => panic!("{error}\n{}", log(&config.runtime_dir)),
    }
}

fn log(runtime_dir: &Path) -> String {
    std::fs::read_to_string(runtime_dir.join("worker.log")).unwrap_or_default()
}

pub(crate) fn status(pid: i32, what: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(':'));
    line.unwrap_or_default().trim().to_owned()
}

#[test]
fn a_guest_in_a_worker_is_paused_captured_and_taken_back() {
    let dir = tempfile::tempdir().unwrap();
    let Some(mut machine) = launch(dir.path(), false) else { return };
    let layout = machine.identity().layout.clone();
    assert_eq!(machine.run_state(), RunState::Paused);
    bare::assign(&mut machine, FIRST, 32, 4096);
    machine.resume().unwrap();
    assert_eq!(machine.run_state(), RunState::Running);
    bare::wait_rounds(&machine, 2, 5);
    assert!(matches!(machine.capture_state(), Err(MachineError::RunState { .. })));
    machine.pause().unwrap();
    let mut dirty = PageSet::empty(&layout);
    machine.take_dirty(&mut dirty).unwrap();
    assert_eq!(dirty.len(), layout.pages(), "at first all is dirty");
    let state = machine.capture_state().unwrap();
    assert_eq!(state.vcpus.len(), 2);
    let kept: Vec<_> = (0..64)
        .map(|page| {
            let mut bytes = [0; 4096];
            let gfn = retrovisor_guest::Gfn(bare::MAIL.gfn().0 + page);
            machine.memory().read_page(gfn, &mut bytes).unwrap();
            (gfn, bytes)
        })
        .collect();
    for _ in 0..50 {
        machine.resume().unwrap();
        bare::wait_rounds(&machine, 2, 1);
        machine.pause().unwrap();
        dirty.clear();
        machine.take_dirty(&mut dirty).unwrap();
        assert!((33..100).contains(&dirty.len()), "{} pages", dirty.len());
        for gfn in dirty.iter() {
            // The written pages are elsewhere; the counters are not.
            if let Some((_, bytes)) = kept.iter().find(|(kept, _)| *kept == gfn) {
                machine.write_page(gfn, retrovisor_guest::PageContent::Data(bytes)).unwrap();
            }
        }
        machine.apply_state(&state, ClockPolicy::StandStill).unwrap();
        assert_eq!(machine.capture_state().unwrap().vcpus, state.vcpus);
        let counter = u64::from_le_bytes(kept[0].1[64..72].try_into().unwrap());
        assert_eq!(bare::rounds(&machine, 0), counter);
    }
    machine.resume().unwrap();
    let error = machine.write_page(FIRST.gfn(), retrovisor_guest::PageContent::Zero).unwrap_err();
    assert!(matches!(error, MachineError::RunState { .. }));
}

#[test]
fn what_comes_along_with_a_pause_is_neither_lost_nor_kept() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path(), false);
    config.machine.disks.push(DiskConfig {
        base: None,
        size_bytes: Some(1 << 20),
        read_only: false,
        changes_dir: dir.path().to_owned(),
    });
    let Some(mut machine) = launch_config(&config) else { return };
    let kept = |machine: &mut RemoteMachine| {
        let state = machine.capture_state().unwrap();
        machine.release_state(&state).unwrap();
        machine.retained_disks().unwrap().len()
    };
    let mut dirty = PageSet::empty(&machine.identity().layout);
    machine.pause().unwrap();
    machine.take_dirty(&mut dirty).unwrap();
    let kept_at_first = kept(&mut machine);
    bare::assign(&mut machine, FIRST, 32, 4096);
    machine.resume().unwrap();
    bare::wait_rounds(&machine, 2, 1);
    machine.pause().unwrap();
    bare::assign(&mut machine, FIRST, 0, 4096);
    for _ in 0..20 {
        // The frames and the state of these pauses are not requested.
        machine.resume().unwrap();
        machine.pause().unwrap();
    }
    dirty.clear();
    machine.take_dirty(&mut dirty).unwrap();
    assert!((0..32).all(|page| dirty.contains(retrovisor_guest::Gfn(FIRST.gfn().0 + page))));
    dirty.clear();
    machine.take_dirty(&mut dirty).unwrap();
    assert!(dirty.is_empty(), "reported once");
    assert_eq!(kept(&mut machine), kept_at_first);
}

#[test]
fn a_guest_in_a_worker_gets_a_new_identifier() {
    let dir = tempfile::tempdir().unwrap();
    let Some(mut machine) = launch(dir.path(), false) else { return };
    bare::assign(&mut machine, FIRST, 4, 4096);
    let first = machine.generation_id().unwrap();
    assert_ne!(first, [0; 16], "a launch makes one at random");
    let state = machine.capture_state().unwrap();
    let mut dirty = PageSet::empty(&machine.identity().layout);
    machine.take_dirty(&mut dirty).unwrap();
    machine.resume().unwrap();
    let error = machine.set_generation_id([7; 16]).unwrap_err();
    assert!(matches!(error, MachineError::RunState { needed: "paused", .. }), "{error}");
    machine.pause().unwrap();
    machine.apply_state(&state, ClockPolicy::StandStill).unwrap();
    dirty.clear();
    machine.take_dirty(&mut dirty).unwrap();
    assert_eq!(machine.generation_id().unwrap(), first, "going back brings no new one");
    machine.set_generation_id([7; 16]).unwrap();
    assert_eq!(machine.generation_id().unwrap(), [7; 16]);
    dirty.clear();
    machine.take_dirty(&mut dirty).unwrap();
    assert_eq!(dirty.iter().collect::<Vec<_>>(), [Gpa(0xd_f000).gfn()], "its page is dirty");
    machine.resume().unwrap();
    bare::wait_rounds(&machine, 2, 1);
}

#[test]
fn a_worker_that_is_killed_takes_its_machine_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let Some(mut machine) = launch(dir.path(), true) else { return };
    machine.resume().unwrap();
    kill(Pid::from_raw(machine.pid()), Signal::SIGKILL).unwrap();
    let began = Instant::now();
    while machine.run_state() != RunState::Gone {
        assert!(began.elapsed() < Duration::from_secs(5));
    }
    let error = machine.pause().unwrap_err();
    assert!(
        matches!(&error, MachineError::Gone { reason, .. } if reason.contains("the worker ended")),
        "{error}"
    );
    drop(machine);
    assert!(!dir.path().join("m/worker").exists());
    let mut again = launch(dir.path(), false).unwrap();
    again.resume().unwrap();
    bare::wait_rounds(&again, 2, 1);
}

#[test]
fn a_detached_worker_is_found_again_and_all_its_memory_counts_as_dirty() {
    let dir = tempfile::tempdir().unwrap();
    let Some(mut machine) = launch(dir.path(), true) else { return };
    bare::assign(&mut machine, FIRST, 4, 4096);
    machine.resume().unwrap();
    bare::wait_rounds(&machine, 2, 2);
    let (pid, rounds) = (machine.pid(), bare::rounds(&machine, 0));
    let mut dirty = PageSet::empty(&machine.identity().layout);
    machine.take_dirty(&mut dirty).unwrap();
    drop(machine);
    let mut machine = RemoteMachine::attach("bare", &dir.path().join("m")).unwrap();
    assert_eq!((machine.pid(), machine.run_state()), (pid, RunState::Running));
    bare::wait_rounds(&machine, 2, 1);
    assert!(bare::rounds(&machine, 0) > rounds, "it went on");
    machine.pause().unwrap();
    dirty.clear();
    machine.take_dirty(&mut dirty).unwrap();
    assert_eq!(dirty.len(), machine.identity().layout.pages());
    machine.quit();
    assert!(RemoteMachine::attach("bare", &dir.path().join("m")).is_err());
    let left = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    assert!(left.is_empty() || status(pid, "State").starts_with('Z'), "it lives:\n{left}");
}

#[test]
fn the_console_shows_what_was_said_before_and_is_kept_in_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let Some(mut machine) = launch(dir.path(), false) else { return };
    machine.resume().unwrap();
    bare::wait_rounds(&machine, 2, 1);
    let mut console = UnixStream::connect(machine.console()).unwrap();
    console.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    console.write_all(b"nobody reads this").unwrap();
    let mut said = [0; 4];
    console.read_exact(&mut said).unwrap();
    said.sort_unstable();
    assert_eq!(&said, b"ppuu");
    let began = Instant::now();
    while std::fs::read(machine.console_log()).unwrap().len() < 4 {
        assert!(began.elapsed() < Duration::from_secs(10), "nothing in the log");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_long_console_log_is_followed_by_a_new_one() {
    let dir = tempfile::tempdir().unwrap();
    let runtime_dir = dir.path().join("m");
    std::fs::create_dir(&runtime_dir).unwrap();
    // As long as a log may be, from workers before this one.
    let path = runtime_dir.join("console.log");
    std::fs::File::create(&path).unwrap().set_len(16 << 20).unwrap();
    let Some(mut machine) = launch(dir.path(), false) else { return };
    machine.resume().unwrap();
    let began = Instant::now();
    while std::fs::metadata(&path).unwrap().len() != 4 {
        assert!(began.elapsed() < Duration::from_secs(20), "no new log is begun:\n{}", log(&runtime_dir));
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut said = std::fs::read(&path).unwrap();
    said.sort_unstable();
    assert_eq!(said, b"ppuu");
    assert_eq!(std::fs::metadata(runtime_dir.join("console.log.1")).unwrap().len(), 16 << 20);
}

#[test]
fn a_machine_that_cannot_start_says_why_and_leaves_no_process() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path(), true);
    config.machine.vcpus = 99;
    let error = RemoteMachine::launch(&config).err().unwrap();
    assert!(error.to_string().contains("1 to 8 vCPUs"), "{error}");
    assert!(UnixStream::connect(dir.path().join("m/worker")).is_err());
    config.machine.vcpus = 1;
    config.machine.layout = MemoryLayout::flat(16 << 20).unwrap();
    config.program = "/nonexistent/worker".into();
    assert!(matches!(RemoteMachine::launch(&config), Err(MachineError::Io { .. })));
}

#[test]
fn a_worker_that_awaits_a_state_takes_another_machines_and_ends_with_who_made_it_until_it_is_detached() {
    let dir = tempfile::tempdir().unwrap();
    let Some(mut first) = launch(dir.path(), false) else { return };
    bare::assign(&mut first, FIRST, 32, 4096);
    first.resume().unwrap();
    bare::wait_rounds(&first, 2, 5);
    first.pause().unwrap();
    let state = first.capture_state().unwrap();

    let second = tempfile::tempdir().unwrap();
    let mut other = config(second.path(), false);
    other.machine.name = "other".into();
    other.awaits_state = true;
    let mut branch = RemoteMachine::launch(&other).unwrap();
    assert_eq!(branch.run_state(), RunState::Paused);
    assert!(branch.resume().is_err(), "it has no state yet");
    let mut page = [0; 4096];
    let layout = first.identity().layout.clone();
    assert!(layout.gfns().all(|gfn| branch.memory().known_zero(gfn)), "nothing was loaded");
    for gfn in layout.gfns().filter(|gfn| !first.memory().known_zero(*gfn)) {
        first.memory().read_page(gfn, &mut page).unwrap();
        branch.write_page(gfn, retrovisor_guest::PageContent::Data(&page)).unwrap();
    }
    branch.apply_state(&state, ClockPolicy::StandStill).unwrap();
    assert_eq!(branch.generation_id().unwrap(), first.generation_id().unwrap());
    branch.renew_generation_id().unwrap();
    assert_ne!(branch.generation_id().unwrap(), first.generation_id().unwrap());
    branch.resume().unwrap();
    bare::wait_rounds(&branch, 2, 5);

    // Not detached yet: it ends with the connection.
    let pid = branch.pid();
    let gone = || !Path::new(&format!("/proc/{pid}")).exists();
    assert!(!gone());
    drop(branch);
    wait(gone);

    // Detached: it continues to run.
    let mut branch = RemoteMachine::launch(&other).unwrap();
    branch.detach().unwrap();
    drop(branch);
    let branch = RemoteMachine::attach("other", &other.runtime_dir).unwrap();
    branch.quit();
    first.resume().unwrap();
    bare::wait_rounds(&first, 2, 5);
}

fn wait(mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(5));
    }
}
