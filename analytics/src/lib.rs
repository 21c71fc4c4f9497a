//! Features, detectors, verdicts, root causes and reports.
//!
//! Everything here reads facts that were taken from checkpoints, fresh or a year old; nothing touches a machine.
//! An [`Evaluator`] evaluates checkpoints one after the other; [`explain`] dates an alarm and ranks its causes;
//! [`report`] puts it on one page; [`QUERIES`] are questions to the snapshot database that people can run and change.
#![forbid(unsafe_code)]

mod activity;
mod boot;
mod calibration;
mod cause;
mod config;
mod counter;
mod detector;
mod error;
mod evaluation;
mod evaluator;
mod explain;
mod extract;
mod feature;
mod history;
mod model;
mod number;
mod onset;
mod order;
mod query;
mod reason;
mod report;
mod sample;
mod scale;
mod suspect;
mod verdict;
mod view;

pub use cause::{Cause, CauseKind};
pub use config::Config;
pub use error::{AnalyticsError, Result};
pub use evaluation::{Evaluation, Reason};
pub use evaluator::Evaluator;
pub use explain::{Explanation, explain, explain_with};
pub use extract::{COUNTERS, CounterSource};
pub use feature::{Direction, FEATURES, Feature, Shape, position};
pub use query::{NamedQuery, Output, QUERIES, named_query};
pub use report::{Incident, Operation, Point, Report, Series, report, report_with};
pub use sample::{Log, LogLine, Sample, Task, Violation};
