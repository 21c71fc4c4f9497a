//! Where things lie on the host.

use std::path::{Path, PathBuf};

/// `$XDG_DATA_HOME/retrovisor`, or `~/.local/share/retrovisor`.
pub(crate) fn default_store() -> PathBuf {
    base("XDG_DATA_HOME", ".local/share").join("retrovisor")
}

/// The guest that `setup/guest.sh` prepared: `$RETROVISOR_CACHE/guest` or `~/.cache/retrovisor/guest`.
pub(crate) fn guest_cache() -> PathBuf {
    std::env::var_os("RETROVISOR_CACHE")
        .map_or_else(|| base("XDG_CACHE_HOME", ".cache").join("retrovisor"), PathBuf::from)
        .join("guest")
}

/// The daemon's Unix socket: in its store, so that `--store` alone finds both.
pub(crate) fn socket(store: &Path) -> PathBuf {
    store.join("daemon.sock")
}

/// Sockets of the hubs between machines.
pub(crate) fn hubs(store: &Path) -> PathBuf {
    store.join("hubs")
}

fn base(variable: &str, under_home: &str) -> PathBuf {
    std::env::var_os(variable).filter(|dir| !dir.is_empty()).map_or_else(
        || std::env::var_os("HOME").map_or_else(|| PathBuf::from("/tmp"), PathBuf::from).join(under_home),
        PathBuf::from,
    )
}
