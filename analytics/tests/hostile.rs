//! A guest writes what it likes into its own facts: nothing may panic, and every number stays finite.

mod synthetic;

use proptest::prelude::*;
use retrovisor_analytics::{Config, Evaluator, Sample, explain, report};
use retrovisor_guest::fact::{Column, Kind, Table, Value};
use synthetic::run::Run;
use synthetic::stored::StoredRun;

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<i64>().prop_map(Value::Integer),
        prop_oneof![Just(0), Just(-1), Just(i64::MAX), Just(i64::MIN)].prop_map(Value::Integer),
        any::<f64>().prop_map(Value::Real),
        "\\PC{0,20}".prop_map(Value::Text),
        Just(Value::Text("x".repeat(100_000))),
    ]
}

/// Replaces cells of a guest's tables, drops rows and columns' worth of cells, repeats rows.
fn corrupt(tables: &mut [Table], mutations: &[(usize, usize, usize, Value, u8)]) {
    for (table, row, cell, value, how) in mutations {
        let count = tables.len();
        let rows = &mut tables[table % count].rows;
        if rows.is_empty() {
            continue;
        }
        let at = row % rows.len();
        match how % 4 {
            0 => rows.push(rows[at].clone()),
            1 => rows[at].truncate(cell % 4),
            2 => {
                rows.remove(at);
            }
            _ => {
                if let Some(slot) = rows[at].get_mut(cell % 12) {
                    *slot = value.clone();
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn corrupted_facts_never_panic(
        mutations in prop::collection::vec(
            prop::collection::vec((0_usize..8, any::<usize>(), any::<usize>(), value(), any::<u8>()), 0..30), 6..34),
        seed in 0_u64..50,
    ) {
        let mut run = Run::new(seed);
        while run.evaluator.is_learning() && seed % 2 == 0 {
            run.step();
        }
        let mut before: Option<Sample> = run.samples.values().max_by_key(|sample| sample.checkpoint()).cloned();
        for mutations in &mutations {
            run.guest.run(0.5);
            let mut tables = run.guest.tables();
            corrupt(&mut tables, mutations);
            let record = run.records.take(&run.guest);
            let sample = Sample::from_tables(&record, &tables);
            let evaluation = run.evaluator.evaluate(&sample, before.as_ref());
            prop_assert!(evaluation.score.is_finite());
            prop_assert!(evaluation.p_value.is_none_or(|p| (0.0..=1.0).contains(&p)));
            prop_assert!(evaluation.features.iter().all(|(_, value)| value.is_finite()));
            prop_assert!(evaluation.reasons.iter().all(|reason| reason.weight.is_finite()));
            before = Some(sample);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn corrupted_facts_in_a_store_never_panic(
        mutations in prop::collection::vec(
            prop::collection::vec((0_usize..8, any::<usize>(), any::<usize>(), value(), any::<u8>()), 0..30), 24..34),
        seed in 0_u64..50,
    ) {
        let mut run = StoredRun::new(seed);
        for mutations in &mutations {
            run.step_with(|tables| {
                corrupt(tables, mutations);
                for table in tables {
                    // The store refuses rows that are too short, and cells of another kind than the column's.
                    let columns = table.schema.columns;
                    let fits = |(cell, column): (&Value, &Column)| match cell {
                        Value::Null => true,
                        Value::Integer(_) => column.kind == Kind::Integer,
                        Value::Real(_) => column.kind == Kind::Real,
                        Value::Text(_) => column.kind == Kind::Text,
                    };
                    table
                        .rows
                        .retain(|row| row.len() == columns.len() && row.iter().zip(columns).all(fits));
                }
            });
        }
        let loaded = Evaluator::load(run.catalogue(), run.machine, Config::default());
        prop_assert!(loaded.is_ok());
        for record in &run.records {
            prop_assert!(explain(run.catalogue(), record.id).is_ok() || Sample::load(run.catalogue(), record.id).is_err());
        }
        prop_assert!(!report(run.catalogue(), run.machine).unwrap().to_html().is_empty());
    }
}
