//! The main thread of another process, stopped by `ptrace`, which makes system calls for this process.

use std::io::{IoSlice, IoSliceMut};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::error::RegistrationError;

/// How long the thread may take to stop.
const STOP_WAIT: Duration = Duration::from_secs(1);
/// How long the stop is polled for without sleeping. It usually takes some ten microseconds.
const POLL_WAIT: Duration = Duration::from_millis(2);
/// Time limit for repeated stops until the thread is found waiting in a system call. On a busy host it may take long to
/// run at all.
const TRY_WAIT: Duration = Duration::from_secs(2);
/// The pause between two stops, in which the thread runs.
const TRY_PAUSE: Duration = Duration::from_millis(2);
/// Bound on stops for other causes during a single step.
const STEPS_MAX: u32 = 64;

/// The machine code of `syscall`.
const SYSCALL: [u8; 2] = [0x0f, 0x05];
/// The code segment of 64-bit programs.
const USER_CS_64: u64 = 0x33;
/// Marks the numbers of the x32 system calls.
const X32_SYSCALL_BIT: u64 = 1 << 30;
/// The requests that libc does not name.
const PTRACE_GETSIGMASK: libc::c_uint = 0x420a;

/// Room for arguments in the thread's stack.
const SCRATCH_BYTES: usize = 128;
/// How far below the stack pointer that is: below the 128 bytes that a function may use without moving the pointer.
const SCRATCH_DISTANCE: u64 = 1024;

/// A thread that was stopped while it waited in a system call. Dropping this restores its registers, its signal mask
/// and the used part of its stack, and releases it: it continues to wait.
///
/// All methods must be called by the thread of this process that stopped it, which [`StoppedThread::with`] makes sure.
pub(super) struct StoppedThread {
    registers: libc::user_regs_struct,
    signal_mask: u64,
    /// The `syscall` instruction in which it waits.
    instruction: u64,
    scratch: u64,
    scratch_content: [u8; SCRATCH_BYTES],
    // Last: everything is restored before the thread is released.
    seized: Seized,
}

/// A thread that is traced. Dropping this ends the tracing, after which the thread runs.
struct Seized(Pid);

impl Drop for Seized {
    fn drop(&mut self) {
        // Fails when the thread did not stop: the kernel ends the tracing with the tracing thread then.
        let _ = ptrace::detach(self.0, None);
    }
}

