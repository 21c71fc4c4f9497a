use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::Archiver;

/// A backup program with an empty repository of its own.
pub(crate) struct Program {
    name: &'static str,
    binary: &'static str,
    repository: PathBuf,
    /// The name that each image has when it is kept: the same, so that the program knows its predecessor.
    image: PathBuf,
    /// Where it keeps its cache.
    home: PathBuf,
    backup: Vec<String>,
    kept: usize,
}

impl Program {
    /// Those that are installed; of the others it says so.
    pub(crate) fn all(dir: &Path) -> Vec<Self> {
        let mut all = Vec::new();
        all.extend(Self::new(dir, "restic", "restic", &["init"], &["backup", "--quiet"]));
        for (name, compression) in [("borg", "lz4"), ("borg-zstd", "zstd,3")] {
            let init = ["init", "--encryption", "none"];
            let backup = ["create", "--compression", compression];
            all.extend(Self::new(dir, name, "borg", &init, &backup));
        }
        all
    }

    fn new(
        dir: &Path,
        name: &'static str,
        binary: &'static str,
        init: &[&str],
        backup: &[&str],
    ) -> Option<Self> {
        if Command::new(binary).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err()
        {
            eprintln!("SKIPPED: {name} is not installed: apt-get install restic borgbackup");
            return None;
        }
        let home = dir.join(name);
        std::fs::create_dir_all(&home).unwrap();
        let program = Self {
            name,
            binary,
            repository: home.join("repository"),
            image: home.join("guest.raw"),
            home,
            backup: backup.iter().map(ToString::to_string).collect(),
            kept: 0,
        };
        let mut command = program.command();
        command.args(init);
        if binary == "borg" {
            command.arg(&program.repository);
        }
        finish(name, command);
        Some(program)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(self.binary);
        command
            .env("RESTIC_REPOSITORY", &self.repository)
            .env("RESTIC_PASSWORD", "benchmark")
            .env("RESTIC_CACHE_DIR", self.home.join("cache"))
            .env("BORG_BASE_DIR", &self.home)
            .env("BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK", "yes");
        command
    }
}

impl Archiver for Program {
    fn name(&self) -> &str {
        self.name
    }

    fn keep(&mut self, image: &Path) {
        // A link: the same bytes under the one name, at no cost.
        let _ = std::fs::remove_file(&self.image);
        std::fs::hard_link(image, &self.image).unwrap();
        let mut command = self.command();
        command.args(&self.backup);
        if self.binary == "borg" {
            command.arg(format!("{}::{}", self.repository.display(), self.kept));
        }
        command.arg(&self.image);
        finish(self.name, command);
        self.kept += 1;
    }

    fn stored_bytes(&self) -> u64 {
        size(&self.repository)
    }
}

fn finish(name: &str, mut command: Command) {
    let done = command.output().expect("the program starts");
    assert!(done.status.success(), "{name}: {}", String::from_utf8_lossy(&done.stderr));
}

fn size(path: &Path) -> u64 {
    let metadata = std::fs::symlink_metadata(path).unwrap();
    if !metadata.is_dir() {
        return metadata.len();
    }
    std::fs::read_dir(path).unwrap().map(|entry| size(&entry.unwrap().path())).sum()
}
