//! The demonstration: a stock guest is checkpointed, two faults are injected, detected, rolled back and explained.

mod console;
mod scenario;
mod screen;
mod summary;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use retrovisor_analytics::named_query;
use retrovisor_guest::{DRIVER_DEFAULT, LaunchSpec};
use retrovisor_manager::{MachineSpec, Manager, ManagerError};
use retrovisor_proto::v1::{Cell, GetReportRequest, QueryRequest, StopMachineRequest, cell};
use retrovisor_snapshot::{Access, RecorderSettings, Store};

use crate::client;
use crate::error::CliError;
use crate::place;
use crate::terminal::quantity;
use crate::terminal::{output, table};
use console::Console;
use scenario::Scenario;
use screen::Screen;
use summary::Summary;

/// Name of the machine in the demo's store.
const MACHINE: &str = "demo";
/// A guest that writes no tick for this long did not boot.
const BOOT_PATIENCE: Duration = Duration::from_mins(1);
/// Ticks of the guest's workload before the first checkpoint: booting is not part of the baseline.
const SETTLED_TICK: u64 = 30;
/// The named queries that are run at the end.
const QUERIES_SHOWN: [&str; 3] = ["broken-invariants", "cpu-since", "new-tasks"];

/// What the user chose.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) dir: PathBuf,
    pub(crate) kernel: PathBuf,
    pub(crate) initrd: PathBuf,
    pub(crate) disk: PathBuf,
    pub(crate) every_ms: u32,
}

/// Runs the demo. The store, the report and the summary stay in the plan's folder.
pub(crate) async fn run(plan: &Plan) -> Result<(), CliError> {
    let begun = Instant::now();
    let store_dir = fresh_store(&plan.dir)?;
    let mut screen = Screen::new();
    screen.title("Retrovisor: the undo history and rear-view mirror of virtual machines");
    let detected = retrovisor_machine::accelerator::detect();
    screen.text(&format!("Guests run under {}: {}", detected.accelerator, detected.reason));

    place::prepare_store(&store_dir)?;
    let store =
        Store::open(&store_dir, Access::Create).map_err(|error| CliError::failed(error.to_string()))?;
    let manager = Arc::new(Manager::new(
        Arc::new(store),
        &store_dir,
        RecorderSettings::default(),
        retrovisor_machine::drivers(&place::hubs(&store_dir)),
    ));
    let client = client::in_process(Arc::clone(&manager)).await?;
    boot(&manager, plan, &mut screen).await?;

    let console = Console::new(retrovisor_manager::runtime_dir(&store_dir, MACHINE).join("console.log"));
    let mut scenario = Scenario::new(client.clone(), console, screen, Summary::default()).await?;
    let outcome = scenario::run(&mut scenario).await;
    let stop = StopMachineRequest { machine: MACHINE.to_owned(), force: outcome.is_err() };
    let stopped = client.machines().stop_machine(stop).await;
    outcome?;
    stopped?;

    scenario.screen.title("Queries about the cause, answered from the snapshot database");
    let (last_good, first_bad) = scenario.incidents.last().cloned().unwrap_or_default();
    for name in QUERIES_SHOWN {
        ask(&client, name, &last_good, &first_bad).await?;
    }
    let report =
        client.anomalies().get_report(GetReportRequest { machine: MACHINE.to_owned() }).await?.into_inner();
    let report_path = plan.dir.join("report.html");
    write(&report_path, report.html.as_bytes())?;
    scenario.summary.finish(begun.elapsed());
    let summary_path = plan.dir.join("summary.json");
    let text = serde_json::to_string_pretty(&scenario.summary)
        .map_err(|error| CliError::failed(error.to_string()))?;
    write(&summary_path, text.as_bytes())?;

    scenario.screen.title("Done");
    scenario.screen.text(&scenario.summary.in_words());
    let store = store_dir.display();
    outln!();
    outln!("Report: {}", report_path.display());
    outln!("Summary: {}", summary_path.display());
    outln!("Examine what was recorded (no daemon needed):");
    outln!("  retrovisor --store {store} log {MACHINE}");
    outln!("  retrovisor --store {store} anomalies {MACHINE}");
    outln!("  retrovisor --store {store} inspect {MACHINE} tasks --at last-good");
    outln!("  retrovisor --store {store} query --list");
    outln!("Start the guest again:");
    outln!("  retrovisor --store {store} serve &");
    outln!("  retrovisor --store {store} rollback {MACHINE}");
    let missed = scenario.summary.missed_goals();
    if missed.is_empty() {
        Ok(())
    } else {
        Err(CliError::failed(format!(
            "the demo missed {}: {}",
            quantity::count(missed.len() as u64, "goal"),
            missed.join("; ")
        )))
    }
}

