use std::sync::Arc;

use retrovisor_guest::{Accelerator, Machine as _, MachineError, MachineIdentity};

use super::{KvmMachine, generation_id};
use crate::kvm::boot::{GENERATION_ID, GENERATION_LINE};
use crate::kvm::config::{KvmConfig, MemorySource};
use crate::kvm::equipment::Equipment;
use crate::kvm::gate::Gate;
use crate::kvm::host::{self, failed};
use crate::kvm::input_gate::InputGate;
use crate::kvm::vcpu::{Shape, Vcpu, cpuid};
use crate::kvm::vm::Vm;

const VCPUS_MAX: u32 = 8;

impl KvmMachine {
    /// Creates the machine and starts it, unless it is to wait.
    pub fn launch(config: &KvmConfig) -> Result<Self, MachineError> {
        Self::launch_after(config, || Ok(()))
    }

    /// Like [`Self::launch`]; calls `made` when all files are open and before the first thread starts, so that
    /// restrictions of this thread apply to all threads of the machine.
    pub fn launch_after(
        config: &KvmConfig,
        made: impl FnOnce() -> Result<(), MachineError>,
    ) -> Result<Self, MachineError> {
        check_vcpus(config.vcpus)?;
        let kvm = host::open()?;
        let ram = config.memory.map(&config.layout)?;
        let vm = Vm::new(&kvm, &ram)?;
        let Equipment { bus, memory, windows, disks, console, channel, interfaces } =
            Equipment::new(config, &vm, &ram)?;
        let entry = match &config.memory {
            MemorySource::Fresh | MemorySource::Shared(_) => {
                Some(config.boot.load(&ram, &config.layout, config.vcpus, &windows)?)
            }
            MemorySource::Awaited(_) | MemorySource::Template(_) => None,
        };
        if entry.is_some() {
            memory.write(GENERATION_ID, &generation_id()?)?;
        }
        let bus = Arc::new(bus);
        let gate = Arc::new(Gate::default());
        let input_gate = InputGate::new(Arc::clone(&gate), &bus);
        let supported = cpuid::supported(&kvm)?;
        let xsave_bytes = usize::try_from(vm.fd().check_extension_int(kvm_ioctls::Cap::Xsave2))
            .unwrap_or(0)
            .max(size_of::<kvm_bindings::kvm_xsave>());
        let mut shape = None;
        let mut fds = Vec::new();
        for number in 0..config.vcpus {
            let fd =
                vm.fd().create_vcpu(u64::from(number)).map_err(failed(format!("creating vCPU {number}")))?;
            fd.set_cpuid2(&cpuid::of_vcpu(&supported, number, config.vcpus))
                .map_err(failed("telling a vCPU what it can do"))?;
            let mut sregs = fd.get_sregs().map_err(failed("reading system registers"))?;
            if let Some(regs) = entry.as_ref().and_then(|entry| entry.registers(number, &mut sregs)) {
                fd.set_sregs(&sregs).map_err(failed("setting system registers"))?;
                fd.set_regs(&regs).map_err(failed("setting registers"))?;
                let runnable = kvm_bindings::kvm_mp_state { mp_state: kvm_bindings::KVM_MP_STATE_RUNNABLE };
                fd.set_mp_state(runnable).map_err(failed("making a vCPU runnable"))?;
            }
            if shape.is_none() {
                shape = Some(Arc::new(Shape::find(&kvm, &fd, xsave_bytes, config.vcpus)?));
            }
            fds.push(fd);
        }
        let shape = shape.ok_or_else(|| MachineError::Driver {
            doing: "listing the MSRs".into(),
            message: "there is no vCPU".into(),
        })?;
        made()?;
        let mut vcpus = Vec::new();
        for (number, fd) in fds.into_iter().enumerate() {
            let name = format!("vcpu{number}:{}", config.name);
            let started = Vcpu::start(&name, fd, Arc::clone(&shape), Arc::clone(&gate), Arc::clone(&bus));
            // The existing threads wait at the gate.
            vcpus.push(started.inspect_err(|_| gate.end(|| ()))?);
        }
        let mut receivers = Vec::new();
        for interface in interfaces {
            let started = interface.start(input_gate.clone());
            receivers.push(started.inspect_err(|_| gate.end(|| ()))?);
        }
        let generation_line = vm.line(GENERATION_LINE);
        let mut machine = Self {
            identity: MachineIdentity {
                name: config.name.clone(),
                driver: "kvm".into(),
                version: env!("CARGO_PKG_VERSION").into(),
                accelerator: Accelerator::Kvm,
                vcpus: config.vcpus,
                layout: config.layout.clone(),
            },
            vcpus,
            receivers,
            gate,
            bus,
            vm,
            ram,
            device_memory: memory,
            disks,
            shape,
            input_gate,
            console,
            channel,
            generation_line,
            reports_all: true,
            needs_state: entry.is_none(),
        };
        if !config.paused && entry.is_some() {
            machine.resume()?;
        }
        Ok(machine)
    }
}

/// Refuses an unsupported number of vCPUs.
pub(in crate::kvm) fn check_vcpus(vcpus: u32) -> Result<(), MachineError> {
    if (1..=VCPUS_MAX).contains(&vcpus) {
        return Ok(());
    }
    Err(MachineError::Config {
        what: format!("a machine has 1 to {VCPUS_MAX} vCPUs, not {vcpus}"),
        help: "Choose another number".into(),
    })
}
