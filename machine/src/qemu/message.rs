use std::fmt;

use serde_json::Value;

use crate::error::QmpError;

/// An event of QEMU.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Event {
    pub(super) name: String,
    pub(super) data: Value,
}

/// QEMU's version, from the greeting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version {
    pub(super) major: u32,
    pub(super) minor: u32,
    pub(super) micro: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

/// One line from QEMU.
#[derive(Debug, PartialEq)]
pub(super) enum Message {
    Greeting(Version),
    Event(Event),
    /// The result is the returned value, or QEMU's description of the error.
    Answer {
        id: Option<u64>,
        result: Result<Value, String>,
    },
}

impl Message {
    pub(super) fn parse(line: &[u8]) -> Result<Self, QmpError> {
        let not_understood = || {
            let start = String::from_utf8_lossy(&line[..line.len().min(80)]).escape_default().to_string();
            QmpError::Protocol(format!("this is not a message of QEMU's: {start}"))
        };
        let Ok(Value::Object(mut fields)) = serde_json::from_slice(line) else {
            return Err(not_understood());
        };
        if let Some(qmp) = fields.get("QMP") {
            return Ok(Self::Greeting(version(qmp).ok_or_else(not_understood)?));
        }
        if let Some(Value::String(name)) = fields.remove("event") {
            let data = fields.remove("data").unwrap_or(Value::Null);
            return Ok(Self::Event(Event { name, data }));
        }
        let id = fields.get("id").and_then(Value::as_u64);
        if let Some(value) = fields.remove("return") {
            return Ok(Self::Answer { id, result: Ok(value) });
        }
        let description = fields.get("error").and_then(|error| error.get("desc")?.as_str());
        let description = description.ok_or_else(not_understood)?.to_owned();
        Ok(Self::Answer { id, result: Err(description) })
    }
}

fn version(qmp: &Value) -> Option<Version> {
    let part = |name| qmp.get("version")?.get("qemu")?.get(name)?.as_u64()?.try_into().ok();
    Some(Version { major: part("major")?, minor: part("minor")?, micro: part("micro")? })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines_of_each_kind() {
        let parse = |line: &str| Message::parse(line.as_bytes()).unwrap();
        let greeting = parse(
            r#"{"QMP": {"version": {"qemu": {"micro": 0, "minor": 1, "major": 9}}, "capabilities": []}}"#,
        );
        assert_eq!(greeting, Message::Greeting(Version { major: 9, minor: 1, micro: 0 }));
        let event = Event { name: "STOP".into(), data: Value::Null };
        assert_eq!(parse(r#"{"timestamp": {"seconds": 1}, "event": "STOP"}"#), Message::Event(event));
        assert_eq!(
            parse(r#"{"return": {}, "id": 3}"#),
            Message::Answer { id: Some(3), result: Ok(Value::Object(serde_json::Map::default())) }
        );
        assert_eq!(
            parse(r#"{"error": {"desc": "d"}}"#),
            Message::Answer { id: None, result: Err("d".into()) }
        );
        for bad in
            ["", "7", "{}", "{\"error\": 1}", "{\"QMP\": {\"version\": {\"qemu\": {\"major\": -1}}}}", "{"]
        {
            assert!(Message::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_message_or_an_error(line in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Message::parse(&line);
        }

        #[test]
        fn any_object_is_a_message_or_an_error(keys in prop::collection::vec("QMP|event|return|error|id|desc|version|qemu|major", 0..5), n in any::<i64>()) {
            let mut value = Value::from(n);
            for key in keys {
                value = serde_json::json!({ key: value });
                let _ = Message::parse(value.to_string().as_bytes());
            }
        }
    }
}