impl StoppedThread {
    /// Stops the main thread of a process, calls `work` with it, and releases it. Also returns for how long it was
    /// stopped.
    ///
    /// Tracing belongs to one thread of this process. It is a new one, so that the kernel ends the tracing also if it
    /// panics.
    pub(super) fn with<T: Send>(
        pid: i32,
        work: impl FnOnce(&mut Self) -> Result<T, RegistrationError> + Send,
    ) -> Result<(T, Duration), RegistrationError> {
        let trace = || {
            // A handler that runs in between would prolong the stop.
            let _ = SigSet::all().thread_block();
            let (mut thread, begin) = Self::stop(Pid::from_raw(pid))?;
            let done = work(&mut thread);
            drop(thread);
            Ok((done?, begin.elapsed()))
        };
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("ptrace".into()).spawn_scoped(scope, trace);
            let thread = thread.map_err(|error| RegistrationError::Trace {
                doing: "starting a thread",
                errno: error.raw_os_error().map_or(Errno::EAGAIN, Errno::from_raw),
            })?;
            thread.join().unwrap_or(Err(RegistrationError::Panicked))
        })
    }

    /// A main thread usually waits; if not, it is released and stopped again later.
    fn stop(pid: Pid) -> Result<(Self, Instant), RegistrationError> {
        let first = Instant::now();
        loop {
            let begin = Instant::now();
            if let Some(thread) = Self::stop_once(pid)? {
                return Ok((thread, begin));
            }
            if first.elapsed() > TRY_WAIT {
                return Err(RegistrationError::Busy);
            }
            std::thread::sleep(TRY_PAUSE);
        }
    }

    /// `None` when the thread was not in a system call.
    fn stop_once(pid: Pid) -> Result<Option<Self>, RegistrationError> {
        ptrace::seize(pid, ptrace::Options::empty()).map_err(|errno| match errno {
            Errno::EPERM | Errno::EACCES => RegistrationError::NotPermitted,
            Errno::ESRCH => RegistrationError::Ended,
            errno => RegistrationError::Trace { doing: "attaching to its main thread", errno },
        })?;
        let seized = Seized(pid);
        ptrace::interrupt(pid).map_err(trace_error("stopping its main thread"))?;
        wait_for_interrupt(pid)?;
        let registers = ptrace::getregs(pid).map_err(trace_error("reading its registers"))?;
        if registers.cs != USER_CS_64 {
            return Err(RegistrationError::OtherAbi);
        }
        // No number: the thread was running its own code, or an interrupt handler of the kernel.
        let Some(instruction) = registers.rip.checked_sub(SYSCALL.len() as u64) else { return Ok(None) };
        if registers.orig_rax.cast_signed() < 0 {
            return Ok(None);
        }
        if registers.orig_rax & X32_SYSCALL_BIT != 0 {
            return Err(RegistrationError::OtherAbi);
        }
        let mut code = SYSCALL.map(|_| 0);
        read(pid, instruction, &mut code)?;
        // About to restart a call that was interrupted.
        if code != SYSCALL {
            return Ok(None);
        }
        let scratch = registers.rsp.saturating_sub(SCRATCH_DISTANCE) & !63;
        let mut scratch_content = [0; SCRATCH_BYTES];
        read(pid, scratch, &mut scratch_content)?;
        let signal_mask = signal_mask(pid).map_err(trace_error("reading its signal mask"))?;
        // Signals stay pending until the thread is released. A single step reports itself by SIGTRAP.
        let blocked = !(1 << (Signal::SIGTRAP as u32 - 1));
        let thread = Self { registers, signal_mask, instruction, scratch, scratch_content, seized };
        set_signal_mask(pid, blocked).map_err(trace_error("blocking its signals"))?;
        Ok(Some(thread))
    }

    /// The place at which [`StoppedThread::place`] writes.
    pub(super) fn scratch(&self) -> u64 {
        self.scratch
    }

    /// Writes up to 128 bytes into the thread's stack, for a system call that takes a pointer to them.
    pub(super) fn place(&mut self, bytes: &[u8]) -> Result<(), RegistrationError> {
        debug_assert!(bytes.len() <= SCRATCH_BYTES, "only so much is put back");
        write(self.seized.0, self.scratch, bytes)
    }

    /// Makes a system call in the thread. `name` is for messages.
    pub(super) fn call(
        &mut self,
        name: &'static str,
        number: libc::c_long,
        arguments: [u64; 3],
    ) -> Result<u64, RegistrationError> {
        let pid = self.seized.0;
        let [rdi, rsi, rdx] = arguments;
        let registers = libc::user_regs_struct {
            rax: number.cast_unsigned(),
            // Without a number the kernel does not restart the interrupted call before this one.
            orig_rax: u64::MAX,
            rip: self.instruction,
            rdi,
            rsi,
            rdx,
            ..self.registers
        };
        ptrace::setregs(pid, registers).map_err(trace_error("setting its registers"))?;
        let mut signal = None;
        for _ in 0..STEPS_MAX {
            ptrace::step(pid, signal).map_err(trace_error("single-stepping its main thread"))?;
            // No deadline: with these registers the thread must not be released.
            signal = match wait(pid, WaitPidFlag::empty())? {
                WaitStatus::Stopped(_, Signal::SIGTRAP) => {
                    let after = ptrace::getregs(pid).map_err(trace_error("reading its registers"))?;
                    if after.rip != self.instruction {
                        return result(name, after.rax);
                    }
                    None
                }
                // Cannot be blocked. It takes effect when the thread is released.
                WaitStatus::Stopped(_, Signal::SIGSTOP) => Some(Signal::SIGSTOP),
                // Caused by the call; its handler must not run with these registers.
                WaitStatus::Stopped(..) => {
                    return Err(RegistrationError::Refused { name, errno: Errno::EFAULT });
                }
                // The process is being stopped or continued by others.
                _ => None,
            };
        }
        Err(RegistrationError::Refused { name, errno: Errno::EINTR })
    }

    fn put_back(&self) -> Result<(), RegistrationError> {
        let pid = self.seized.0;
        write(pid, self.scratch, &self.scratch_content)?;
        // With the number and the result of the interrupted call, so that the kernel restarts it.
        ptrace::setregs(pid, self.registers).map_err(trace_error("putting back its registers"))?;
        set_signal_mask(pid, self.signal_mask).map_err(trace_error("putting back its signal mask"))
    }
}

