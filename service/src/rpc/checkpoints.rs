use retrovisor_guest::{ClockPolicy, MachineError};
use retrovisor_manager::{Command, ManagerError, Rollback};
use retrovisor_proto::v1::checkpoint_service_server::CheckpointService;
use retrovisor_proto::v1::{
    AuditMachineRequest, AuditMachineResponse, BranchRequest, BranchResponse, ClockPolicy as Clock,
    CreateCheckpointRequest, CreateCheckpointResponse, CurrentPolicy as Current, DiffRequest, DiffResponse,
    GetCheckpointRequest, GetCheckpointResponse, InspectRequest, InspectResponse, ListCheckpointsRequest,
    ListCheckpointsResponse, ListOperationsRequest, ListOperationsResponse, ListQuestionsRequest,
    ListQuestionsResponse, PinCheckpointRequest, PinCheckpointResponse, Question, RedoRequest, RedoResponse,
    RollbackRequest, RollbackResponse, UndoRequest, UndoResponse,
};
use retrovisor_snapshot::{CheckpointRecord, CurrentPolicy, RollbackRequest as Going};
use tonic::{Request, Response, Status};

use super::stream::Answers;
use super::{Services, convert, difference, inspect, status};

/// The target of a rollback that names none.
const TARGET_DEFAULT: &str = "last-good";

impl Services {
    /// Finds a checkpoint by what the user calls it.
    pub(super) fn resolve(&self, machine: &str, wanted: &str) -> Result<CheckpointRecord, ManagerError> {
        let catalogue = self.manager.store().catalogue();
        let machine = catalogue.machine(machine)?.id;
        Ok(catalogue.resolve(machine, wanted)?)
    }

    async fn converted(&self, rollback: Rollback) -> Result<Option<retrovisor_proto::v1::Rollback>, Status> {
        self.blocking(move |services| Ok(Some(convert::rollback(services.manager.store(), &rollback)?))).await
    }
}

#[tonic::async_trait]
impl CheckpointService for Services {
    async fn create_checkpoint(
        &self,
        request: Request<CreateCheckpointRequest>,
    ) -> Result<Response<CreateCheckpointResponse>, Status> {
        let CreateCheckpointRequest { machine, label } = request.into_inner();
        let label = (!label.is_empty()).then_some(label);
        let record = self
            .manager
            .ask(&machine, |reply| Command::Checkpoint { label, reply })
            .await
            .map_err(|error| status::of(&error))?;
        let checkpoint = self
            .blocking(move |services| Ok(Some(convert::checkpoint(services.manager.store(), &record)?)))
            .await?;
        Ok(Response::new(CreateCheckpointResponse { checkpoint }))
    }

    async fn list_checkpoints(
        &self,
        request: Request<ListCheckpointsRequest>,
    ) -> Result<Response<ListCheckpointsResponse>, Status> {
        let ListCheckpointsRequest { machine, newest } = request.into_inner();
        let checkpoints = self
            .blocking(move |services| {
                let store = services.manager.store();
                let records = store.catalogue().checkpoints(store.catalogue().machine(&machine)?.id)?;
                let skip = if newest == 0 { 0 } else { records.len().saturating_sub(newest as usize) };
                records.iter().skip(skip).map(|record| convert::checkpoint(store, record)).collect()
            })
            .await?;
        Ok(Response::new(ListCheckpointsResponse { checkpoints }))
    }

    async fn get_checkpoint(
        &self,
        request: Request<GetCheckpointRequest>,
    ) -> Result<Response<GetCheckpointResponse>, Status> {
        let GetCheckpointRequest { machine, checkpoint } = request.into_inner();
        let checkpoint = self
            .blocking(move |services| {
                let record = services.resolve(&machine, &checkpoint)?;
                Ok(Some(convert::checkpoint(services.manager.store(), &record)?))
            })
            .await?;
        Ok(Response::new(GetCheckpointResponse { checkpoint }))
    }

    async fn rollback(
        &self,
        request: Request<RollbackRequest>,
    ) -> Result<Response<RollbackResponse>, Status> {
        let request = request.into_inner();
        let clock = match request.clock() {
            Clock::JumpToNow => ClockPolicy::JumpToNow,
            Clock::Unspecified | Clock::StandStill => ClockPolicy::StandStill,
        };
        let current = match request.current() {
            Current::Staged => CurrentPolicy::Staged,
            Current::Unspecified | Current::Durable => CurrentPolicy::Durable,
        };
        let RollbackRequest { machine, checkpoint, dry_run, verify_image, .. } = request;
        let wanted = if checkpoint.is_empty() { TARGET_DEFAULT.to_owned() } else { checkpoint };
        let target = self
            .blocking({
                let machine = machine.clone();
                move |services| services.resolve(&machine, &wanted)
            })
            .await?;
        let rollback = if dry_run {
            self.blocking(move |services| services.manager.plan_rollback(&machine, target)).await?
        } else {
            let request = Going { clock, current, ..Going::default() };
            let command = |reply| Command::Rollback { target: target.id, verify_image, request, reply };
            let in_place = if self.manager.is_managed(&machine) {
                self.manager.ask(&machine, command).await
            } else {
                Err(ManagerError::Gone { machine: machine.clone() })
            };
            match in_place {
                // Its process may have ended a moment ago.
                Err(ManagerError::Gone { .. } | ManagerError::Machine(MachineError::Gone { .. }))
                    if !self.manager.is_managed(&machine) =>
                {
                    let restore = move |services: &Self| {
                        services.manager.restore(&machine, target.id, verify_image, clock)
                    };
                    self.blocking(restore).await?
                }
                done => done.map_err(|error| status::of(&error))?,
            }
        };
        Ok(Response::new(RollbackResponse { rollback: self.converted(rollback).await?, dry_run }))
    }

