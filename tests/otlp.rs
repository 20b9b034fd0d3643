//! Spans as a collector gets them: `cargo test --features otlp --test otlp`.
#![cfg(feature = "otlp")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

const SECRET: &str = "s3cret-of-this-test";

#[test]
fn a_collector_gets_a_session_with_its_operations() {
    let backend = serve(answer_as_a_directory);
    let received = Arc::<Mutex<Vec<u8>>>::default();
    let store = Arc::clone(&received);
    let collector = serve(move |connection| collect(connection, &store));
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut proxy = start(folder.path(), backend, collector);

    let mut client = TcpStream::connect(proxy.address).expect("it listens");
    let bind = tlv(0x60, &[integer(3), tlv(4, &[b"cn=ann"]), tlv(0x80, &[SECRET.as_bytes()])]);
    ask(&mut client, &message(1, &bind));
    let filter = tlv(0xA3, &[tlv(4, &[b"cn"]), tlv(4, &[SECRET.as_bytes()])]);
    let none = [tlv(10, &[[2]]), tlv(10, &[[0]]), integer(0), integer(0), tlv(1, &[[0]]), filter, tlv(0x30, &[b""])];
    ask(&mut client, &message(2, &tlv(0x63, &[tlv(4, &[b"dc=x"]), none.concat()])));
    client.write_all(&message(3, &[0x42, 0])).expect("it reads");
    assert_eq!(client.read(&mut [0; 10]).expect("an end in good order"), 0);
    proxy.stop();

    let request = received.lock().expect("no thread panics while holding it").clone();
    assert!(!request.windows(SECRET.len()).any(|window| window == SECRET.as_bytes()), "a secret is exported");
    let (resource, spans) = spans(&request);
    assert_eq!(resource["service.name"], "ldaps-proxy");
    let named =
        |name: &str| spans.iter().find(|span| span.name == name).unwrap_or_else(|| panic!("{name} in {spans:#?}"));
    assert_eq!(spans.len(), 4, "{spans:#?}");
    let session = named("ldap session");
    assert_eq!((session.parent.as_slice(), session.trace.len(), session.id.len()), (&[][..], 16, 8));
    assert_eq!(
        (session.attributes["ldap.operations"].as_str(), session.attributes["ldap.end_reason"].as_str()),
        ("3", "unbind")
    );
    for operation in ["ldap bind", "ldap search", "ldap unbind"].map(named) {
        assert_eq!((&operation.trace, &operation.parent), (&session.trace, &session.id), "{}", operation.name);
        assert!(session.start <= operation.start && operation.start <= operation.end && operation.end <= session.end);
        assert_eq!(operation.attributes["session.id"], session.attributes["session.id"]);
    }
    let bind = &named("ldap bind").attributes;
    assert_eq!((bind["ldap.result_code"].as_str(), bind["ldap.bind.sub_code"].as_str()), ("49", "52e"));
    assert_eq!((bind["ldap.dn"].as_str(), bind["ldap.backend"].as_str()), ("cn=ann", backend.to_string().as_str()));
    assert_eq!(named("ldap bind").status, 0, "a wrong password is the user's trouble");
    let search = named("ldap search");
    assert_eq!(
        (search.attributes["ldap.result"].as_str(), search.attributes["ldap.filter"].as_str()),
        ("busy", "(cn=?)")
    );
    assert_eq!((search.status, search.attributes["error.type"].as_str()), (2, "busy"));
}

#[test]
fn an_environment_that_cannot_be_followed_is_an_error_at_the_start() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut command = proxy(folder.path(), ([127, 0, 0, 1], 1).into());
    let done = command.env("OTEL_EXPORTER_OTLP_ENDPOINT", "no address at all").output().expect("it runs");
    let told = String::from_utf8_lossy(&done.stderr);
    assert!(!done.status.success() && told.contains("can't export spans to no address at all"), "{told}");
}

/// A proxy that listens in cleartext.
struct Proxy {
    child: Child,
    address: SocketAddr,
    /// Reads what it logs, so that it never waits for that.
    log: thread::JoinHandle<()>,
}