/// Starts the guest and waits until its workload has settled.
async fn boot(manager: &Arc<Manager>, plan: &Plan, screen: &mut Screen) -> Result<(), CliError> {
    for (file, what) in [(&plan.kernel, "kernel"), (&plan.initrd, "initramfs"), (&plan.disk, "disk image")] {
        if !file.exists() {
            return Err(CliError::not_found(
                format!("the demo guest's {what} is not at {}", file.display()),
                "Make it with `make setup` in Retrovisor's source folder, or name one with --kernel, --initrd, --disk.",
            ));
        }
    }
    screen.status("booting a stock Debian guest");
    let launch = LaunchSpec {
        kernel: plan.kernel.clone(),
        initrd: Some(plan.initrd.clone()),
        append: "console=ttyS0 quiet panic=-1".to_owned(),
        disks: vec![plan.disk.clone()],
        memory_bytes: 512 << 20,
        vcpus: 2,
        driver: DRIVER_DEFAULT.to_owned(),
        accelerator: None,
        interfaces: Vec::new(),
        channel: false,
    };
    let spec = MachineSpec { detached: false, ..MachineSpec::launched(launch, plan.every_ms) };
    let began = Instant::now();
    let booted = tokio::task::spawn_blocking({
        let manager = Arc::clone(manager);
        move || {
            manager.run_when_ready(MACHINE, &spec, |machine| {
                wait_for_workload(&machine.console_log().unwrap_or_default())
            })
        }
    });
    let tick = booted
        .await
        .map_err(|error| CliError::failed(error.to_string()))?
        .map_err(|error| CliError::failed(format!("the guest did not start: {error}")))?;
    screen.text(&format!(
        "A stock Debian kernel with its workload runs (512 MiB, 2 vCPUs), booted in {:.1} s; it is at tick {tick}.",
        began.elapsed().as_secs_f64()
    ));
    Ok(())
}

fn wait_for_workload(console_log: &Path) -> Result<u64, ManagerError> {
    let console = Console::new(console_log.to_owned());
    let began = Instant::now();
    while began.elapsed() < BOOT_PATIENCE {
        if let Some(tick) = console.last_tick(0).filter(|tick| *tick >= SETTLED_TICK) {
            return Ok(tick);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Err(ManagerError::Refused {
        what: format!("the guest did not report a tick within {} s", BOOT_PATIENCE.as_secs()),
        help: format!("What it wrote: {}", console_log.display()),
    })
}

async fn ask(client: &client::Client, name: &str, last_good: &str, first_bad: &str) -> Result<(), CliError> {
    let query = named_query(name).ok_or_else(|| CliError::failed(format!("there is no query `{name}`")))?;
    outln!();
    output::styled_line(output::BOLD, query.question);
    // These queries are about a machine, or about two checkpoints of it.
    let values = if query.parameters.len() == 2 { vec![last_good, first_bad] } else { vec![MACHINE] };
    outln!("  retrovisor query --named {name} {}", values.join(" "));
    let parameters =
        values.iter().map(|value| Cell { value: Some(cell::Value::Text((*value).to_owned())) }).collect();
    let request = QueryRequest { sql: query.sql.to_owned(), parameters, limit: 6 };
    let answer = client.queries().query(request).await?.into_inner();
    table::print_facts(&answer.table.unwrap_or_default());
    Ok(())
}

/// An empty folder for the demo's store. The store of an earlier demo is removed, nothing else ever is.
fn fresh_store(dir: &Path) -> Result<PathBuf, CliError> {
    let failed =
        |path: &Path, error: std::io::Error| CliError::failed(format!("{}: {error}", path.display()));
    let marker = dir.join(".retrovisor-demo");
    let store = dir.join("store");
    if store.exists() {
        if !marker.exists() {
            return Err(CliError::refused(
                format!("{} was not made by an earlier demo", store.display()),
                "Name another folder with --dir.",
            ));
        }
        std::fs::remove_dir_all(&store).map_err(|error| failed(&store, error))?;
    }
    std::fs::create_dir_all(dir).map_err(|error| failed(dir, error))?;
    std::fs::write(&marker, "").map_err(|error| failed(&marker, error))?;
    // Absolute, so that what is printed at the end works from everywhere.
    std::path::absolute(&store).map_err(|error| failed(&store, error))
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), CliError> {
    std::fs::write(path, bytes)
        .map_err(|error| CliError::failed(format!("cannot write {}: {error}", path.display())))
}
