use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use retrovisor_guest::Accelerator;
use retrovisor_machine::accelerator;
use retrovisor_tests::{GuestImage, command_path};

/// The kernel that is booted besides the guest's own, unless the run names others.
const OTHER_KERNEL: &str = "bullseye-cloud";
/// Set in the lab.
const IN_THE_LAB: &str = "RETROVISOR_LAB";
/// Asks for the long run.
const LONG: &str = "RETROVISOR_LAB_LONG";
/// In the lab: which tests to run.
const TESTS: &str = "RETROVISOR_LAB_TESTS";
/// The only test that the lab is asked for; it runs the others.
const THIS: &str = "lab::all_of_it_in_the_lab";
/// What is said of a test that passed.
const PASSED: &str = "passed";
/// A test that fails is tried again in a new lab: the translator takes an interrupt that was given to a guest for one
/// that is still to be given, if it is itself interrupted at the wrong moment (docs/kvm.md). What fails always fails
/// still.
const TURNS_MAX: usize = 3;
/// Memory of the lab in a long run: it has a guest with more than 3 GiB.
const LONG_MEMORY_MIB: &str = "7168";

/// Whether this is the long run. Where it is not, says what is left to it.
pub(crate) fn is_long(what: &str) -> bool {
    let is_long = std::env::var_os(LONG).is_some();
    if !is_long {
        println!("left to the long run (make test-lab): {what}");
    }
    is_long
}

/// A kernel of `setup/kernels.sh`.
pub(crate) struct OtherKernel {
    pub(crate) name: String,
    pub(crate) kernel: PathBuf,
    pub(crate) initrd: PathBuf,
}

/// The other kernels that are here, by name.
pub(crate) fn other_kernels() -> Vec<OtherKernel> {
    let image = GuestImage::files().unwrap();
    let folder = image.kernel.parent().and_then(Path::parent).unwrap().join("kernels");
    let folders = std::fs::read_dir(folder).map_or_else(|_| Vec::new(), |all| all.flatten().collect());
    let mut kernels: Vec<_> = folders
        .into_iter()
        .map(|folder| OtherKernel {
            name: folder.file_name().to_string_lossy().into_owned(),
            kernel: folder.path().join("vmlinuz"),
            initrd: folder.path().join("initramfs.cpio.gz"),
        })
        .filter(|kernel| kernel.kernel.exists())
        .collect();
    kernels.sort_by(|one, other| one.name.cmp(&other.name));
    kernels
}

/// Whether the guests of this program boot right here. Where they do not, [`all_of_it_in_the_lab`] runs them.
pub(crate) fn boots_here() -> bool {
    std::env::var_os(IN_THE_LAB).is_some() || accelerator::detect().accelerator == Accelerator::Kvm
}

/// Parameters for kernels in the lab. Its processor does not report to KVM when extended state is enabled, so the size
/// of the state is wrong, with which some kernels fail. And it takes the flags before a `cmpxchg16b` (141, its number
/// in all kernels) from the wrong place, so a flags register may have part of an address when the guest is left at that
/// moment.
pub(crate) fn append() -> &'static str {
    if std::env::var_os(IN_THE_LAB).is_some() { "noxsave clearcpuid=141" } else { "" }
}

/// On a host whose KVM runs no Linux: every test of this program, in the lab. In the lab: those that the variable
/// names.
#[test]
fn all_of_it_in_the_lab() {
    if let Ok(names) = std::env::var(TESTS) {
        return one_after_the_other(&names);
    }
    if boots_here() {
        return;
    }
    let Some(image) = GuestImage::find() else { return };
    let kernels = kernels_to_bring(&image);
    let mut left = tests_of_this_program();
    for turn in 1..=TURNS_MAX {
        let passed = run_in_the_lab(&left, &kernels);
        left.retain(|name| !passed.contains(name));
        if left.is_empty() {
            return;
        }
        println!("LAB turn {turn} is over without {}", left.join(", "));
    }
    panic!("none of {TURNS_MAX} turns passed {}", left.join(", "));
}

/// Runs each test in a process of its own, so that none leaves anything to the next.
fn one_after_the_other(names: &str) {
    let program = std::env::current_exe().unwrap();
    for name in names.split_whitespace() {
        println!("LAB begins {name}");
        let status = Command::new(&program).args([name, "--exact", "--nocapture"]).env_remove(TESTS).status();
        let verdict = if status.unwrap().success() { PASSED } else { "failed" };
        println!("\nLAB {verdict} {name}");
    }
}

/// Runs these tests in a lab of their own, and says which passed.
fn run_in_the_lab(tests: &[String], kernels: &str) -> Vec<String> {
    let mut lab = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../setup/lab.sh"));
    if std::env::var_os(LONG).is_some() {
        lab.env("LAB_MEMORY_MIB", LONG_MEMORY_MIB);
    }
    let mut lab = lab
        .arg(std::env::current_exe().unwrap())
        .args([THIS, "--exact", "--nocapture"])
        .env("LAB_KERNELS", kernels)
        .env("LAB_FILES", command_path())
        .env(TESTS, tests.join(" "))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // It is shown as it comes: a long run takes most of an hour.
    let (mut passed, mut lacks) = (Vec::new(), false);
    for line in BufReader::new(lab.stdout.take().unwrap()).split(b'\n') {
        let line = String::from_utf8_lossy(&line.unwrap()).into_owned();
        println!("{line}");
        lacks |= line.contains("SKIPPED");
        if let Some(name) = line.trim_end().strip_prefix(&format!("LAB {PASSED} ")) {
            passed.push(name.to_owned());
        }
    }
    println!("the lab ended with {}", lab.wait().unwrap());
    assert!(!lacks, "the lab lacks something");
    passed
}

fn tests_of_this_program() -> Vec<String> {
    let program = std::env::current_exe().unwrap();
    let listed = Command::new(program).args(["--list", "--format", "terse"]).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let names = listed.lines().filter_map(|line| line.strip_suffix(": test"));
    names.filter(|name| *name != THIS).map(str::to_owned).collect()
}

/// The kernels that the lab gets besides the guest's own, by name.
fn kernels_to_bring(image: &GuestImage) -> String {
    let wanted = std::env::var("LAB_KERNELS").unwrap_or_else(|_| OTHER_KERNEL.to_owned());
    let cache = image.kernel.parent().and_then(Path::parent).unwrap().join("kernels");
    let (there, absent): (Vec<_>, Vec<_>) =
        wanted.split_whitespace().partition(|kernel| cache.join(kernel).join("vmlinuz").exists());
    for kernel in absent {
        eprintln!("SKIPPED: there is no kernel {kernel}: setup/kernels.sh gets it");
    }
    there.join(" ")
}
