use std::ops::ControlFlow;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use retrovisor_guest::{Interface, LaunchSpec, Network};
use retrovisor_manager::{Command, INTERVAL_MIN_MS, MachineSpec, Manager, ManagerError, PausedBy};
use retrovisor_proto::v1::machine_service_server::MachineService;
use retrovisor_proto::v1::network_interface::Network as Asked;
use retrovisor_proto::v1::{
    AttachMachineRequest, AttachMachineResponse, ConsoleRequest, ConsoleResponse, DetachMachineRequest,
    DetachMachineResponse, GetMachineRequest, GetMachineResponse, ListMachinesRequest, ListMachinesResponse,
    Machine, NetworkInterface, PauseMachineRequest, PauseMachineResponse, RemoveMachineRequest,
    RemoveMachineResponse, ResumeMachineRequest, ResumeMachineResponse, RunMachineRequest,
    RunMachineResponse, SetMachineRequest, SetMachineResponse, StopMachineRequest, StopMachineResponse,
};
use retrovisor_snapshot::RemovalReport;
use tonic::{Request, Response, Status, Streaming};

use super::stream::Answers;
use super::{Services, convert, status};

const MEMORY_BYTES_DEFAULT: u64 = 512 << 20;

/// An interval that leaves the guest time to run, or none.
fn interval(every_ms: u32) -> Result<u32, Status> {
    if every_ms == 0 || every_ms >= INTERVAL_MIN_MS {
        return Ok(every_ms);
    }
    Err(status::of(&ManagerError::Invalid(format!(
        "an interval below {INTERVAL_MIN_MS} ms leaves the guest no time to run; 0 means no automatic checkpoints"
    ))))
}

impl Services {
    /// Runs blocking work outside of the async threads, and converts its error.
    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, ManagerError> + Send + 'static,
    ) -> Result<T, Status> {
        let services = self.clone();
        tokio::task::spawn_blocking(move || work(&services))
            .await
            .map_err(|error| Status::internal(format!("the work was interrupted: {error}")))?
            .map_err(|error| status::of(&error))
    }

    async fn machine(&self, name: String) -> Result<Option<Machine>, Status> {
        self.blocking(move |services| {
            let record = services.manager.store().catalogue().machine(&name)?;
            Ok(Some(convert::machine(&services.manager, &record)?))
        })
        .await
    }
}

#[tonic::async_trait]
impl MachineService for Services {
    async fn list_machines(
        &self,
        _: Request<ListMachinesRequest>,
    ) -> Result<Response<ListMachinesResponse>, Status> {
        let machines = self
            .blocking(|services| {
                let records = services.manager.store().catalogue().machines()?;
                records.iter().map(|record| convert::machine(&services.manager, record)).collect()
            })
            .await?;
        Ok(Response::new(ListMachinesResponse { machines }))
    }

    async fn get_machine(
        &self,
        request: Request<GetMachineRequest>,
    ) -> Result<Response<GetMachineResponse>, Status> {
        let machine = self.machine(request.into_inner().machine).await?;
        Ok(Response::new(GetMachineResponse { machine }))
    }

    async fn run_machine(
        &self,
        request: Request<RunMachineRequest>,
    ) -> Result<Response<RunMachineResponse>, Status> {
        let request = request.into_inner();
        let _valid = interval(request.every_ms)?;
        let name = request.machine.clone();
        self.blocking(move |services| {
            let (name, spec) = launch_spec(&services.manager, request)?;
            services.manager.run(&name, &spec)
        })
        .await?;
        Ok(Response::new(RunMachineResponse { machine: self.machine(name).await? }))
    }

    async fn attach_machine(
        &self,
        request: Request<AttachMachineRequest>,
    ) -> Result<Response<AttachMachineResponse>, Status> {
        let AttachMachineRequest { machine: name, qmp, every_ms } = request.into_inner();
        let spec = MachineSpec::attached(PathBuf::from(qmp), interval(every_ms)?);
        self.blocking({
            let name = name.clone();
            move |services| services.manager.attach(&name, &spec)
        })
        .await?;
        Ok(Response::new(AttachMachineResponse { machine: self.machine(name).await? }))
    }

    async fn pause_machine(
        &self,
        request: Request<PauseMachineRequest>,
    ) -> Result<Response<PauseMachineResponse>, Status> {
        let name = request.into_inner().machine;
        self.manager
            .ask(&name, |reply| Command::Pause { by: PausedBy::User, reply })
            .await
            .map_err(|error| status::of(&error))?;
        Ok(Response::new(PauseMachineResponse { machine: self.machine(name).await? }))
    }

    async fn resume_machine(
        &self,
        request: Request<ResumeMachineRequest>,
    ) -> Result<Response<ResumeMachineResponse>, Status> {
        let name = request.into_inner().machine;
        self.manager
            .ask(&name, |reply| Command::Resume { reply })
            .await
            .map_err(|error| status::of(&error))?;
        Ok(Response::new(ResumeMachineResponse { machine: self.machine(name).await? }))
    }

