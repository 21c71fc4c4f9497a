//! Messages and exit codes without a running machine.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

use retrovisor_guest::{Accelerator, Gpa, MachineIdentity, MemoryLayout, MemorySlot};
use retrovisor_snapshot::{Access, Store};

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
        &["rollback", "web", "--to", ""],
        &["set", "web", "--every", "100000h"],
    ] {
        assert_eq!(retrovisor(dir.path(), arguments).status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn help_shows_examples() {
    let dir = tempfile::tempdir().unwrap();
    let listed = retrovisor(dir.path(), &["--help"]).stdout;
    let listed = String::from_utf8_lossy(&listed).into_owned();
    let verbs =
        listed.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let verbs: Vec<&str> = verbs.filter_map(|line| line.split_whitespace().next()).collect();
    assert!(verbs.len() > 30, "{verbs:?}");
    for verb in verbs.into_iter().filter(|verb| *verb != "help") {
        let help = retrovisor(dir.path(), &[verb, "--help"]).stdout;
        assert!(String::from_utf8_lossy(&help).contains("Example"), "{verb}");
    }
}

#[test]
fn completions_come_from_the_command_line_and_from_the_service() {
    let dir = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let script = retrovisor(dir.path(), &["completions", shell]).stdout;
        assert!(String::from_utf8_lossy(&script).contains("RETROVISOR_COMPLETE"), "{shell}");
    }
    drop(Store::open(dir.path(), Access::Create).unwrap());
    let complete = |words: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_retrovisor"))
            .args(["--", "retrovisor", "--store"])
            .arg(dir.path())
            .args(words)
            .env("RETROVISOR_COMPLETE", "bash")
            .env("_CLAP_COMPLETE_INDEX", (words.len() + 2).to_string())
            .env("_CLAP_IFS", "\n")
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(complete(&["rollb"]), "rollback");
    assert!(complete(&["inspect", "web", "sock"]).contains("sockets"));
    assert!(complete(&["query", "--named", "new-"]).contains("new-tasks"));
    assert!(complete(&["inject", "web", "bit"]).contains("bit-flip"));
}

#[test]
fn errors_are_json_where_json_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    drop(Store::open(dir.path(), Access::Create).unwrap());
    let output = retrovisor(dir.path(), &["show", "web", "--json"]);
    let error: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!((output.status.code(), &error["exit_code"]), (Some(3), &serde_json::json!(3)));
    assert_eq!(error["reason"], "NOT_FOUND");
    assert!(error["error"].as_str().unwrap().contains("web"), "{error}");
}

#[test]
fn a_closed_pipe_ends_the_command_quietly() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = Command::new(env!("CARGO_BIN_EXE_retrovisor"))
        .args(["completions", "bash"])
        .stdout(writer)
        .output()
        .unwrap();
    assert_eq!((output.status.code(), stderr(&output)), (Some(141), String::new()));
}

#[test]
fn without_home_the_store_must_be_named() {
    let output = Command::new(env!("CARGO_BIN_EXE_retrovisor"))
        .arg("list")
        .env_remove("HOME")
        .env_remove("XDG_DATA_HOME")
        .env_remove("RETROVISOR_STORE")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(4));
    assert_eq!(
        stderr(&output),
        "error: there is no place for the store: HOME is not set\n\
         Name a folder with --store DIR, or set RETROVISOR_STORE or HOME.\n"
    );
}

#[test]
fn an_import_makes_the_store_and_makes_it_private() {
    let dir = tempfile::tempdir().unwrap();
    let (store, dump) = (dir.path().join("store"), dir.path().join("memory.raw"));
    let missing = retrovisor(&store, &["import", "old", dump.to_str().unwrap()]);
    assert_eq!((missing.status.code(), store.exists()), (Some(3), false), "{missing:?}");
    std::fs::write(&dump, vec![1; 1 << 20]).unwrap();
    let imported = retrovisor(&store, &["import", "old", dump.to_str().unwrap()]);
    assert!(imported.status.success(), "{imported:?}");
    let mode = || std::fs::metadata(&store).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(), 0o700);
    std::fs::set_permissions(&store, std::fs::Permissions::from_mode(0o755)).unwrap();
    let again = retrovisor(&store, &["import", "other", dump.to_str().unwrap()]);
    assert!(again.status.success() && stderr(&again).contains("was 0755 and is 0700 now"), "{again:?}");
    assert_eq!(mode(), 0o700);
}

#[test]
fn words_of_an_archive_do_not_drive_the_terminal() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let opened = Store::open(&store, Access::Create).unwrap();
    let hostile = |word: &str| format!("{word}\x1b[2J\u{9b}31m\nforged\u{202e}");
    let layout = MemoryLayout::new(vec![MemorySlot { gpa: Gpa(0), length_bytes: 1 << 20 }]).unwrap();
    let identity = MachineIdentity {
        name: "web".to_owned(),
        driver: hostile("driver"),
        version: hostile("version"),
        accelerator: Accelerator::Kvm,
        vcpus: 1,
        layout,
    };
    opened.catalogue().add_machine(&identity).unwrap();
    drop(opened);
    for arguments in
        [&["list"][..], &["show", "web"], &["query", "SELECT * FROM machine"], &["list", "--json"]]
    {
        let output = retrovisor(&store, arguments);
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("driver"), "{text}");
        assert!(!text.contains(['\x1b', '\u{9b}', '\u{202e}']), "{arguments:?}: {text:?}");
        assert!(!text.lines().any(|line| line.starts_with("forged")), "{arguments:?}: {text:?}");
    }
}

#[test]
fn intervals_are_explained() {
    let dir = tempfile::tempdir().unwrap();
    let output = retrovisor(dir.path(), &["run", "web", "--kernel", "k", "--every", "3 parsecs"]);
    assert_eq!(output.status.code(), Some(2));
    let message = stderr(&output);
    assert!(message.contains("`3 parsecs` is not an interval: write 200ms, 0.5s, 2s, 1m or 1h"), "{message}");
}
