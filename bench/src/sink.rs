//! A synthetic LDAP backend, much cheaper than any proxy: every answer is built once a connection, then only stamped
//! with the request's messageID.
//!
//! A search asks for what it wants in the first part of its base: `ou=COUNTxSIZE` is answered by COUNT entries of about
//! SIZE octets each. The empty base is a root DSE, for the proxies' health probes. Every other request succeeds.

use std::{
    collections::VecDeque,
    io::{self, Write},
    net::SocketAddr,
};

use bytes::{Buf, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
};

use crate::{
    client::require_loopback,
    pdu::{self, Frame, Template, tag},
};

const READ_SIZE: usize = 16 * 1024;
/// Answers gathered before they are written.
const WRITE_SIZE: usize = 64 * 1024;
/// No more than this is built for one search.
const MAX_RESULT: usize = 64 << 20;
/// What a message adds to its operation, with the longer lengths that a filled value brings.
const ENVELOPE: usize = 18;
const MAX_TEMPLATES: usize = 16;
const SUCCESS: u8 = 0;
const COMPARE_TRUE: u8 = 6;
const NO_SUCH_OBJECT: u8 = 32;

/// Serves on all addresses from now on; they are printed on one line.
pub fn serve_on(addresses: &[SocketAddr]) -> io::Result<()> {
    let mut bound = Vec::new();
    for &address in addresses {
        let listener = listen(address)?;
        bound.push(listener.local_addr()?.to_string());
        tokio::spawn(accept(listener));
    }
    println!("{}", bound.join(" "));
    io::stdout().flush()
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    require_loopback(address)?;
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.set_nodelay(true)?;
    socket.bind(address)?;
    socket.listen(4096)
}

