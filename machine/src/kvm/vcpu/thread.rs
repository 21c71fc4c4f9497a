use std::os::unix::thread::JoinHandleExt as _;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};
use std::thread::JoinHandle;

use kvm_ioctls::{VcpuExit, VcpuFd};
use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use retrovisor_guest::MachineError;

use crate::kvm::bus::{Address, Bus};
use crate::kvm::device::Outcome;
use crate::kvm::filter::enter_vcpu_thread;
use crate::kvm::gate::Gate;

/// Pulls a thread out of the guest; its handler does nothing.
const KICK: Signal = Signal::SIGUSR1;

/// Most accesses of one instruction: KVM looks after this many of a string instruction whether to go on.
const ACCESSES_MAX: usize = 1024;

/// A vCPU and the thread that runs it.
pub(crate) struct Vcpu {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    /// Held by the thread while it is in the guest, by whoever saves or restores while it is not.
    fd: Mutex<VcpuFd>,
    /// The flag in the page that this vCPU shares with KVM.
    immediate_exit: Flag,
}

/// A byte that KVM looks at when the guest is entered.
struct Flag(NonNull<AtomicU8>);

// SAFETY: all access is atomic, and the byte lives as long as the `VcpuFd` beside it.
unsafe impl Send for Flag {}
// SAFETY: as above.
unsafe impl Sync for Flag {}

impl Flag {
    fn set(&self, value: u8) {
        // SAFETY: the byte lies in the mapping of the `VcpuFd` that `Shared` owns; nobody else makes a reference to it
        // while threads run, and KVM reads it like an atomic.
        unsafe { self.0.as_ref() }.store(value, Ordering::SeqCst);
    }
}

impl Vcpu {
    /// Starts the thread; it waits at the gate.
    pub(crate) fn start(
        name: &str,
        mut fd: VcpuFd,
        gate: Arc<Gate>,
        bus: Arc<Bus>,
    ) -> Result<Self, MachineError> {
        static HANDLER: Once = Once::new();
        HANDLER.call_once(|| {
            let action = SigAction::new(SigHandler::Handler(ignore), SaFlags::empty(), SigSet::empty());
            // SAFETY: the handler does nothing, which is async-signal-safe.
            if let Err(error) = unsafe { sigaction(KICK, &action) } {
                tracing::error!(%error, "vCPUs cannot be pulled out of the guest");
            }
        });
        let byte = NonNull::from(&mut fd.get_kvm_run().immediate_exit).cast();
        let shared = Arc::new(Shared { fd: Mutex::new(fd), immediate_exit: Flag(byte) });
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn({
                let shared = Arc::clone(&shared);
                move || shared.run(&gate, &bus)
            })
            .map_err(|source| MachineError::Io { doing: format!("starting the thread {name}"), source })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// The vCPU, to save or restore it. Waits for its thread to be out of the guest.
    pub(crate) fn fd(&self) -> MutexGuard<'_, VcpuFd> {
        self.shared.lock()
    }

    /// Pulls the thread out of the guest, or keeps it from entering. The flag catches the moment before the entry, the
    /// signal the time in it.
    pub(crate) fn kick(&self) {
        self.shared.immediate_exit.set(1);
        if let Some(thread) = &self.thread {
            // The thread may have ended meanwhile: then it is out of the guest.
            let _ = nix::sys::pthread::pthread_kill(thread.as_pthread_t(), KICK);
        }
    }
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        // The gate was ended before; a thread that panicked has nothing to say here.
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

extern "C" fn ignore(_: nix::libc::c_int) {}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, VcpuFd> {
        self.fd.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, gate: &Gate, bus: &Bus) {
        if let Err(error) = enter_vcpu_thread() {
            gate.give_up(format!("a vCPU's thread cannot be confined: {error}"));
            return;
        }
        while gate.enter() {
            {
                let mut fd = self.lock();
                self.immediate_exit.set(0);
                bus.catch_up(|| gate.wants_stop());
                while !gate.wants_stop() {
                    if let Err(why) = turn(&mut fd, bus, gate) {
                        gate.give_up(why);
                    }
                }
                // An access that left the guest is only finished by the next entry, which returns at once by the flag: but
                // for an instruction with several accesses, each of which leaves the guest.
                self.immediate_exit.set(1);
                for _ in 0..ACCESSES_MAX {
                    match turn(&mut fd, bus, gate) {
                        Ok(Turn::Exit) => {}
                        Ok(Turn::Interrupted) => break,
                        Err(why) => {
                            gate.give_up(why);
                            break;
                        }
                    }
                }
            }
            gate.leave();
        }
    }
}

/// Why a vCPU left the guest.
enum Turn {
    /// It wanted something, which was done.
    Exit,
    /// It was pulled out.
    Interrupted,
}

/// Runs the guest up to its next exit and does what it wanted.
fn turn(fd: &mut VcpuFd, bus: &Bus, gate: &Gate) -> Result<Turn, String> {
    let outcome = match fd.run() {
        Ok(VcpuExit::IoIn(port, data)) => {
            bus.read(Address::Port(port), data);
            Outcome::Done
        }
        Ok(VcpuExit::IoOut(port, data)) => bus.write(Address::Port(port), data),
        Ok(VcpuExit::MmioRead(gpa, data)) => {
            bus.read(Address::Memory(gpa), data);
            Outcome::Done
        }
        Ok(VcpuExit::MmioWrite(gpa, data)) => bus.write(Address::Memory(gpa), data),
        Ok(VcpuExit::Intr) => return Ok(Turn::Interrupted),
        Ok(VcpuExit::IrqWindowOpen | VcpuExit::Nmi) => Outcome::Done,
        Ok(VcpuExit::Hlt) => Outcome::End("a vCPU halted with interrupts off"),
        Ok(VcpuExit::Shutdown) => Outcome::End("a vCPU faulted three times over"),
        Ok(exit) => return Err(format!("a vCPU cannot go on: {exit:?}")),
        Err(error) => match Errno::from_raw(error.errno()) {
            Errno::EINTR => return Ok(Turn::Interrupted),
            Errno::EAGAIN => Outcome::Done,
            errno => return Err(format!("KVM cannot run the guest: {}", errno.desc())),
        },
    };
    match outcome {
        Outcome::Done => Ok(Turn::Exit),
        Outcome::Behind => {
            bus.catch_up(|| gate.wants_stop());
            Ok(Turn::Exit)
        }
        Outcome::End(why) => Err(why.into()),
    }
}
