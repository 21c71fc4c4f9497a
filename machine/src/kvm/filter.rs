//! The system calls that the worker's threads may make.

use std::collections::BTreeMap;
use std::io;
use std::sync::OnceLock;

use nix::libc;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use retrovisor_guest::MachineError;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

/// The type of KVM's ioctls, and its position in the number.
const KVM_IOCTLS: u64 = 0xae00;
const IOCTL_TYPE: u64 = 0xff00;
/// The ioctls of a vCPU's thread: running, raising an interrupt, and reading the vCPU's state.
const VCPU_IOCTLS: [u64; 15] = [
    0xae80,
    0x4008_ae61,
    0xc008_ae67,
    0x4020_aea5,
    // Run state, registers, system registers, extended ones (two calls), their control, debug registers.
    0x8004_ae98,
    0x8090_ae81,
    0x8138_ae83,
    0x9000_aea4,
    0x9000_aecf,
    0x8188_aea6,
    0x8080_aea1,
    // Local interrupt controller, MSRs, events, attributes (the time-stamp counter's offset).
    0x8400_ae8e,
    0xc008_ae88,
    0x8040_ae9f,
    0x4018_aee2,
];

/// The ioctls of a network interface's thread: raising the interface's interrupt. Its other calls are permitted to
/// every thread: waiting for frames and for a wake-up (`ppoll`, `read`), receiving (`recvfrom` from a hub, `read` from
/// a tap), and writing to mapped memory. vCPUs send (`sendto`, `write`).
const NET_IOCTLS: [u64; 2] = [0x4008_ae61, 0xc008_ae67];

/// The calls of every thread: memory, time, waiting, signals, and its open files.
const ANY: [i64; 57] = [
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_lseek,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_sync_file_range,
    libc::SYS_fallocate,
    libc::SYS_ftruncate,
    libc::SYS_fstat,
    libc::SYS_close,
    libc::SYS_recvmsg,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_ctl,
    libc::SYS_timerfd_settime,
    libc::SYS_futex,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigreturn,
    libc::SYS_restart_syscall,
    libc::SYS_tgkill,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    libc::SYS_getrandom,
    libc::SYS_membarrier,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_getrusage,
];

/// The additional calls of the threads that communicate with clients and start other threads.
const CONTROL: [i64; 17] = [
    // Decided by another filter, which could not permit it if this one refused.
    libc::SYS_clone3,
    libc::SYS_accept4,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_shutdown,
    libc::SYS_socketpair,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_fcntl,
    libc::SYS_statx,
    libc::SYS_newfstatat,
    libc::SYS_eventfd2,
    libc::SYS_epoll_create1,
    libc::SYS_timerfd_create,
    libc::SYS_seccomp,
];

/// The additional filter of vCPU threads, once the worker is confined.
static VCPU: OnceLock<BpfProgram> = OnceLock::new();
/// The additional filter of the threads of network interfaces.
static NET: OnceLock<BpfProgram> = OnceLock::new();

/// Confines this thread, and all threads that it starts from now on.
pub(super) fn apply() -> Result<(), MachineError> {
    let failed = |message: String| MachineError::Driver { doing: "confining system calls".into(), message };
    let install =
        |program: &BpfProgram| seccompiler::apply_filter(program).map_err(|error| failed(error.to_string()));
    tell_of_refusals().map_err(|error| failed(error.to_string()))?;
    let vcpu = device_work(&VCPU_IOCTLS).map_err(|error| failed(error.to_string()))?;
    let net = device_work(&NET_IOCTLS).map_err(|error| failed(error.to_string()))?;
    let control = control().map_err(|error| failed(error.to_string()))?;
    let old_clone = old_clone().map_err(|error| failed(error.to_string()))?;
    let _ = VCPU.set(vcpu);
    let _ = NET.set(net);
    install(&old_clone)?;
    install(&control)
}

/// For a vCPU's thread, before it enters the guest for the first time: in a confined worker it drops the calls that it
/// does not need; elsewhere nothing happens. A thread that cannot be confined must not continue.
pub(super) fn enter_vcpu_thread() -> Result<(), String> {
    enter(&VCPU)
}

/// The same for the thread of a network interface.
pub(super) fn enter_net_thread() -> Result<(), String> {
    enter(&NET)
}