fn proxy(folder: &std::path::Path, backend: SocketAddr) -> Command {
    let file = folder.join("ldaps-proxy.toml");
    let text = format!(
        "[[listener]]\nname = \"plain\"\naddress = \"127.0.0.1:0\"\nprotocol = \"ldap\"\ntrusted_networks = [\"127.0.0.0/8\"]\n\
         pool = \"p\"\npolicy.allow_cleartext_bind = true\n\n[pools.p]\nbackends = [\"{backend}\"]\nhealth.probe = \"tcp\"\n"
    );
    std::fs::write(&file, text).expect("the folder is ours");
    let mut command = Command::new(env!("CARGO_BIN_EXE_ldaps-proxy"));
    command.args(["run", "--config"]).arg(file).env("NO_COLOR", "1").stderr(Stdio::piped());
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("OTEL_")) {
        command.env_remove(name);
    }
    command
}

fn start(folder: &std::path::Path, backend: SocketAddr, collector: SocketAddr) -> Proxy {
    let endpoint = format!("http://{collector}");
    let mut child = proxy(folder, backend).env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint).spawn().expect("it starts");
    let mut lines = BufReader::new(child.stderr.take().expect("it is piped")).lines();
    let address = lines.by_ref().find_map(|line| {
        let line = line.expect("text");
        let (_, rest) = line.split_once("listening listener=plain address=")?;
        rest.split_whitespace().next()?.parse().ok()
    });
    let log = thread::spawn(move || lines.for_each(drop));
    Proxy { child, address: address.expect("it says where it listens"), log }
}

impl Proxy {
    fn stop(&mut self) {
        let id = nix::unistd::Pid::from_raw(self.child.id().try_into().expect("process ids are small"));
        nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGTERM).expect("it runs");
        assert!(self.child.wait().expect("it ends").success());
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = self.log.is_finished();
    }
}

/// Serves connections to a free port, each on its own thread.
fn serve(work: impl Fn(TcpStream) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let work = Arc::new(work);
    thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            let work = Arc::clone(&work);
            thread::spawn(move || work(connection));
        }
    });
    address
}

/// Refuses every bind, and is too busy for the rest.
fn answer_as_a_directory(mut connection: TcpStream) {
    while let Some(request) = read_message(&mut connection) {
        let (tag, code, diagnostic) = match request[5] {
            0x60 => {
                (0x61, 49, "80090308: LdapErr: DSID-0C0903A9, comment: AcceptSecurityContext error, data 52e, v1db1")
            }
            0x63 => (0x65, 51, ""),
            _ => continue,
        };
        let result = tlv(tag, &[tlv(10, &[[code]]), tlv(4, &[b""]), tlv(4, &[diagnostic.as_bytes()])]);
        if connection.write_all(&message(request[4], &result)).is_err() {
            return;
        }
    }
}

/// One export a connection or several: keeps their bodies, one after the other, as protobuf allows.
fn collect(connection: TcpStream, store: &Mutex<Vec<u8>>) {
    let mut reader = BufReader::new(connection);
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            if reader.read_until(b'\n', &mut head).unwrap_or(0) == 0 {
                return;
            }
        }
        let head = String::from_utf8(head).expect("ASCII").to_ascii_lowercase();
        assert!(head.starts_with("post /v1/traces http/1.1\r\n"), "{head}");
        assert!(head.contains("content-type: application/x-protobuf\r\n"), "{head}");
        let (_, length) = head.split_once("content-length: ").expect("a length");
        let mut body = vec![0; length.lines().next().and_then(|length| length.parse().ok()).expect("a number")];
        reader.read_exact(&mut body).expect("a whole body");
        store.lock().expect("no thread panics while holding it").extend(body);
        let answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n";
        reader.get_mut().write_all(answer).expect("the exporter reads");
    }
}

// LDAP, in lengths below 128.

fn tlv(tag: u8, parts: &[impl AsRef<[u8]>]) -> Vec<u8> {
    let content: Vec<u8> = parts.iter().flat_map(|part| part.as_ref().to_vec()).collect();
    let length = u8::try_from(content.len()).expect("test messages are short");
    assert!(length < 128);
    [&[tag, length], content.as_slice()].concat()
}

fn integer(value: u8) -> Vec<u8> {
    tlv(2, &[[value]])
}

fn message(id: u8, operation: &[u8]) -> Vec<u8> {
    tlv(0x30, &[&integer(id), operation])
}

fn read_message(connection: &mut TcpStream) -> Option<Vec<u8>> {
    let mut head = [0; 2];
    connection.read_exact(&mut head).ok()?;
    let mut content = vec![0; head[1].into()];
    connection.read_exact(&mut content).ok()?;
    Some([head.as_slice(), &content].concat())
}

