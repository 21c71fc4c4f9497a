//! Features, detectors, verdicts, root causes and reports.
//!
//! All input is facts of stored checkpoints, of any age; a running machine is never read. An [`Evaluator`] evaluates
//! checkpoints in order; [`explain`] finds the onset of an alarm and ranks its causes; [`report`] makes a page of it;
//! [`QUERIES`] are named queries to the snapshot database, which users can run and adapt.
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
mod lasting;
mod model;
mod number;
mod onset;
mod order;
mod query;
mod reason;
mod report;
mod sample;
mod scale;
mod segment;
mod settling;
mod steady;
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
