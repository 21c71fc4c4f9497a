use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// What a run of the command printed, and how it ended.
#[derive(Debug)]
pub struct Ran {
    /// Exit code; -1 when a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Ran {
    /// The same, checked to have exited with 0.
    #[must_use]
    pub fn ok(self) -> Self {
        assert_eq!(self.code, 0, "{self:#?}");
        self
    }

    /// Standard output as JSON.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:#?}"))
    }
}

/// The command under test, which cargo put beside the test.
#[must_use]
pub fn command_path() -> PathBuf {
    let test = std::env::current_exe().expect("the test's own path");
    let path = test.ancestors().nth(2).expect("target/PROFILE/deps/TEST").join("retrovisor");
    assert!(path.exists(), "{} is missing: build it with `cargo build -p retrovisor`", path.display());
    path
}

/// Runs the command on a store.
#[must_use]
pub fn retrovisor(store: &Path, arguments: &[&str]) -> Ran {
    let output = Command::new(command_path())
        .arg("--store")
        .arg(store)
        .args(arguments)
        .env("COLUMNS", "80")
        .output()
        .expect("the command starts");
    ran(&output)
}

fn ran(output: &Output) -> Ran {
    Ran {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}
