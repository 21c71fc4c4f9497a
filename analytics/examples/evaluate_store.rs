//! Evaluates every checkpoint of a store again, offline, and prints the results: `evaluate_store DIR [MACHINE]`.
use std::path::Path;
use std::time::Instant;

use retrovisor_analytics::{Config, Evaluator, Sample, explain, report};
use retrovisor_snapshot::{Access, Store, Verdict};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let dir = arguments.next().ok_or("usage: evaluate_store DIR [MACHINE]")?;
    let store = Store::open(Path::new(&dir), Access::ReadOnly)?;
    let catalogue = store.catalogue();
    let wanted = arguments.next();
    for machine in
        catalogue.machines()?.into_iter().filter(|m| wanted.as_ref().is_none_or(|name| *name == m.name))
    {
        println!("machine {}", machine.name);
        let mut evaluator = Evaluator::new(Config::default());
        let mut alarms = Vec::new();
        for record in catalogue.checkpoints(machine.id)? {
            let Ok(sample) = Sample::load(catalogue, record.id) else { continue };
            let parent = record.parent.and_then(|parent| Sample::load(catalogue, parent).ok());
            let begun = Instant::now();
            let evaluation = evaluator.evaluate(&sample, parent.as_ref());
            let took_ms = begun.elapsed().as_secs_f64() * 1e3;
            let p = evaluation.p_value.map_or("learning".to_owned(), |p| format!("p {p:.1e}"));
            println!(
                "#{:<4} {:<8} {p:<12} {took_ms:6.2} ms  said {}",
                record.sequence, evaluation.verdict, record.verdict
            );
            for reason in evaluation.reasons.iter().take(3) {
                println!("      {}", reason.text);
            }
            if evaluation.verdict == Verdict::Bad {
                alarms.push(record.id);
            }
        }
        if let Some(alarm) = alarms.last() {
            let begun = Instant::now();
            let explanation = explain(catalogue, *alarm)?;
            println!("explained in {:.0} ms: {:#?}", begun.elapsed().as_secs_f64() * 1e3, explanation);
        }
        let begun = Instant::now();
        let page = report(catalogue, machine.id)?.to_html();
        println!("report of {} bytes in {:.0} ms", page.len(), begun.elapsed().as_secs_f64() * 1e3);
        if let Some(path) = arguments.next() {
            std::fs::write(path, page)?;
        }
    }
    Ok(())
}