    async fn undo(&self, request: Request<UndoRequest>) -> Result<Response<UndoResponse>, Status> {
        let UndoRequest { machine, verify_image } = request.into_inner();
        let command = |reply| Command::Undo { verify_image, reply };
        let rollback = self.manager.ask(&machine, command).await.map_err(|error| status::of(&error))?;
        Ok(Response::new(UndoResponse { rollback: self.converted(rollback).await? }))
    }

    async fn redo(&self, request: Request<RedoRequest>) -> Result<Response<RedoResponse>, Status> {
        let RedoRequest { machine, verify_image } = request.into_inner();
        let command = |reply| Command::Redo { verify_image, reply };
        let rollback = self.manager.ask(&machine, command).await.map_err(|error| status::of(&error))?;
        Ok(Response::new(RedoResponse { rollback: self.converted(rollback).await? }))
    }

    type BranchStream = Answers<BranchResponse>;

    async fn branch(&self, request: Request<BranchRequest>) -> Result<Response<Self::BranchStream>, Status> {
        let request = request.into_inner();
        Ok(self.stream(move |services, to| services.branch_now(&request, to)))
    }

    async fn audit_machine(
        &self,
        request: Request<AuditMachineRequest>,
    ) -> Result<Response<AuditMachineResponse>, Status> {
        let machine = request.into_inner().machine;
        let report = self
            .manager
            .ask(&machine, |reply| Command::Audit { reply })
            .await
            .map_err(|error| status::of(&error))?;
        let answer = self
            .blocking(move |services| {
                Ok(AuditMachineResponse {
                    checkpoint: Some(convert::checkpoint(services.manager.store(), &report.checkpoint)?),
                    total_pages: report.pages,
                    compared_pages: report.compared_pages,
                    written_pages: report.written_pages,
                    mismatched_pages: report.mismatched_pages,
                    mismatched_gfns: report.mismatches.iter().map(|gfn| gfn.0).collect(),
                    // A range without a checkpoint is that of a machine that was just taken to another one.
                    doubtful_from: report
                        .doubtful
                        .filter(|range| !range.is_empty())
                        .map_or(0, |range| *range.start()),
                    pauses: report.timing.pauses,
                    pause_max_us: report.timing.pause_max_us,
                    total_us: report.timing.total_us,
                    disks: report.disks.into_iter().map(convert::disk_audit_result).collect(),
                })
            })
            .await?;
        Ok(Response::new(answer))
    }

    async fn list_operations(
        &self,
        request: Request<ListOperationsRequest>,
    ) -> Result<Response<ListOperationsResponse>, Status> {
        let name = request.into_inner().machine;
        let operations = self
            .blocking(move |services| {
                let store = services.manager.store();
                let records = store.catalogue().operations(store.catalogue().machine(&name)?.id)?;
                records.iter().map(|record| convert::operation(store, record)).collect()
            })
            .await?;
        Ok(Response::new(ListOperationsResponse { operations }))
    }

    async fn inspect(&self, request: Request<InspectRequest>) -> Result<Response<InspectResponse>, Status> {
        let InspectRequest { machine, checkpoint, what } = request.into_inner();
        let answer = self
            .blocking(move |services| {
                let wanted = if checkpoint.is_empty() { "latest" } else { &checkpoint };
                let record = services.resolve(&machine, wanted)?;
                let store = services.manager.store();
                Ok(InspectResponse {
                    tables: inspect::tables(store, &record, &what)?,
                    checkpoint: Some(convert::checkpoint(store, &record)?),
                })
            })
            .await?;
        Ok(Response::new(answer))
    }

    async fn list_questions(
        &self,
        _request: Request<ListQuestionsRequest>,
    ) -> Result<Response<ListQuestionsResponse>, Status> {
        let questions = retrovisor_introspect::questions();
        let questions = questions.iter().map(|question| Question {
            name: question.name.to_owned(),
            doc: question.doc.to_owned(),
            tables: question.selects.iter().map(|select| select.table.to_owned()).collect(),
        });
        Ok(Response::new(ListQuestionsResponse { questions: questions.collect() }))
    }

    async fn diff(&self, request: Request<DiffRequest>) -> Result<Response<DiffResponse>, Status> {
        let DiffRequest { machine, from, to } = request.into_inner();
        let answer = self
            .blocking(move |services| {
                let (from, to) = (services.resolve(&machine, &from)?, services.resolve(&machine, &to)?);
                let store = services.manager.store();
                let (tables, pages) = difference::differences(store, &from, &to)?;
                Ok(DiffResponse {
                    from: Some(convert::checkpoint(store, &from)?),
                    to: Some(convert::checkpoint(store, &to)?),
                    tables,
                    pages,
                })
            })
            .await?;
        Ok(Response::new(answer))
    }

    async fn pin_checkpoint(
        &self,
        request: Request<PinCheckpointRequest>,
    ) -> Result<Response<PinCheckpointResponse>, Status> {
        let PinCheckpointRequest { machine, checkpoint, pinned } = request.into_inner();
        let answer = self
            .blocking(move |services| {
                let record = services.resolve(&machine, &checkpoint)?;
                let store = services.manager.store();
                let changed = store.pin(record.id, pinned)?;
                Ok(PinCheckpointResponse { checkpoint: Some(convert::checkpoint(store, &record)?), changed })
            })
            .await?;
        Ok(Response::new(answer))
    }
}
