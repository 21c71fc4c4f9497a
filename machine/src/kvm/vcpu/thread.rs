use std::os::unix::thread::JoinHandleExt as _;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError, TryLockError};
use std::thread::JoinHandle;

use kvm_ioctls::{VcpuExit, VcpuFd};
use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use retrovisor_guest::MachineError;

use super::core::Core;
use super::shape::Shape;
use crate::kvm::bus::{Address, Bus};
use crate::kvm::device::Outcome;
use crate::kvm::filter::enter_vcpu_thread;
use crate::kvm::gate::{Gate, Next};

/// The signal that makes a thread leave the guest; its handler does nothing.
const KICK: Signal = Signal::SIGUSR1;

/// Bound on the accesses of one instruction: KVM checks after this many of a string instruction whether to continue.
const ACCESSES_MAX: usize = 1024;

/// Number of polls of a lock before the thread sleeps: about as long as reading a state takes.
const SPINS_MAX: u32 = 4_000;

/// A vCPU and the thread that runs it.
pub(crate) struct Vcpu {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    /// Held by the thread while it is in the guest or reads its state, by the restoring thread while it does not.
    core: Mutex<Core>,
    /// The flag in the page that this vCPU shares with KVM.
    immediate_exit: Flag,
}

/// A byte that KVM reads when the guest is entered.
struct Flag(NonNull<AtomicU8>);

// SAFETY: all access is atomic, and the byte lives as long as the `VcpuFd` beside it.
unsafe impl Send for Flag {}
// SAFETY: as above.
unsafe impl Sync for Flag {}

impl Flag {
    fn set(&self, value: u8) {
        // SAFETY: the byte is in the mapping of the `VcpuFd` that `Shared` owns; nobody else makes a reference to it
        // while threads run, and KVM reads it like an atomic.
        unsafe { self.0.as_ref() }.store(value, Ordering::SeqCst);
    }
}

impl Vcpu {
    /// Starts the thread; it waits at the gate.
    pub(crate) fn start(
        name: &str,
        mut fd: VcpuFd,
        shape: Arc<Shape>,
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
        let shared = Arc::new(Shared { core: Mutex::new(Core::new(fd, shape)), immediate_exit: Flag(byte) });
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn({
                let shared = Arc::clone(&shared);
                move || shared.run(&gate, &bus)
            })
            .map_err(|source| MachineError::Io { doing: format!("starting the thread {name}"), source })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// The vCPU, for reading or restoring its state. Waits until its thread has left the guest and has read the state.
    pub(crate) fn core(&self) -> MutexGuard<'_, Core> {
        for _ in 0..SPINS_MAX {
            match self.shared.core.try_lock() {
                Ok(core) => return core,
                Err(TryLockError::WouldBlock) => std::hint::spin_loop(),
                Err(TryLockError::Poisoned(core)) => return core.into_inner(),
            }
        }
        self.shared.lock()
    }

    /// Whether its state is known, which is the case some time after the stop.
    pub(crate) fn is_known(&self) -> bool {
        self.core().is_known()
    }

    /// Makes the thread leave the guest, or keeps it from entering: the flag takes effect before the entry, the signal
    /// in the guest.
    pub(crate) fn kick(&self) {
        self.shared.immediate_exit.set(1);
        if let Some(thread) = &self.thread {
            // The thread may have ended meanwhile: then it is not in the guest.
            let _ = nix::sys::pthread::pthread_kill(thread.as_pthread_t(), KICK);
        }
    }
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        // The gate was closed before; the panic of a thread is reported elsewhere.
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

extern "C" fn ignore(_: nix::libc::c_int) {}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, gate: &Gate, bus: &Bus) {
        let confined = enter_vcpu_thread();
        let mut look = 0;
        loop {
            let next = gate.enter(&mut look);
            let mut core = self.lock();
            match (next, &confined) {
                (Next::End, _) => break,
                (Next::SaveState, Err(_)) => gate.state_saved(),
                (Next::Run, Err(error)) => {
                    gate.give_up(format!("a vCPU's thread cannot be confined: {error}"));
                    gate.leave();
                }
                (Next::SaveState, Ok(())) => {
                    self.immediate_exit.set(1);
                    core.settle_and_look();
                    gate.state_saved();
                }
                (Next::Run, Ok(())) => {
                    core.forget();
                    self.immediate_exit.set(0);
                    self.stay(&mut core.fd, gate, bus);
                    gate.leave();
                    // No vCPU runs: no other vCPU changes this one any more. The pausing thread finds the dirty pages
                    // meanwhile.
                    if gate.wait_all_out() {
                        core.look();
                    }
                }
            }
        }
    }

    /// Runs the guest until the gate closes.
    fn stay(&self, fd: &mut VcpuFd, gate: &Gate, bus: &Bus) {
        bus.catch_up(|| gate.wants_stop());
        let mut last = Ok(Turn::Exit);
        while !gate.wants_stop() {
            last = turn(fd, bus, gate);
            if let Err(why) = &last {
                gate.give_up(why.clone());
            }
        }
        // An access that caused an exit is completed only by the next entry, which returns at once because of the flag,
        // unless the instruction has several accesses, each of which causes an exit.
        self.immediate_exit.set(1);
        for _ in 0..ACCESSES_MAX {
            if matches!(last, Ok(Turn::Interrupted)) {
                break;
            }
            last = turn(fd, bus, gate);
            if let Err(why) = &last {
                gate.give_up(why.clone());
                break;
            }
        }
    }
}

/// Why a vCPU left the guest.
enum Turn {
    /// An access, which was handled.
    Exit,
    /// It was made to leave.
    Interrupted,
}

/// Runs the guest up to its next exit and handles it.
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
