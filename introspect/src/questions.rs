//! The registry of the questions that `inspect` answers about one checkpoint.

use std::sync::LazyLock;

use crate::fact::{Fact as _, KernelFact, Task, Violation};
use crate::facts::KINDS;
use crate::question::{Question, Select};

/// The questions that need several kinds of facts, or the checkpoint's memory.
const COMBINED: &[Question] = &[
    Question {
        name: "summary",
        doc: "The kernel, violated invariants and the busiest tasks",
        selects: &[
            KernelFact::KIND.questions[0].selects[0],
            Violation::KIND.questions[0].selects[0],
            Select {
                title: "Busiest tasks",
                table: Task::KIND.schema.table,
                sql: "SELECT pid, comm, state, (utime_ns + stime_ns) / 1000000 AS cpu_ms, rss_pages FROM fact_task \
                      WHERE checkpoint = ?1 ORDER BY utime_ns + stime_ns DESC LIMIT 8",
            },
        ],
    },
    Question { name: "syscalls", doc: "Where each system call leads", selects: &[] },
    Question {
        name: "memory",
        doc: "Page statistics, and what fills memory",
        selects: &[
            Select {
                title: "Memory",
                table: "fact_memory",
                sql: "SELECT * FROM fact_memory WHERE checkpoint = ?1",
            },
            Select {
                title: "Reading",
                table: "fact_reading",
                sql: "SELECT introspect_us, reason FROM fact_reading WHERE checkpoint = ?1",
            },
        ],
    },
    Question { name: "registers", doc: "The vCPUs' registers", selects: &[] },
];

static QUESTIONS: LazyLock<Vec<Question>> = LazyLock::new(|| {
    let declared = KINDS.iter().flat_map(|kind| kind.questions);
    COMBINED[..1].iter().chain(declared).chain(&COMBINED[1..]).copied().collect()
});

/// The registry of questions: `summary` first, then those declared with the facts, then those that need more than facts.
#[must_use]
pub fn questions() -> &'static [Question] {
    &QUESTIONS
}

/// The question of a name; the empty name is `summary`.
#[must_use]
pub fn question(name: &str) -> Option<&'static Question> {
    let name = if name.is_empty() { "summary" } else { name };
    QUESTIONS.iter().find(|question| question.name == name)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_every_question_is_documented() {
        let names: BTreeSet<_> = questions().iter().map(|question| question.name).collect();
        assert_eq!(names.len(), questions().len());
        for question in questions() {
            assert!(!question.doc.is_empty() && !question.doc.ends_with('.'), "{}", question.name);
            for select in question.selects {
                assert!(select.sql.contains(select.table) && select.sql.contains("?1"), "{}", question.name);
            }
        }
    }

    #[test]
    fn questions_are_found_by_name() {
        assert_eq!(question("").map(|found| found.name), Some("summary"));
        assert_eq!(question("mounts").map(|found| found.selects.len()), Some(1));
        assert!(question("nothing").is_none());
    }
}
