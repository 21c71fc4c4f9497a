use std::fmt;
use std::str::FromStr;

use rusqlite::{OptionalExtension, params};
use serde::{Deserialize, Serialize};

use super::connection::{Catalogue, Durability};
use crate::damage::Damage;
use crate::error::{Error, Result};
use crate::id::CheckpointId;

/// The detectors' verdict on a checkpoint, ordered by severity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// None yet.
    #[default]
    Unknown,
    /// Neither it nor the checkpoints after it, for longer than detection usually takes, had an anomaly.
    Good,
    /// Something is unusual; it may be noise.
    Suspect,
    /// An anomaly: never a target of an automatic rollback.
    Bad,
}

/// A verdict with its evidence.
#[derive(Clone, Debug, PartialEq)]
pub struct VerdictRecord {
    /// The verdict.
    pub verdict: Verdict,
    /// The detectors' score: higher is more unusual.
    pub score: f64,
    /// Calibrated p-value, where there is one.
    pub p_value: Option<f64>,
    /// Reasons as text, the strongest first.
    pub reasons: Vec<String>,
    /// The features that the detectors used, by name.
    pub features: Vec<(String, f64)>,
}

impl Catalogue {
    /// Records (or replaces) the verdict on a checkpoint. Features that are not finite are left out, because SQL cannot
    /// store them.
    pub fn set_verdict(&self, checkpoint: CheckpointId, record: &VerdictRecord) -> Result<()> {
        let reasons = serde_json::Value::from(record.reasons.clone()).to_string();
        self.write("keeping a verdict", Durability::Process, |transaction| {
            transaction
                .prepare_cached(
                    "INSERT INTO verdict (checkpoint, verdict, score, p_value, reasons) VALUES (?1, ?2, ?3, ?4, ?5)
                     ON CONFLICT (checkpoint) DO UPDATE SET verdict = excluded.verdict, score = excluded.score,
                         p_value = excluded.p_value, reasons = excluded.reasons",
                )?
                .execute(params![
                    checkpoint.0,
                    record.verdict.to_string(),
                    if record.score.is_nan() { 0.0 } else { record.score },
                    record.p_value.filter(|p| p.is_finite()),
                    reasons
                ])?;
            transaction.prepare_cached("DELETE FROM feature WHERE checkpoint = ?1")?.execute([checkpoint.0])?;
            let mut insert = transaction
                .prepare_cached("INSERT OR REPLACE INTO feature (checkpoint, name, value) VALUES (?1, ?2, ?3)")?;
            for (name, value) in record.features.iter().filter(|(_, value)| value.is_finite()) {
                insert.execute(params![checkpoint.0, name, value])?;
            }
            Ok(())
        })
    }

    /// Changes only the verdict: score, reasons and features stay. If there was none, the score is 0.
    pub fn change_verdict(&self, checkpoint: CheckpointId, verdict: Verdict) -> Result<()> {
        self.write("changing a verdict", Durability::Process, |transaction| {
            transaction
                .prepare_cached(
                    "INSERT INTO verdict (checkpoint, verdict, score, reasons) VALUES (?1, ?2, 0, '[]')
                     ON CONFLICT (checkpoint) DO UPDATE SET verdict = excluded.verdict",
                )?
                .execute(params![checkpoint.0, verdict.to_string()])?;
            Ok(())
        })
    }

    /// The verdict on a checkpoint, with features by name.
    pub fn verdict(&self, checkpoint: CheckpointId) -> Result<Option<VerdictRecord>> {
        let unreadable = |what: &str| {
            Error::Damaged(Box::new(Damage::catalogue(format!("{what} of checkpoint number {checkpoint}"))))
        };
        self.read("reading a verdict", |reader| {
            let row = reader
                .prepare_cached("SELECT verdict, score, p_value, reasons FROM verdict WHERE checkpoint = ?1")?
                .query_row([checkpoint.0], |row| {
                    Ok((row.get::<_, String>(0)?, row.get(1)?, row.get(2)?, row.get::<_, String>(3)?))
                })
                .optional()?;
            let Some((verdict, score, p_value, reasons)) = row else {
                return Ok(None);
            };
            let features = reader
                .prepare_cached("SELECT name, value FROM feature WHERE checkpoint = ?1 ORDER BY name")?
                .query_map([checkpoint.0], |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect::<Result<_, _>>()?;
            Ok(Some(VerdictRecord {
                verdict: verdict.parse().map_err(|_| unreadable("verdict"))?,
                score,
                p_value,
                reasons: serde_json::from_str(&reasons).map_err(|_| unreadable("reasons"))?,
                features,
            }))
        })
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Unknown => "unknown",
            Self::Good => "good",
            Self::Suspect => "suspect",
            Self::Bad => "bad",
        })
    }
}

impl FromStr for Verdict {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        [Self::Unknown, Self::Good, Self::Suspect, Self::Bad]
            .into_iter()
            .find(|verdict| verdict.to_string() == text)
            .ok_or_else(|| Error::Invalid {
                what: "verdict",
                why: format!("{text:?} is none of unknown, good, suspect, bad"),
            })
    }
}