fn enter(program: &OnceLock<BpfProgram>) -> Result<(), String> {
    match program.get() {
        Some(program) => seccompiler::apply_filter(program).map_err(|error| error.to_string()),
        None => Ok(()),
    }
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn when(argument: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompRule, BackendError> {
    SeccompRule::new(vec![SeccompCondition::new(argument, SeccompCmpArgLen::Qword, operator, value)?])
}

fn any() -> Result<Rules, BackendError> {
    let mut rules: Rules = ANY.iter().map(|call| (*call, Vec::new())).collect();
    // Memory must not be executable.
    let executable = u64::try_from(libc::PROT_EXEC).unwrap_or(u64::MAX);
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(call, vec![when(2, SeccompCmpOp::MaskedEq(executable), 0)?]);
    }
    // A build with assertions checks whether a descriptor is open before it closes it.
    let is_open = u64::try_from(libc::F_GETFD).unwrap_or(0);
    rules.insert(libc::SYS_fcntl, vec![when(1, SeccompCmpOp::Eq, is_open)?]);
    // Naming a thread or a mapping.
    let name = |option: libc::c_int| when(0, SeccompCmpOp::Eq, u64::try_from(option).unwrap_or(0));
    rules.insert(libc::SYS_prctl, vec![name(libc::PR_SET_NAME)?, name(libc::PR_SET_VMA)?]);
    Ok(rules)
}

fn control() -> Result<BpfProgram, BackendError> {
    let mut rules = any()?;
    rules.extend(CONTROL.iter().map(|call| (*call, Vec::new())));
    let nonblocking = when(1, SeccompCmpOp::Eq, libc::FIONBIO)?;
    rules
        .insert(libc::SYS_ioctl, vec![when(1, SeccompCmpOp::MaskedEq(IOCTL_TYPE), KVM_IOCTLS)?, nonblocking]);
    // Threads, no processes.
    let thread = u64::try_from(libc::CLONE_THREAD).unwrap_or(u64::MAX);
    rules.insert(libc::SYS_clone, vec![when(0, SeccompCmpOp::MaskedEq(thread), thread)?]);
    let no_new = u64::try_from(libc::PR_SET_NO_NEW_PRIVS).unwrap_or(0);
    rules.entry(libc::SYS_prctl).or_default().push(when(0, SeccompCmpOp::Eq, no_new)?);
    program(rules, SeccompAction::Trap, SeccompAction::Allow)
}

/// The calls of every thread, with these ioctls.
fn device_work(ioctls: &[u64]) -> Result<BpfProgram, BackendError> {
    let mut rules = any()?;
    let ioctls = ioctls.iter().map(|number| when(1, SeccompCmpOp::Eq, *number));
    rules.insert(libc::SYS_ioctl, ioctls.collect::<Result<_, _>>()?);
    program(rules, SeccompAction::Trap, SeccompAction::Allow)
}

/// clone3 has its flags in memory, where a filter cannot read them: without it, the C library uses clone.
fn old_clone() -> Result<BpfProgram, BackendError> {
    let rules = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let absent = SeccompAction::Errno(u32::try_from(libc::ENOSYS).unwrap_or(1));
    program(rules, SeccompAction::Allow, absent)
}

fn program(rules: Rules, other: SeccompAction, these: SeccompAction) -> Result<BpfProgram, BackendError> {
    SeccompFilter::new(rules, other, these, TargetArch::x86_64)?.try_into()
}

/// A refused call is written to the log before the worker ends.
fn tell_of_refusals() -> io::Result<()> {
    let action = SigAction::new(SigHandler::SigAction(refused), SaFlags::SA_SIGINFO, SigSet::empty());
    // SAFETY: the handler makes two plain system calls and nothing else.
    unsafe { sigaction(Signal::SIGSYS, &action) }?;
    Ok(())
}

extern "C" fn refused(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    /// Offset of the call's number in bytes.
    const CALL_AT: usize = 24;
    let mut text = *b"worker: system call      is not allowed; the worker ends\n";
    // SAFETY: the kernel passes a `siginfo_t` of 128 bytes, and for SIGSYS an int is at that place.
    let call = unsafe { info.cast::<u8>().add(CALL_AT).cast::<[u8; 4]>().read() };
    let mut call = u32::from_ne_bytes(call);
    for place in text[20..24].iter_mut().rev() {
        *place = b'0' + u8::try_from(call % 10).unwrap_or(0);
        call /= 10;
    }
    // SAFETY: writes a local array to standard error; `_exit` ends all threads and returns never.
    unsafe {
        libc::write(2, text.as_ptr().cast(), text.len());
        libc::_exit(159);
    }
}
