//! Where files are on the host, and who may own them.

use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use etcetera::base_strategy::{BaseStrategy as _, Xdg};
use nix::unistd::geteuid;

use crate::error::CliError;

/// What a store has in it before there is a catalogue.
const STORE_ENTRIES: [&str; 7] = ["packs", "machines", "kernels", "hubs", "key", "lock", "daemon.sock"];
/// Only the owner may look into a store: guest memory is private.
const STORE_MODE: u32 = 0o700;

/// The store when none is named: `$XDG_DATA_HOME/retrovisor`, or `~/.local/share/retrovisor`.
pub(crate) fn default_store() -> Result<PathBuf, CliError> {
    let unknown = || {
        CliError::refused(
            "there is no place for the store: HOME is not set",
            "Name a folder with --store DIR, or set RETROVISOR_STORE or HOME.",
        )
    };
    Ok(xdg("XDG_DATA_HOME").ok_or_else(unknown)?.data_dir().join("retrovisor"))
}

/// The guest that `setup/guest.sh` prepared: `$RETROVISOR_CACHE/guest` or `~/.cache/retrovisor/guest`.
pub(crate) fn guest_cache() -> Result<PathBuf, CliError> {
    let unknown = || {
        CliError::refused(
            "the demo's guest cannot be found: HOME is not set",
            "Name its files with --kernel, --initrd and --disk, or set RETROVISOR_CACHE or HOME.",
        )
    };
    let cache = match std::env::var_os("RETROVISOR_CACHE") {
        Some(cache) => PathBuf::from(cache),
        None => xdg("XDG_CACHE_HOME").ok_or_else(unknown)?.cache_dir().join("retrovisor"),
    };
    Ok(cache.join("guest"))
}

/// The user's folders, when `variable` or HOME names them. The password database is not used: a service
/// without an environment needs an explicit store.
fn xdg(variable: &str) -> Option<Xdg> {
    let names = |name: &str| std::env::var_os(name).is_some_and(|path| Path::new(&path).is_absolute());
    if names(variable) || names("HOME") { Xdg::new().ok() } else { None }
}

/// The daemon's Unix socket: in its store, so that `--store` alone finds both.
pub(crate) fn socket(store: &Path) -> PathBuf {
    store.join("daemon.sock")
}

/// Sockets of the hubs between machines.
pub(crate) fn hubs(store: &Path) -> PathBuf {
    store.join("hubs")
}

/// Refuses a store of another user: what is in it could be made to deceive, and what is written there could be read.
pub(crate) fn check_owner(store: &Path) -> Result<(), CliError> {
    let Ok(meta) = std::fs::metadata(store) else { return Ok(()) };
    check_owner_is(store, meta.uid(), geteuid().as_raw())
}

fn check_owner_is(store: &Path, owner: u32, user: u32) -> Result<(), CliError> {
    if owner == user {
        return Ok(());
    }
    Err(CliError::refused(
        format!("the store {} belongs to user {owner}, and this is user {user}", store.display()),
        format!("Run as that user, name another store with --store, or take it over: chown -R {user} STORE"),
    ))
}

/// Refuses a folder with other files in it: its mode is changed, and it is filled.
fn check_is_store(store: &Path) -> Result<(), CliError> {
    let entries = match std::fs::read_dir(store) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(CliError::failed(format!("{}: {error}", store.display()))),
    };
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let is_own = |name: &String| {
        STORE_ENTRIES.contains(&name.as_str())
            || name.starts_with("catalogue.sqlite")
            || name.starts_with('.')
    };
    match names.into_iter().find(|name| !is_own(name)) {
        Some(other) if !store.join("catalogue.sqlite").exists() => Err(CliError::refused(
            format!("{} is no store: it has `{}` in it", store.display(), other.escape_debug()),
            "Name an empty folder, or one that does not exist yet. Nothing was changed.",
        )),
        _ => Ok(()),
    }
}

/// Makes the store's folder for its owner alone, or makes sure that an existing one is. Answers what was changed of an
/// existing one, in words.
pub(crate) fn prepare_store(store: &Path) -> Result<Option<String>, CliError> {
    let failed = |error: std::io::Error| CliError::failed(format!("{}: {error}", store.display()));
    check_owner(store)?;
    check_is_store(store)?;
    std::fs::DirBuilder::new().recursive(true).mode(STORE_MODE).create(store).map_err(failed)?;
    let mode = std::fs::metadata(store).map_err(failed)?.permissions().mode() & 0o777;
    if mode & !STORE_MODE == 0 {
        return Ok(None);
    }
    std::fs::set_permissions(store, std::fs::Permissions::from_mode(STORE_MODE)).map_err(failed)?;
    Ok(Some(format!(
        "The mode of {} was {mode:04o} and is {STORE_MODE:04o} now: guest memory is private.",
        store.display()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().join("a").join("store");
        let mode = || std::fs::metadata(&store).unwrap().permissions().mode() & 0o777;
        assert_eq!((prepare_store(&store).unwrap(), mode()), (None, 0o700));
        std::fs::set_permissions(&store, std::fs::Permissions::from_mode(0o755)).unwrap();
        let said = prepare_store(&store).unwrap().unwrap();
        assert!(said.contains("was 0755 and is 0700 now"), "{said}");
        assert_eq!(mode(), 0o700);
    }

    #[test]
    fn a_folder_with_other_files_is_no_store_and_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o1777)).unwrap();
        std::fs::write(dir.path().join("notes.txt"), "hi").unwrap();
        let refused = prepare_store(dir.path()).unwrap_err();
        assert!(refused.to_string().contains("is no store: it has `notes.txt` in it"), "{refused}");
        assert_eq!(std::fs::metadata(dir.path()).unwrap().permissions().mode() & 0o7777, 0o1777);
        std::fs::remove_file(dir.path().join("notes.txt")).unwrap();
        std::fs::create_dir(dir.path().join("packs")).unwrap();
        assert!(prepare_store(dir.path()).is_ok());
        // A file beside a store does no harm.
        std::fs::write(dir.path().join("catalogue.sqlite"), "").unwrap();
        std::fs::write(dir.path().join("notes.txt"), "hi").unwrap();
        assert!(prepare_store(dir.path()).is_ok());
    }

    #[test]
    fn a_store_of_another_user_is_refused() {
        let refused = check_owner_is(Path::new("/srv/store"), 1000, 0).unwrap_err();
        assert_eq!(refused.exit_code, 4);
        assert_eq!(refused.to_string(), "the store /srv/store belongs to user 1000, and this is user 0");
        assert!(check_owner_is(Path::new("/srv/store"), 1000, 1000).is_ok());
    }
}
