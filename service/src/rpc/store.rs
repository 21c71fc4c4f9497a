use retrovisor_proto::v1::store_service_server::StoreService;
use retrovisor_proto::v1::{
    CheckProgress, KeptCheckpoint, LostCheckpoint, MachinePrune, PrunePlan, PruneProgress, PruneReport,
    PruneRequest, PruneResponse, RemovedCheckpoint, RepairItem, RepairPlan, RepairReport, RepairRequest,
    RepairResponse, VerifyRequest, VerifyResponse, prune_response, repair_response,
};
use retrovisor_snapshot::{CompactOptions, RepairAction, RetentionPolicy, VerifyProgress};
use tonic::{Request, Response, Status};

use super::Services;
use super::stream::Answers;

#[tonic::async_trait]
impl StoreService for Services {
    type VerifyStream = Answers<VerifyResponse>;
    type PruneStream = Answers<PruneResponse>;
    type RepairStream = Answers<RepairResponse>;

    async fn verify(&self, _: Request<VerifyRequest>) -> Result<Response<Self::VerifyStream>, Status> {
        Ok(self.stream(|services, to| {
            let store = services.manager.store();
            let mut total_pages = 0;
            let report = store.verify(&mut |progress: VerifyProgress| {
                total_pages = progress.pages_total;
                let message = VerifyResponse {
                    checked_pages: progress.pages_done,
                    total_pages: progress.pages_total,
                    ..VerifyResponse::default()
                };
                // A check changes nothing: it may as well go on until it ends.
                let _ = to.progress(message);
            })?;
            let last = VerifyResponse {
                checked_pages: report.pages_checked,
                // Machines that run add pages meanwhile.
                total_pages: total_pages.max(report.pages_checked),
                finished: true,
                damaged: report.damaged.iter().map(ToString::to_string).collect(),
                checkpoints: report.checkpoints_checked,
                stored_bytes: store.size()?,
            };
            to.send(last);
            Ok(())
        }))
    }

    async fn repair(&self, request: Request<RepairRequest>) -> Result<Response<Self::RepairStream>, Status> {
        let RepairRequest { dry_run } = request.into_inner();
        Ok(self.stream(move |services, to| {
            let answer = |step| RepairResponse { step: Some(step) };
            let mut progress = |progress: VerifyProgress| {
                let progress =
                    CheckProgress { checked_pages: progress.pages_done, total_pages: progress.pages_total };
                let _ = to.progress(answer(repair_response::Step::Progress(progress)));
            };
            let store = services.manager.store();
            let plan = store.plan_repair(&mut progress)?;
            let is_received = to.send(answer(repair_response::Step::Plan(repair_plan(&plan))));
            if dry_run || !is_received {
                return Ok(());
            }
            let report = store.repair(&plan, &mut progress)?;
            let report = RepairReport {
                repaired: report.repaired,
                failed: report.failed,
                lost: report.lost.into_iter().map(lost).collect(),
                recovered: report.recovered,
            };
            to.send(answer(repair_response::Step::Report(report)));
            Ok(())
        }))
    }

    async fn prune(&self, request: Request<PruneRequest>) -> Result<Response<Self::PruneStream>, Status> {
        let PruneRequest { machine, policy, dry_run } = request.into_inner();
        let policy = self::policy(policy.unwrap_or_default());
        Ok(self.stream(move |services, to| {
            let send = |step| to.send(PruneResponse { step: Some(step) });
            let store = services.manager.store();
            let id = match &machine[..] {
                "" => None,
                name => Some(store.catalogue().machine(name)?.id),
            };
            let plan = store.plan_prune(&policy, id)?;
            let is_received = send(prune_response::Step::Plan(self::plan(&plan)));
            if dry_run || !is_received {
                return Ok(());
            }
            let before = store.size()?;
            let report = store.prune(&plan, &CompactOptions::default(), &mut |progress| {
                let step = prune_response::Step::Progress(self::progress(progress));
                to.progress(PruneResponse { step: Some(step) })
            })?;
            send(prune_response::Step::Report(PruneReport {
                checkpoints: report.checkpoints,
                skipped: report.passed_over,
                stored_bytes_before: before,
                stored_bytes: store.size()?,
                out_of_space: report.compaction.out_of_space,
            }));
            Ok(())
        }))
    }
}

fn repair_plan(plan: &retrovisor_snapshot::RepairPlan) -> RepairPlan {
    let item = |item: &retrovisor_snapshot::RepairItem| RepairItem {
        damage: item.damage.clone(),
        action: action(&item.action).to_owned(),
    };
    RepairPlan {
        items: plan.items.iter().map(item).collect(),
        lost: plan.lost.iter().cloned().map(lost).collect(),
        beyond_repair: plan.beyond_repair.clone(),
    }
}

fn action(action: &RepairAction) -> &'static str {
    match action {
        RepairAction::Relink { .. } => "relink",
        RepairAction::RebuildChanges { .. } => "rebuild-changes",
        RepairAction::Reparent { .. } => "reparent",
        RepairAction::RebuildMap { .. } => "rebuild-map",
        RepairAction::RebuildPack { .. } => "rebuild-pack",
        RepairAction::RebuildIndex => "rebuild-index",
    }
}

fn lost(lost: retrovisor_snapshot::LostCheckpoint) -> LostCheckpoint {
    LostCheckpoint { name: lost.name, what: lost.what }
}

fn policy(asked: retrovisor_proto::v1::RetentionPolicy) -> RetentionPolicy {
    let default = RetentionPolicy::default();
    RetentionPolicy {
        keep_last: asked.keep_last.unwrap_or(default.keep_last),
        keep_hourly: asked.keep_hourly.unwrap_or(default.keep_hourly),
        keep_daily: asked.keep_daily.unwrap_or(default.keep_daily),
        keep_weekly: asked.keep_weekly.unwrap_or(default.keep_weekly),
        keep_monthly: asked.keep_monthly.unwrap_or(default.keep_monthly),
        keep_labelled: asked.keep_labelled.unwrap_or(default.keep_labelled),
        keep_bad_days: asked.keep_bad_days.or(default.keep_bad_days),
        undo_depth: asked.undo_depth.unwrap_or(default.undo_depth),
    }
}

fn plan(plan: &retrovisor_snapshot::PrunePlan) -> PrunePlan {
    let machines = plan.machines.iter().map(|machine| MachinePrune {
        machine: machine.machine.clone(),
        kept: machine
            .kept
            .iter()
            .map(|kept| KeptCheckpoint {
                name: kept.name.clone(),
                sequence: kept.sequence,
                reasons: kept.reasons.iter().map(word).collect(),
            })
            .collect(),
        removed: machine
            .removed
            .iter()
            .map(|removed| RemovedCheckpoint {
                name: removed.name.clone(),
                sequence: removed.sequence,
                taken_at_ms: removed.taken_at_ms,
                label: removed.label.clone().unwrap_or_default(),
                quarantined: removed.quarantined,
            })
            .collect(),
    });
    PrunePlan {
        machines: machines.collect(),
        garbage_bytes: plan.estimate.garbage_bytes,
        pack_bytes: plan.estimate.pack_bytes,
        catalogue_bytes: plan.estimate.catalogue_bytes,
        needed_bytes: plan.estimate.needed_bytes,
    }
}

fn progress(progress: retrovisor_snapshot::PruneProgress) -> PruneProgress {
    PruneProgress { step: word(&progress.step), done: progress.done, total: progress.total }
}

/// The word for a plain variant, which is the same in JSON.
fn word(variant: &impl serde::Serialize) -> String {
    match serde_json::to_value(variant) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}
