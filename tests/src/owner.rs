use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::{Value, json};

/// A client of a QEMU that Retrovisor did not start: what its owner does with it.
pub struct Owner(BufReader<UnixStream>);

impl Owner {
    /// Connects to a monitor.
    #[must_use]
    pub fn connect(qmp: &Path) -> Self {
        let mut owner = Self(BufReader::new(UnixStream::connect(qmp).expect("a monitor")));
        let _bytes = owner.0.read_line(&mut String::new()).expect("the greeting");
        let _nothing = owner.run("qmp_capabilities", &json!({}));
        owner
    }

    /// Runs a command that must work.
    pub fn run(&mut self, command: &str, arguments: &Value) -> Value {
        self.tried(command, arguments).unwrap_or_else(|error| panic!("{command}: {error}"))
    }

    /// Runs a command.
    pub fn tried(&mut self, command: &str, arguments: &Value) -> Result<Value, String> {
        let line = json!({ "execute": command, "arguments": arguments }).to_string();
        self.0.get_mut().write_all(format!("{line}\n").as_bytes()).expect("QEMU listens");
        loop {
            let mut line = String::new();
            assert!(self.0.read_line(&mut line).expect("QEMU answers") > 0, "QEMU ended");
            let mut answer: Value = serde_json::from_str(&line).expect("an answer in JSON");
            if let Some(error) = answer.get("error") {
                return Err(error["desc"].as_str().unwrap_or_default().to_owned());
            }
            if let Some(answer) = answer.get_mut("return") {
                return Ok(answer.take());
            }
        }
    }

    /// Runs a command of the human monitor; returns its text, which is empty or an error for most.
    pub fn human(&mut self, line: &str) -> String {
        let answer = self.run("human-monitor-command", &json!({ "command-line": line }));
        answer.as_str().unwrap_or_default().to_owned()
    }

    /// Names of QEMU's devices that have one.
    pub fn devices(&mut self) -> Vec<String> {
        let list = self.run("qom-list", &json!({ "path": "/machine/peripheral" }));
        let children = list.as_array().into_iter().flatten();
        let children =
            children.filter(|child| child["type"].as_str().is_some_and(|kind| kind.starts_with("child<")));
        children.filter_map(|child| child["name"].as_str().map(str::to_owned)).collect()
    }

    /// What Retrovisor added to this QEMU: block nodes, descriptors, snapshots in the disks, the capability.
    pub fn additions(&mut self) -> Vec<String> {
        let nodes = self.run("query-named-block-nodes", &json!({}));
        let mut found = Vec::new();
        for node in nodes.as_array().into_iter().flatten() {
            let name = node["node-name"].as_str().unwrap_or_default();
            if name.starts_with("retrovisor-") {
                found.push(format!("node {name}"));
            }
            let snapshots = node["image"]["snapshots"].as_array().into_iter().flatten();
            let tags = snapshots.filter_map(|snapshot| snapshot["name"].as_str());
            found.extend(
                tags.filter(|tag| tag.starts_with("rv-")).map(|tag| format!("snapshot {tag} in {name}")),
            );
        }
        let sets = self.run("query-fdsets", &json!({}));
        found.extend(sets.as_array().into_iter().flatten().map(|set| format!("descriptors {set}")));
        let all = self.run("query-migrate-capabilities", &json!({}));
        let is_on = |one: &&Value| one["capability"] == "x-ignore-shared" && one["state"] == true;
        found.extend(all.as_array().into_iter().flatten().find(is_on).map(Value::to_string));
        found
    }
}
