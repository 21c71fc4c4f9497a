use std::fs::{self, File};
use std::io::Result;
use std::net::{Ipv6Addr, TcpListener, TcpStream, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

/// Opens one of everything that a reader of memory should find, then waits until it is ended.
pub(crate) fn play(folder: &str) -> Result<()> {
    let folder = Path::new(folder);
    fs::create_dir_all(folder)?;
    std::env::set_current_dir(folder)?;

    let mut kept = Vec::new();
    for (port, address) in [(7001, "127.0.0.1"), (7006, "::1")] {
        let listener = TcpListener::bind((address, port))?;
        let client = TcpStream::connect((address, port))?;
        let (server, _) = listener.accept()?;
        // What closes first waits for stray segments, without a process.
        let closed = TcpStream::connect((address, port))?;
        let (peer, _) = listener.accept()?;
        drop(closed);
        thread::sleep(Duration::from_millis(20));
        drop(peer);
        kept.push((listener, client, server));
    }
    let bound = UdpSocket::bind(("0.0.0.0", 7002))?;
    let connected = UdpSocket::bind(("127.0.0.1", 7003))?;
    connected.connect(("127.0.0.1", 7002))?;
    let six = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 7004))?;

    let stream = UnixListener::bind("stream.socket")?;
    let client = UnixStream::connect("stream.socket")?;
    let (server, _) = stream.accept()?;
    let pair = UnixStream::pair()?;
    let datagram = UnixDatagram::bind("datagram.socket")?;
    let hidden = UnixListener::bind_addr(&SocketAddr::from_abstract_name("retrovisor-scene")?)?;

    let file = File::options().create(true).append(true).read(true).open("file with a name")?;
    file.set_len(12_345)?;
    let removed = File::create("removed")?;
    fs::remove_file("removed")?;
    let here = File::open(".")?;
    let null = File::open("/dev/null")?;
    let mut ended = Command::new("/bin/true").stdin(Stdio::null()).spawn()?;
    let reader = Command::new("/bin/cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;

    let threads: Vec<_> = ["scene-one", "scene-two", "scene-three"]
        .into_iter()
        .map(|name| {
            thread::Builder::new().name(name.to_owned()).spawn(|| {
                loop {
                    thread::sleep(Duration::from_hours(1));
                }
            })
        })
        .collect();
    println!("the scene stands");
    // A process that has ended and was not waited for.
    thread::sleep(Duration::from_hours(1));
    ended.wait()?;
    drop((kept, bound, connected, six, stream, client, server, pair, datagram, hidden));
    drop((file, removed, here, null, reader, threads));
    Ok(())
}
