use std::collections::VecDeque;
use std::io::{ErrorKind, IoSlice, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, sendmsg, socket,
};
use serde_json::{Value, json};

use super::message::{Event, Message, Version};
use crate::error::QmpError;

/// Bound on a line of an answer. `query-named-block-nodes` with thousands of snapshots is long.
const LINE_BYTES_MAX: usize = 64 << 20;
/// Bound on the events kept until they are read; the oldest are dropped first.
const EVENTS_MAX: usize = 4096;
/// How long QEMU may take to greet. It greets one client at a time: silence means that another one holds the socket.
const GREETING_WAIT: Duration = Duration::from_secs(5);
/// How long a command may take.
const ANSWER_WAIT: Duration = Duration::from_secs(20);

/// One connection to QEMU's monitor, one command at a time.
pub(super) struct Qmp {
    stream: UnixStream,
    /// Bytes read and not yet a whole line.
    buffer: Vec<u8>,
    /// How far `buffer` was searched for the end of a line.
    searched: usize,
    events: VecDeque<Event>,
    next_id: u64,
    version: Version,
}

impl Qmp {
    /// Ends the connection: every further command fails.
    pub(super) fn close(&mut self) {
        // It may be closed already.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }

    /// Connects, reads the greeting and leaves the negotiation.
    pub(super) fn connect(path: &Path) -> Result<Self, QmpError> {
        let stream = connect(path)?;
        let mut qmp = Self {
            stream,
            buffer: Vec::new(),
            searched: 0,
            events: VecDeque::new(),
            next_id: 0,
            version: Version::default(),
        };
        let greeting = match qmp.read_message(Instant::now() + GREETING_WAIT, "the greeting") {
            Err(QmpError::Timeout { .. }) => return Err(QmpError::Busy { path: path.to_path_buf() }),
            other => other?,
        };
        let Message::Greeting(version) = greeting else {
            return Err(QmpError::Protocol("the first line is not QEMU's greeting".into()));
        };
        qmp.version = version;
        qmp.execute("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    pub(super) fn version(&self) -> Version {
        self.version
    }

    pub(super) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Runs a command and returns its answer. Events that arrive meanwhile are kept.
    pub(super) fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value, QmpError> {
        let id = self.send(command, arguments)?;
        self.answer(id, command)
    }

    /// Runs a command of the human monitor.
    pub(super) fn human(&mut self, line: &str) -> Result<String, QmpError> {
        match self.execute("human-monitor-command", &json!({ "command-line": line }))? {
            Value::String(text) => Ok(text),
            _ => Err(QmpError::Protocol(format!("`{line}` was not answered with text"))),
        }
    }

    /// Runs a command with a file descriptor.
    pub(super) fn execute_with_fd(
        &mut self,
        command: &str,
        arguments: &Value,
        fd: BorrowedFd<'_>,
    ) -> Result<Value, QmpError> {
        let (id, line) = self.line(command, arguments);
        let fds = [fd.as_raw_fd()];
        let sent = sendmsg::<()>(
            self.stream.as_raw_fd(),
            &[IoSlice::new(&line)],
            &[ControlMessage::ScmRights(&fds)],
            MsgFlags::MSG_NOSIGNAL,
            None,
        )
        .map_err(|errno| closed(&errno.into()))?;
        self.write(&line[sent.min(line.len())..])?;
        self.answer(id, command)
    }

    /// Sends a command whose answer is ignored; it is skipped when it arrives.
    pub(super) fn send(&mut self, command: &str, arguments: &Value) -> Result<u64, QmpError> {
        let (id, line) = self.line(command, arguments);
        self.write(&line)?;
        Ok(id)
    }

    /// Waits for the answer to an earlier [`Qmp::send`].
    pub(super) fn answer(&mut self, id: u64, command: &str) -> Result<Value, QmpError> {
        let deadline = Instant::now() + ANSWER_WAIT;
        loop {
            match self.read_message(deadline, command)? {
                Message::Event(event) => self.keep(event),
                Message::Answer { id: Some(of), result } if of == id => {
                    return result.map_err(|description| QmpError::Refused {
                        command: command.to_owned(),
                        description,
                    });
                }
                // The answer to a command that timed out, or whose answer is ignored.
                Message::Answer { id: Some(_), .. } => {}
                // QEMU could not parse the command, so the answer has no id.
                Message::Answer { id: None, result } => {
                    let description = result.err().unwrap_or_else(|| "an answer without an id".into());
                    return Err(QmpError::Protocol(description));
                }
                Message::Greeting(_) => return Err(QmpError::Protocol("a second greeting".into())),
            }
        }
    }

    /// Waits for an event that `wanted` accepts, and takes it out of the queue.
    pub(super) fn wait_event(
        &mut self,
        what: &str,
        patience: Duration,
        wanted: impl Fn(&Event) -> bool,
    ) -> Result<Event, QmpError> {
        let deadline = Instant::now() + patience;
        let mut seen = 0;
        loop {
            if let Some(at) = self.events.iter().skip(seen).position(&wanted)
                && let Some(event) = self.events.remove(seen + at)
            {
                return Ok(event);
            }
            seen = self.events.len();
            match self.read_message(deadline, what)? {
                Message::Event(event) => {
                    self.keep(event);
                    seen = seen.min(self.events.len() - 1);
                }
                Message::Answer { .. } => {}
                Message::Greeting(_) => return Err(QmpError::Protocol("a second greeting".into())),
            }
        }
    }

    /// Takes the available events, without waiting. After an error the connection is unusable.
    pub(super) fn drain_events(&mut self) -> (Vec<Event>, Result<(), QmpError>) {
        let read = self.drain();
        (self.events.drain(..).collect(), read)
    }

    fn drain(&mut self) -> Result<(), QmpError> {
        loop {
            while let Some(line) = self.take_line() {
                if let Message::Event(event) = Message::parse(&line)? {
                    self.keep(event);
                }
            }
            self.stream.set_nonblocking(true).map_err(|source| closed(&source))?;
            let more = self.fill();
            self.stream.set_nonblocking(false).map_err(|source| closed(&source))?;
            match more {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(closed(&error)),
            }
        }
    }

    fn keep(&mut self, event: Event) {
        if self.events.len() == EVENTS_MAX {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    fn line(&mut self, command: &str, arguments: &Value) -> (u64, Vec<u8>) {
        self.next_id += 1;
        let mut line = json!({ "execute": command, "arguments": arguments, "id": self.next_id })
            .to_string()
            .into_bytes();
        line.push(b'\n');
        (self.next_id, line)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), QmpError> {
        self.stream.write_all(bytes).map_err(|source| closed(&source))
    }

    /// The next message, before `deadline`. `doing` describes the action in errors.
    fn read_message(&mut self, deadline: Instant, doing: &str) -> Result<Message, QmpError> {
        loop {
            if let Some(line) = self.take_line() {
                return Message::parse(&line);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(QmpError::Timeout { doing: doing.to_owned() });
            }
            self.stream.set_read_timeout(Some(left)).map_err(|source| closed(&source))?;
            match self.fill() {
                Ok(()) => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) => return Err(closed(&error)),
            }
        }
    }

    /// Reads once. The end of the stream is an error, and so is a line without end.
    fn fill(&mut self) -> std::io::Result<()> {
        if self.buffer.len() > LINE_BYTES_MAX {
            return Err(std::io::Error::other("a line longer than any answer of QEMU"));
        }
        let mut chunk = [0; 16384];
        let count = loop {
            match self.stream.read(&mut chunk) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                other => break other?,
            }
        };
        if count == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        self.buffer.extend_from_slice(&chunk[..count]);
        Ok(())
    }

    fn take_line(&mut self) -> Option<Vec<u8>> {
        let Some(at) = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n') else {
            self.searched = self.buffer.len();
            return None;
        };
        let rest = self.buffer.split_off(self.searched + at + 1);
        self.searched = 0;
        Some(std::mem::replace(&mut self.buffer, rest))
    }
}

/// Connects without waiting. QEMU's queue of clients has one place: a second client in it would wait for ever.
pub(super) fn connect(path: &Path) -> Result<UnixStream, QmpError> {
    let failed = |errno: Errno| match errno {
        Errno::EAGAIN => QmpError::Busy { path: path.to_path_buf() },
        other => QmpError::Connect { path: path.to_path_buf(), source: other.into() },
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None).map_err(failed)?;
    let address = UnixAddr::new(path).map_err(failed)?;
    nix::sys::socket::connect(socket.as_raw_fd(), &address).map_err(failed)?;
    let stream = UnixStream::from(socket);
    stream
        .set_nonblocking(false)
        .and_then(|()| stream.set_write_timeout(Some(ANSWER_WAIT)))
        .map_err(|source| QmpError::Connect { path: path.to_path_buf(), source })?;
    Ok(stream)
}

fn closed(error: &std::io::Error) -> QmpError {
    QmpError::Closed(match error.kind() {
        ErrorKind::UnexpectedEof => "its monitor socket was closed".into(),
        _ => format!("its monitor socket failed: {error}"),
    })
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::os::unix::net::UnixListener;
    use std::thread::JoinHandle;

    use super::*;

    const GREETING: &str = "{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 22, \"minor\": 2, \"major\": 7}}, \"capabilities\": []}}\n";

    /// Sends `lines[i]` after the i-th received line (the first at once), then disconnects. `ID` is replaced by the id
    /// of the command.
    fn peer(lines: &'static [&'static str]) -> (tempfile::TempDir, JoinHandle<()>) {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("qmp")).unwrap();
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut commands = BufReader::new(stream.try_clone().unwrap());
            let mut id = 0;
            for (turn, lines) in lines.iter().enumerate() {
                if turn > 0 {
                    let mut line = String::new();
                    commands.read_line(&mut line).unwrap();
                    id = serde_json::from_str::<Value>(&line).unwrap()["id"].as_u64().unwrap();
                }
                stream.write_all(lines.replace("ID", &id.to_string()).as_bytes()).unwrap();
            }
        });
        (dir, thread)
    }

    #[test]
    fn answers_are_matched_and_events_kept() {
        let (dir, thread) = peer(&[
            GREETING,
            "{\"return\": {}, \"id\": ID}\n",
            "{\"event\": \"STOP\"}\n{\"return\": 7, \"id\": 999}\n{\"return\": 5, \"id\": ID}\n{\"event\": \"RES",
            "UME\", \"data\": {\"a\": 1}}\n{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}, \"id\": ID}\n",
        ]);
        let mut qmp = Qmp::connect(&dir.path().join("qmp")).unwrap();
        assert_eq!(qmp.version().to_string(), "7.2.22");
        assert_eq!(qmp.execute("x", &json!({})).unwrap(), json!(5));
        let refused = qmp.execute("y", &json!({})).unwrap_err();
        assert!(
            matches!(refused, QmpError::Refused { ref description, .. } if description == "no"),
            "{refused}"
        );
        thread.join().unwrap();
        let resume = qmp.wait_event("it", Duration::from_secs(1), |event| event.name == "RESUME").unwrap();
        assert_eq!(resume.data, json!({ "a": 1 }));
        let (events, end) = qmp.drain_events();
        assert_eq!(events.len(), 1);
        assert!(matches!(end, Err(QmpError::Closed(_))));
        assert!(matches!(qmp.execute("z", &json!({})), Err(QmpError::Closed(_))));
    }

    #[test]
    fn a_peer_that_is_not_qemu_is_refused() {
        for first in ["hello\n", "{\"return\": {}}\n", "\n", "[]\n"] {
            let lines: &'static [&'static str] = Box::leak(Box::new([first]));
            let (dir, thread) = peer(lines);
            let error = Qmp::connect(&dir.path().join("qmp")).err().unwrap();
            assert!(matches!(error, QmpError::Protocol(_)), "{error}");
            thread.join().unwrap();
        }
        assert!(matches!(Qmp::connect(Path::new("/nonexistent/qmp")), Err(QmpError::Connect { .. })));
    }
}
