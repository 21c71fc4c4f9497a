//! Features, detectors, verdicts, root causes and reports.
#![forbid(unsafe_code)]