    async fn detach_machine(
        &self,
        request: Request<DetachMachineRequest>,
    ) -> Result<Response<DetachMachineResponse>, Status> {
        let name = request.into_inner().machine;
        let left_behind = self.manager.detach(&name).await.map_err(|error| status::of(&error))?;
        Ok(Response::new(DetachMachineResponse { machine: self.machine(name).await?, left_behind }))
    }

    async fn set_machine(
        &self,
        request: Request<SetMachineRequest>,
    ) -> Result<Response<SetMachineResponse>, Status> {
        let SetMachineRequest { machine: name, every_ms } = request.into_inner();
        if let Some(every_ms) = every_ms {
            let every_ms = interval(every_ms)?;
            self.manager.set_interval(&name, every_ms).await.map_err(|error| status::of(&error))?;
        }
        Ok(Response::new(SetMachineResponse { machine: self.machine(name).await? }))
    }

    async fn remove_machine(
        &self,
        request: Request<RemoveMachineRequest>,
    ) -> Result<Response<RemoveMachineResponse>, Status> {
        let RemoveMachineRequest { machine: name, dry_run } = request.into_inner();
        let removed = self
            .blocking(move |services| {
                let plan = services.manager.plan_removal(&name)?;
                let report = if dry_run {
                    RemovalReport::default()
                } else {
                    services.manager.remove(&name, &mut |_| ControlFlow::Continue(()))?
                };
                Ok(RemoveMachineResponse {
                    checkpoints: if dry_run { plan.history.checkpoints } else { report.checkpoints },
                    stored_bytes: plan.history.stored_bytes,
                    paths: plan.folder.into_iter().map(|folder| folder.display().to_string()).collect(),
                    branches: plan.history.branches,
                    dry_run,
                    freed_bytes: report.compaction.bytes_freed,
                    out_of_space: report.compaction.out_of_space,
                })
            })
            .await?;
        Ok(Response::new(removed))
    }

    type ConsoleStream = Answers<ConsoleResponse>;

    async fn console(
        &self,
        request: Request<Streaming<ConsoleRequest>>,
    ) -> Result<Response<Self::ConsoleStream>, Status> {
        Ok(Response::new(self.open_console(request.into_inner()).await?))
    }

    async fn stop_machine(
        &self,
        request: Request<StopMachineRequest>,
    ) -> Result<Response<StopMachineResponse>, Status> {
        let StopMachineRequest { machine: name, force } = request.into_inner();
        self.manager.stop(&name, force).await.map_err(|error| status::of(&error))?;
        Ok(Response::new(StopMachineResponse { machine: self.machine(name).await? }))
    }
}

fn launch_spec(manager: &Manager, request: RunMachineRequest) -> Result<(String, MachineSpec), ManagerError> {
    let driver = manager.choose_driver(&request.driver)?.name().to_owned();
    let interfaces = request.interfaces.into_iter().map(interface).collect::<Result<Vec<_>, _>>()?;
    let disks: Vec<_> = request.disks.into_iter().map(PathBuf::from).collect();
    disks.iter().try_for_each(|disk| check_disk(disk))?;
    let launch = LaunchSpec {
        kernel: PathBuf::from(request.kernel),
        initrd: (!request.initrd.is_empty()).then(|| PathBuf::from(request.initrd)),
        append: request.append,
        disks,
        memory_bytes: if request.memory_bytes == 0 { MEMORY_BYTES_DEFAULT } else { request.memory_bytes },
        vcpus: request.vcpus.max(1),
        driver,
        accelerator: None,
        interfaces,
        channel: true,
    };
    Ok((request.machine, MachineSpec::launched(launch, request.every_ms)))
}

/// Refuses what is not a file. A path that cannot be read is for the driver to report.
fn check_disk(path: &Path) -> Result<(), ManagerError> {
    let Ok(kind) = std::fs::metadata(path).map(|meta| meta.file_type()) else { return Ok(()) };
    if kind.is_file() {
        return Ok(());
    }
    let shown = path.display();
    let what = if kind.is_block_device() { "a block device" } else { "not a file" };
    Err(ManagerError::Refused {
        what: format!("the disk {shown} is {what}: disks are image files, raw or qcow2"),
        help: format!("Copy a device to an image first: qemu-img convert -O qcow2 {shown} disk.qcow2"),
    })
}

fn interface(asked: NetworkInterface) -> Result<Interface, ManagerError> {
    let network = match asked.network {
        Some(Asked::Hub(name)) => Network::Hub(name),
        Some(Asked::Tap(name)) => Network::Tap(name),
        None => {
            return Err(ManagerError::Invalid("an interface needs a hub or a tap to connect to".to_owned()));
        }
    };
    let mac = Some(asked.address).filter(|address| !address.is_empty());
    let mac = mac.map(|address| address.parse().map_err(ManagerError::Invalid)).transpose()?;
    Ok(Interface { network, mac })
}
