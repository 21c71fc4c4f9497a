use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use retrovisor_guest::{Interface, MachineError, Network, check_name};

use super::config::NetConfig;
use super::net::hub::Hub;
use super::net::link::NetBackend;

/// The hubs that this process serves: each from its first use on, until the process ends.
pub(super) struct Hubs {
    dir: PathBuf,
    served: Mutex<BTreeMap<String, Hub>>,
}

impl Hubs {
    pub(super) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), served: Mutex::default() }
    }

    /// Resolves what these interfaces are connected to, and serves the hubs among them.
    pub(super) fn plugs(&self, interfaces: &[Interface]) -> Result<Vec<NetConfig>, MachineError> {
        let plug = |interface: &Interface| {
            let backend = match &interface.network {
                Network::Hub(name) => NetBackend::Hub(self.serve(name)?),
                Network::Tap(name) => NetBackend::Tap(name.clone()),
            };
            Ok(NetConfig { backend, mac: interface.mac })
        };
        interfaces.iter().map(plug).collect()
    }

    /// The socket of the hub of that name.
    fn serve(&self, name: &str) -> Result<PathBuf, MachineError> {
        check_name("hub", name).map_err(|error| MachineError::Config {
            what: error.to_string(),
            help: "A hub is made when the first machine is plugged into it".into(),
        })?;
        // The map is only inserted into and read: it is consistent also after a panic.
        let mut served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(hub) = served.get(name) {
            return Ok(hub.path().to_owned());
        }
        std::fs::create_dir_all(&self.dir).map_err(|source| MachineError::Io {
            doing: format!("cannot make {}, where hubs have their sockets", self.dir.display()),
            source,
        })?;
        let hub = Hub::serve(&self.dir.join(name))?;
        let path = hub.path().to_owned();
        served.insert(name.to_owned(), hub);
        Ok(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hub_is_served_once_and_only_under_a_name() {
        let dir = tempfile::tempdir().unwrap();
        let hubs = Hubs::new(dir.path());
        let interface = |name: &str| Interface { network: Network::Hub(name.to_owned()), mac: None };
        let plugs = hubs.plugs(&[interface("lan"), interface("lan"), interface("dmz")]).unwrap();
        let paths = plugs.into_iter().map(|plug| match plug.backend {
            NetBackend::Hub(path) => path,
            other => panic!("{other:?}"),
        });
        let paths: Vec<_> = paths.collect();
        assert_eq!((&paths[0], paths[0] == paths[2]), (&paths[1], false));
        assert!(paths.iter().all(|path| path.starts_with(dir.path()) && path.exists()));
        for name in ["", "../lan", "a b"] {
            let error = hubs.plugs(&[interface(name)]).unwrap_err().to_string();
            assert!(error.contains("cannot name a hub"), "{error}");
        }
        drop(hubs);
        assert!(!paths[0].exists(), "gone with the daemon");
    }
}