fn ask(client: &mut TcpStream, request: &[u8]) {
    client.write_all(request).expect("it reads");
    assert_eq!(read_message(client).expect("an answer")[4], request[4]);
}

// Protobuf, as far as opentelemetry/proto/trace/v1/trace.proto needs it.

#[derive(Debug)]
struct Span {
    trace: Vec<u8>,
    id: Vec<u8>,
    parent: Vec<u8>,
    name: String,
    start: u64,
    end: u64,
    status: u64,
    attributes: BTreeMap<String, String>,
}

enum Field<'a> {
    Number(u64),
    Octets(&'a [u8]),
}

impl<'a> Field<'a> {
    fn number(&self) -> u64 {
        if let Self::Number(number) = self { *number } else { panic!("not a number") }
    }

    fn octets(&self) -> &'a [u8] {
        if let Self::Octets(octets) = self { octets } else { panic!("not octets") }
    }
}

/// The resource's attributes and all spans of an ExportTraceServiceRequest.
fn spans(request: &[u8]) -> (BTreeMap<String, String>, Vec<Span>) {
    let (mut resource, mut spans) = (BTreeMap::new(), Vec::new());
    for of_resource in all(request, 1) {
        resource.extend(all(of_resource, 1).into_iter().flat_map(|resource| attributes(resource, 1)));
        for span in all(of_resource, 2).into_iter().flat_map(|of_scope| all(of_scope, 2)) {
            let octets = |number| all(span, number).first().copied().unwrap_or_default().to_vec();
            let number =
                |number| fields(span).into_iter().find(|(known, _)| *known == number).map_or(0, |(_, at)| at.number());
            let status = all(span, 15)
                .first()
                .and_then(|status| Some(fields(status).into_iter().find(|field| field.0 == 3)?.1.number()));
            spans.push(Span {
                trace: octets(1),
                id: octets(2),
                parent: octets(4),
                name: String::from_utf8(octets(5)).expect("text"),
                start: number(7),
                end: number(8),
                status: status.unwrap_or(0),
                attributes: attributes(span, 9),
            });
        }
    }
    (resource, spans)
}

/// The KeyValues in this field, with numbers as text; arrays are left out.
fn attributes(message: &[u8], number: u64) -> BTreeMap<String, String> {
    let text = |octets: &[u8]| String::from_utf8(octets.to_vec()).expect("text");
    let value = |any: &[u8]| {
        fields(any).first().and_then(|(number, value)| match number {
            1 => Some(text(value.octets())),
            2 | 3 => Some(value.number().to_string()),
            _ => None,
        })
    };
    let pair = |pair: &[u8]| Some((text(all(pair, 1).first()?), value(all(pair, 2).first()?)?));
    all(message, number).into_iter().filter_map(pair).collect()
}

/// The octets of every field of this number.
fn all(message: &[u8], number: u64) -> Vec<&[u8]> {
    fields(message).into_iter().filter(|(known, _)| *known == number).map(|(_, field)| field.octets()).collect()
}

fn fields(mut message: &[u8]) -> Vec<(u64, Field<'_>)> {
    let mut fields = Vec::new();
    while !message.is_empty() {
        let key = varint(&mut message);
        let mut take = |count: usize| {
            let (taken, rest) = message.split_at(count);
            message = rest;
            taken
        };
        let field = match key & 7 {
            1 => Field::Number(u64::from_le_bytes(take(8).try_into().expect("eight octets"))),
            5 => Field::Number(u32::from_le_bytes(take(4).try_into().expect("four octets")).into()),
            0 => Field::Number(varint(&mut message)),
            2 => {
                let length = varint(&mut message);
                let (taken, rest) = message.split_at(usize::try_from(length).expect("a length"));
                message = rest;
                Field::Octets(taken)
            }
            other => panic!("wire type {other}"),
        };
        fields.push((key >> 3, field));
    }
    fields
}

fn varint(message: &mut &[u8]) -> u64 {
    let (mut value, mut shift) = (0, 0);
    loop {
        let (first, rest) = message.split_first().expect("a whole number");
        *message = rest;
        value |= u64::from(first & 0x7F) << shift;
        shift += 7;
        if first & 0x80 == 0 {
            return value;
        }
    }
}
