//! What the user reads when nothing runs yet: exact words and exit codes.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::path::Path;
use std::process::{Command, Output};

fn retrovisor(store: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_retrovisor")).arg("--store").arg(store).args(arguments).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn verbs_that_change_something_name_the_daemon_they_need() {
    let dir = tempfile::tempdir().unwrap();
    for arguments in
        [&["checkpoint", "web"][..], &["undo", "web"], &["run", "web", "--kernel", "k"], &["stop", "web"]]
    {
        let output = retrovisor(dir.path(), arguments);
        assert_eq!(output.status.code(), Some(4));
        assert_eq!(
            stderr(&output),
            format!(
                "error: no daemon answers at {0}/daemon.sock\nStart it with: retrovisor --store {0} serve\n",
                dir.path().display()
            )
        );
    }
}

#[test]
fn verbs_that_read_say_when_there_is_no_store() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("none");
    for arguments in [&["list"][..], &["log", "web"], &["query", "SELECT 1"], &["verify"]] {
        let output = retrovisor(&store, arguments);
        assert_eq!(output.status.code(), Some(3), "{arguments:?}");
        assert!(stderr(&output).starts_with(&format!("error: there is no store at {}\n", store.display())));
    }
    assert!(!store.exists(), "asking must not create a store");
}

#[test]
fn wrong_usage_exits_with_2() {
    let dir = tempfile::tempdir().unwrap();
    for arguments in [
        &["frobnicate"][..],
        &["run", "web"],
        &["run", "web", "--kernel", "k", "--memory", "1K"],
        &["serve", "--listen", "0.0.0.0:1"],
        &["serve", "--staging-mib", "8"],
    ] {
        assert_eq!(retrovisor(dir.path(), arguments).status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn help_shows_examples_and_completions_name_the_verbs() {
    let dir = tempfile::tempdir().unwrap();
    for verb in ["run", "rollback", "inspect", "diff", "query", "attach", "inject"] {
        let help = retrovisor(dir.path(), &[verb, "--help"]).stdout;
        assert!(String::from_utf8_lossy(&help).contains("Example"), "{verb}");
    }
    for shell in ["bash", "zsh", "fish"] {
        let script = retrovisor(dir.path(), &["completions", shell]).stdout;
        assert!(String::from_utf8_lossy(&script).contains("rollback"), "{shell}");
    }
}

#[test]
fn a_reader_that_goes_is_no_reason_to_panic() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = Command::new(env!("CARGO_BIN_EXE_retrovisor"))
        .args(["completions", "bash"])
        .stdout(writer)
        .output()
        .unwrap();
    assert_eq!((output.status.code(), stderr(&output)), (Some(141), String::new()));
}