impl Drop for StoppedThread {
    fn drop(&mut self) {
        match self.put_back() {
            Ok(()) | Err(RegistrationError::Ended) => {}
            Err(error) => {
                tracing::error!(pid = self.seized.0.as_raw(), %error, "QEMU's main thread is not as before");
            }
        }
    }
}

/// Waits for the requested stop, and passes on the signals that arrive before it.
fn wait_for_interrupt(pid: Pid) -> Result<(), RegistrationError> {
    let begin = Instant::now();
    while begin.elapsed() < STOP_WAIT {
        match wait(pid, WaitPidFlag::WNOHANG)? {
            WaitStatus::PtraceEvent(_, _, libc::PTRACE_EVENT_STOP) => return Ok(()),
            WaitStatus::Stopped(_, signal) => {
                ptrace::cont(pid, signal).map_err(trace_error("passing on a signal"))?;
            }
            WaitStatus::StillAlive if begin.elapsed() < POLL_WAIT => std::thread::yield_now(),
            _ => std::thread::sleep(Duration::from_micros(200)),
        }
    }
    Err(RegistrationError::NoStop)
}

/// The next stop of the thread, whichever its cause.
fn wait(pid: Pid, flags: WaitPidFlag) -> Result<WaitStatus, RegistrationError> {
    loop {
        match waitpid(pid, Some(flags | WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD)) {
            Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) | Err(Errno::ECHILD) => {
                return Err(RegistrationError::Ended);
            }
            Ok(status) => return Ok(status),
            // A real-time signal, which has no name here: handled like any other.
            Err(Errno::EINVAL) => return Ok(WaitStatus::Continued(pid)),
            Err(Errno::EINTR) => {}
            Err(errno) => {
                return Err(RegistrationError::Trace { doing: "waiting for its main thread", errno });
            }
        }
    }
}

/// Errors are the numbers from -4095 to -1.
fn result(name: &'static str, value: u64) -> Result<u64, RegistrationError> {
    match value.cast_signed() {
        error @ -4095..=-1 => {
            let errno = Errno::from_raw(i32::try_from(-error).unwrap_or(libc::EIO));
            Err(RegistrationError::Refused { name, errno })
        }
        _ => Ok(value),
    }
}

fn signal_mask(pid: Pid) -> Result<u64, Errno> {
    let mut mask = 0_u64;
    // SAFETY: the request writes as many bytes as its third argument says, which is the size of `mask`.
    let done = unsafe { libc::ptrace(PTRACE_GETSIGMASK, pid.as_raw(), size_of_val(&mask), &raw mut mask) };
    Errno::result(done).map(|_| mask)
}

fn set_signal_mask(pid: Pid, mask: u64) -> Result<(), Errno> {
    // SAFETY: the request reads as many bytes as its third argument says, which is the size of `mask`, and changes
    // nothing in this process.
    let done =
        unsafe { libc::ptrace(libc::PTRACE_SETSIGMASK, pid.as_raw(), size_of_val(&mask), &raw const mask) };
    Errno::result(done).map(drop)
}

fn read(pid: Pid, at: u64, into: &mut [u8]) -> Result<(), RegistrationError> {
    let length = into.len();
    let place = RemoteIoVec { base: address(at)?, len: length };
    match process_vm_readv(pid, &mut [IoSliceMut::new(into)], &[place]) {
        Ok(count) if count == length => Ok(()),
        done => Err(memory_error("reading its memory", done)),
    }
}

fn write(pid: Pid, at: u64, bytes: &[u8]) -> Result<(), RegistrationError> {
    let place = RemoteIoVec { base: address(at)?, len: bytes.len() };
    match process_vm_writev(pid, &[IoSlice::new(bytes)], &[place]) {
        Ok(count) if count == bytes.len() => Ok(()),
        done => Err(memory_error("writing its stack", done)),
    }
}

fn address(at: u64) -> Result<usize, RegistrationError> {
    usize::try_from(at).map_err(|_| RegistrationError::OtherAbi)
}

fn memory_error(doing: &'static str, done: Result<usize, Errno>) -> RegistrationError {
    trace_error(doing)(done.err().unwrap_or(Errno::EFAULT))
}

fn trace_error(doing: &'static str) -> impl Fn(Errno) -> RegistrationError {
    move |errno| match errno {
        Errno::ESRCH => RegistrationError::Ended,
        errno => RegistrationError::Trace { doing, errno },
    }
}

#[cfg(test)]
mod tests;