async fn accept(listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(async move {
                    if let Err(error) = serve(stream).await
                        && error.kind() == io::ErrorKind::InvalidData
                    {
                        eprintln!("bench sink: {error}");
                    }
                });
            }
            Err(error) => {
                eprintln!("bench sink: accept: {error}");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve(mut stream: TcpStream) -> io::Result<()> {
    let mut input = BytesMut::new();
    let mut output = Vec::new();
    let mut answers = Answers::default();
    loop {
        input.reserve(READ_SIZE);
        if stream.read_buf(&mut input).await? == 0 {
            return Ok(());
        }
        let mut unbound = false;
        let mut at = 0;
        while !unbound && let Some(request) = pdu::frame(&input[at..])? {
            unbound = request.tag == tag::UNBIND_REQUEST;
            if let Some(answer) = answers.to(&request)? {
                output.extend_from_slice(answer);
            }
            at += request.len;
            if output.len() >= WRITE_SIZE {
                stream.write_all(&output).await?;
                output.clear();
            }
        }
        input.advance(at);
        stream.write_all(&output).await?;
        output.clear();
        if unbound {
            return Ok(());
        }
    }
}

/// The answers of one connection, each built when first asked for: what was asked last stands first.
#[derive(Default)]
struct Answers(VecDeque<Answer>);

struct Answer {
    request: u8,
    id_len: usize,
    base: Vec<u8>,
    messages: Template,
}

impl Answers {
    /// All messages that answer `request`; `None` for one that has no response.
    fn to(&mut self, request: &Frame<'_>) -> io::Result<Option<&[u8]>> {
        if matches!(request.tag, tag::ABANDON_REQUEST | tag::UNBIND_REQUEST) {
            return Ok(None);
        }
        let base = if request.tag == tag::SEARCH_REQUEST { pdu::search_base(request.body)? } else { &[] };
        let asked = (request.tag, request.id.len(), base);
        match self.0.iter().position(|known| (known.request, known.id_len, &known.base[..]) == asked) {
            Some(at) => self.0.swap(0, at),
            None => {
                let messages = Template::new(&responses(request.tag, base)?, request.id.len());
                let answer = Answer { request: request.tag, id_len: request.id.len(), base: base.to_vec(), messages };
                self.0.push_front(answer);
                self.0.truncate(MAX_TEMPLATES);
            }
        }
        Ok(self.0.front_mut().map(|answer| answer.messages.stamp(request.id)))
    }
}

fn responses(request: u8, base: &[u8]) -> io::Result<Vec<Vec<u8>>> {
    Ok(match request {
        tag::SEARCH_REQUEST => search_responses(base),
        tag::BIND_REQUEST => vec![pdu::result(tag::BIND_RESPONSE, SUCCESS)],
        tag::ADD_REQUEST => vec![pdu::result(tag::ADD_RESPONSE, SUCCESS)],
        tag::MODIFY_REQUEST => vec![pdu::result(tag::MODIFY_RESPONSE, SUCCESS)],
        tag::DELETE_REQUEST => vec![pdu::result(tag::DELETE_RESPONSE, SUCCESS)],
        tag::MODIFY_DN_REQUEST => vec![pdu::result(tag::MODIFY_DN_RESPONSE, SUCCESS)],
        tag::COMPARE_REQUEST => vec![pdu::result(tag::COMPARE_RESPONSE, COMPARE_TRUE)],
        tag::EXTENDED_REQUEST => vec![pdu::result(tag::EXTENDED_RESPONSE, SUCCESS)],
        other => return Err(io::Error::new(io::ErrorKind::InvalidData, format!("no request has tag {other:#04x}"))),
    })
}

fn search_responses(base: &[u8]) -> Vec<Vec<u8>> {
    if base.is_empty() {
        return vec![root_dse(), pdu::result(tag::SEARCH_DONE, SUCCESS)];
    }
    match wanted(base) {
        Some((count, size)) => {
            (0..count).map(|n| entry_of(n, size)).chain([pdu::result(tag::SEARCH_DONE, SUCCESS)]).collect()
        }
        None => vec![pdu::result(tag::SEARCH_DONE, NO_SUCH_OBJECT)],
    }
}

/// Reads `ou=COUNTxSIZE,…`.
fn wanted(base: &[u8]) -> Option<(usize, usize)> {
    let base = std::str::from_utf8(base).ok()?;
    let (count, size) = base.strip_prefix("ou=")?.split(',').next()?.split_once('x')?;
    let (count, size): (usize, usize) = (count.parse().ok()?, size.parse().ok()?);
    (count.checked_mul(size)? <= MAX_RESULT).then_some((count, size))
}

fn entry_of(n: usize, size: usize) -> Vec<u8> {
    let name = format!("entry {n}");
    let dn = format!("cn={name},ou=people,dc=bench");
    let bare = pdu::entry(&dn, &[("cn", name.as_bytes()), ("description", b"")]).len();
    let filling = vec![b'x'; size.saturating_sub(bare + ENVELOPE)];
    pdu::entry(&dn, &[("cn", name.as_bytes()), ("description", &filling)])
}

fn root_dse() -> Vec<u8> {
    pdu::entry(
        "",
        &[
            ("namingContexts", b"dc=bench"),
            ("defaultNamingContext", b"dc=bench"),
            ("supportedLDAPVersion", b"3"),
            ("isSynchronized", b"TRUE"),
            ("dnsHostName", b"sink.bench"),
        ],
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn answers_a_pipeline_then_ends_at_the_unbind() {
        let listener = listen("127.0.0.1:0".parse().expect("an address")).expect("a free port");
        let mut client = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("connects");
        tokio::spawn(accept(listener));

        let operations =
            [pdu::bind_request(), pdu::search_request("ou=3x500,dc=bench"), pdu::search_request("dc=else")];
        let mut request = Template::new(&operations, 2);
        client.write_all(request.stamp(&pdu::message_id(9))).await.expect("written");
        client.write_all(Template::new(&[pdu::unbind_request()], 1).stamp(&[1])).await.expect("written");
        let mut bytes = Vec::new();
        client.read_to_end(&mut bytes).await.expect("the sink ends it");

        let mut seen = Vec::new();
        while let Some(frame) = pdu::frame(&bytes).expect("well formed") {
            assert_eq!(frame.id, pdu::message_id(9));
            if frame.tag == tag::SEARCH_ENTRY {
                assert!((498..=502).contains(&frame.len), "{} octets", frame.len);
            }
            seen.push((frame.tag, pdu::result_code(frame.body).ok()));
            bytes.drain(..frame.len);
        }
        let entry = (tag::SEARCH_ENTRY, None);
        let done = |code| (tag::SEARCH_DONE, Some(code));
        assert_eq!(
            seen,
            [(tag::BIND_RESPONSE, Some(SUCCESS)), entry, entry, entry, done(SUCCESS), done(NO_SUCH_OBJECT)]
        );
        assert!(bytes.is_empty());
    }

    #[test]
    fn a_base_never_asks_for_more_than_the_limit() {
        assert_eq!(wanted(b"ou=5000x500,dc=bench"), Some((5000, 500)));
        assert_eq!(wanted(b"ou=1x1048576"), Some((1, 1_048_576)));
        for base in [&b"ou=99999999x99999999"[..], b"ou=x", b"dc=bench", b"ou=1", b"\xff"] {
            assert_eq!(wanted(base), None);
        }
    }
}
