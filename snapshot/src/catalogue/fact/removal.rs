//! The removal of checkpoints' facts.

use std::collections::BTreeSet;

use rusqlite::{OptionalExtension, Transaction, params};

use super::super::abort::Abort;
use super::layout;

/// Removes the facts of checkpoints. Those of all others stay as they are: spans become shorter, and those that
/// contain no checkpoint any more are removed.
pub(in crate::catalogue) fn forget(transaction: &Transaction<'_>, checkpoints: &[i64]) -> Result<(), Abort> {
    let (mut series, mut observations) = (BTreeSet::new(), BTreeSet::new());
    for checkpoint in checkpoints {
        let found: Option<(i64, i64, Option<i64>)> = transaction
            .prepare_cached(
                "UPDATE observation SET checkpoint = NULL WHERE checkpoint = ?1 RETURNING id, series, base",
            )?
            .query_row([checkpoint], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
            .optional()?;
        if let Some((id, of, base)) = found {
            series.insert(of);
            observations.extend([Some(id), base].into_iter().flatten());
        }
    }
    // The newest first: a base is older than those based on it.
    for id in observations.into_iter().rev() {
        transaction
            .prepare_cached(
                "DELETE FROM observation WHERE id = ?1 AND checkpoint IS NULL
                     AND NOT EXISTS (SELECT 1 FROM observation d WHERE d.base = ?1)",
            )?
            .execute([id])?;
    }
    for layout in layout::all(transaction)? {
        for series in &series {
            shorten(transaction, &layout.span(), *series)?;
        }
    }
    for series in series {
        transaction
            .prepare_cached(
                "DELETE FROM series WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM observation WHERE series = ?1)",
            )?
            .execute([series])?;
    }
    Ok(())
}

/// Makes the spans of a series begin and end at checkpoints that are there.
fn shorten(transaction: &Transaction<'_>, span: &str, series: i64) -> Result<(), Abort> {
    let is_empty = transaction
        .prepare_cached("SELECT max(checkpoint) IS NULL FROM observation WHERE series = ?1")?
        .query_row([series], |row| row.get(0))?;
    if is_empty {
        transaction
            .prepare_cached(&format!("DELETE FROM \"{span}\" WHERE _series = ?1"))?
            .execute([series])?;
        return Ok(());
    }
    transaction
        .prepare_cached(&format!(
            "DELETE FROM \"{span}\" WHERE _series = ?1 AND NOT EXISTS (SELECT 1 FROM observation o
                 WHERE o.series = ?1 AND o.checkpoint BETWEEN _first AND ifnull(_last, ?2))"
        ))?
        .execute(params![series, i64::MAX])?;
    transaction
        .prepare_cached(&format!(
            "UPDATE \"{span}\" SET
                 _first = (SELECT min(checkpoint) FROM observation WHERE series = ?1 AND checkpoint >= _first),
                 _last = CASE WHEN _last IS NOT NULL THEN
                     (SELECT max(checkpoint) FROM observation WHERE series = ?1 AND checkpoint <= _last) END
             WHERE _series = ?1 AND NOT (
                 EXISTS (SELECT 1 FROM observation WHERE series = ?1 AND checkpoint = _first)
                 AND (_last IS NULL OR EXISTS (SELECT 1 FROM observation WHERE series = ?1 AND checkpoint = _last)))"
        ))?
        .execute([series])?;
    Ok(())
}
