//! PROXY protocol v1 and v2, in and out: the address of the real client where a balancer stands before us, and towards
//! backends that want it.
//!
//! The text is the specification "The PROXY protocol", versions 1 & 2, by its sections. The crate `proxy-header` reads and
//! writes addresses and TLVs. Ours are the exact reads, since the bytes after a header belong to TLS, and `LOCAL`: §2.2
//! has the receiver ignore whatever family and addresses come with it, which the crates refuse.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use proxy_header::{ParseConfig, Protocol, ProxiedAddress, ProxyHeader, Tlv};
use tokio::io::{AsyncRead, AsyncReadExt};

/// §2.1: a v1 header, CRLF included.
const V1_MAX: usize = 107;
/// `PROXY UNKNOWN\r\n`, the shortest header of all.
const SHORTEST: usize = 15;
const V2_SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
const V1_SIGNATURE: [u8; 6] = *b"PROXY ";
/// Signature, version and command, family, length.
const V2_FIXED: usize = 16;
/// Addresses and TLVs take a few hundred bytes, some kilobytes if a sender adds a client certificate's name and ALPN.
const V2_MAX: usize = 4096;
const V2_LOCAL: u8 = 0x20;

/// `PP2_TYPE_AWS`, and under it `PP2_SUBTYPE_AWS_VPCE_ID`.
const TLV_AWS: u8 = 0xEA;
const AWS_VPC_ENDPOINT: u8 = 0x01;

/// What a PROXY header says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Header {
    /// The real client, IPv4 where it was IPv4-mapped; `None` for `LOCAL`, `UNKNOWN` and what isn't TCP over IP: then the
    /// socket's own addresses hold.
    pub source: Option<SocketAddr>,
    /// Where the client connected to.
    pub destination: Option<SocketAddr>,
    /// The VPC endpoint the client came through, such as `vpce-08d2bf15fac5001c9`.
    pub vpc_endpoint: Option<String>,
}

/// Why there is no header. Each ends the connection: a peer that is configured to send one must.
#[derive(Debug)]
pub enum Error {
    /// The bytes are no PROXY header.
    Malformed,
    /// A v2 header announces more than 4 KiB.
    TooLong,
    /// The header was not complete in time.
    Timeout,
    /// The connection failed, or ended before the header did.
    Io(io::Error),
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io(error) => Some(error),
            _ => None,
        }
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Malformed => {
                f.write_str("no PROXY protocol header where one is required: turn it on at the balancer")
            }
            Self::TooLong => write!(f, "a PROXY protocol header of more than {V2_MAX} bytes"),
            Self::Timeout => f.write_str("no complete PROXY protocol header in time"),
            Self::Io(error) => write!(f, "while reading the PROXY protocol header: {error}"),
        }
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Reads one whole header, v1 or v2, and not one byte more.
///
/// # Errors
/// [`Error`]
pub async fn read_header(stream: &mut (impl AsyncRead + Unpin), timeout: Duration) -> Result<Header, Error> {
    tokio::time::timeout(timeout, read(stream)).await.unwrap_or(Err(Error::Timeout))
}

/// Reads past a header where there is one. Gives back what it has read of something else, which belongs to whoever comes next.
///
/// # Errors
/// [`Error`], for a header that begins and isn't one.
pub async fn skip_header(stream: &mut (impl AsyncRead + Unpin), timeout: Duration) -> Result<Vec<u8>, Error> {
    tokio::time::timeout(timeout, skip(stream)).await.unwrap_or(Err(Error::Timeout))
}

/// Appends a v2 header without TLVs to `out`.
///
/// IPv4-mapped addresses are written as IPv4; where then just one of the two is IPv4, both are written as IPv6.
pub fn write_v2(source: SocketAddr, destination: SocketAddr, out: &mut Vec<u8>) {
    let (source, destination) = match (canonical(source), canonical(destination)) {
        (source @ SocketAddr::V4(_), destination @ SocketAddr::V4(_)) => (source, destination),
        (source, destination) => (mapped(source), mapped(destination)),
    };
    ProxyHeader::with_address(ProxiedAddress::stream(source, destination))
        .encode_v2(out)
        .expect("one family on both sides, no TLVs, and a Vec takes every byte");
}

/// Appends a v2 `LOCAL` header to `out`: for the connections we make for ourselves, such as probes.
pub fn write_v2_local(out: &mut Vec<u8>) {
    ProxyHeader::with_local().encode_v2(out).expect("no addresses, no TLVs, and a Vec takes every byte");
}

async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Result<Header, Error> {
    read_from(stream, Vec::new()).await
}

async fn skip(stream: &mut (impl AsyncRead + Unpin)) -> Result<Vec<u8>, Error> {
    let mut read = Vec::new();
    // Octet by octet: what isn't a header may be shorter than one.
    while V1_SIGNATURE.starts_with(&read) || V2_SIGNATURE.starts_with(&read) {
        if read == V1_SIGNATURE || read == V2_SIGNATURE {
            read_from(stream, read).await?;
            return Ok(Vec::new());
        }
        read.push(stream.read_u8().await?);
    }
    Ok(read)
}

/// Reads the rest of a header that begins so.
async fn read_from(stream: &mut (impl AsyncRead + Unpin), mut header: Vec<u8>) -> Result<Header, Error> {
    let begun = header.len();
    header.resize(SHORTEST, 0);
    stream.read_exact(&mut header[begun..]).await?;
    if header.starts_with(&V2_SIGNATURE) { read_v2(stream, header).await } else { read_v1(stream, header).await }
}

async fn read_v1(stream: &mut (impl AsyncRead + Unpin), mut header: Vec<u8>) -> Result<Header, Error> {
    if !header.starts_with(&V1_SIGNATURE) {
        return Err(Error::Malformed);
    }
    // Only the CRLF tells where it ends, so the rest comes byte by byte. It is at most 92, once a connection.
    while !header.ends_with(b"\r\n") {
        if header.len() == V1_MAX {
            return Err(Error::Malformed);
        }
        header.push(stream.read_u8().await?);
    }
    parse(&header)
}

async fn read_v2(stream: &mut (impl AsyncRead + Unpin), mut header: Vec<u8>) -> Result<Header, Error> {
    header.push(stream.read_u8().await?);
    let length = usize::from(u16::from_be_bytes([header[V2_FIXED - 2], header[V2_FIXED - 1]]));
    if V2_FIXED + length > V2_MAX {
        return Err(Error::TooLong);
    }
    header.resize(V2_FIXED + length, 0);
    stream.read_exact(&mut header[V2_FIXED..]).await?;
    if header[V2_SIGNATURE.len()] == V2_LOCAL {
        return Ok(Header::default());
    }
    parse(&header)
}

/// Understands a header that has been framed.
fn parse(header: &[u8]) -> Result<Header, Error> {
    let config = ParseConfig { include_tlvs: true, allow_v1: true, allow_v2: true };
    let (parsed, length) = ProxyHeader::parse(header, config).map_err(|_| Error::Malformed)?;
    if length != header.len() {
        return Err(Error::Malformed);
    }
    let tcp = parsed.proxied_address().filter(|address| address.protocol == Protocol::Stream);
    Ok(Header {
        source: tcp.map(|address| canonical(address.source)),
        destination: tcp.map(|address| canonical(address.destination)),
        vpc_endpoint: parsed.tlvs().flatten().find_map(vpc_endpoint),
    })
}

/// The identifier goes into logs, so it must look like one.
fn vpc_endpoint(tlv: Tlv<'_>) -> Option<String> {
    let Tlv::Custom(TLV_AWS, value) = tlv else { return None };
    let (&AWS_VPC_ENDPOINT, identifier) = value.split_first()? else { return None };
    let plain = identifier.iter().all(|octet| octet.is_ascii_alphanumeric() || *octet == b'-');
    (plain && (1..=64).contains(&identifier.len())).then(|| String::from_utf8_lossy(identifier).into_owned())
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn mapped(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    SocketAddr::new(ip.into(), address.port())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::AsyncWriteExt;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(future)
    }

    /// Reads a header, and what comes after it.
    fn read_all(mut bytes: &[u8]) -> (Result<Header, Error>, &[u8]) {
        let header = block_on(read_header(&mut bytes, SECOND));
        (header, bytes)
    }

    fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let length = u16::try_from(body.len()).unwrap().to_be_bytes();
        [&V2_SIGNATURE[..], &[command, family], &length, body].concat()
    }

    fn tlv(kind: u8, value: &[u8]) -> Vec<u8> {
        [&[kind][..], &u16::try_from(value.len()).unwrap().to_be_bytes(), value].concat()
    }

    /// 192.0.2.1:1000 to 10.0.0.1:636.
    const IPV4: [u8; 12] = [192, 0, 2, 1, 10, 0, 0, 1, 0x03, 0xE8, 0x02, 0x7C];

    fn header(source: &str, destination: &str) -> Header {
        Header {
            source: Some(source.parse().unwrap()),
            destination: Some(destination.parse().unwrap()),
            vpc_endpoint: None,
        }
    }

    #[test]
    fn headers() {
        let plain = header("192.0.2.1:1000", "10.0.0.1:636");
        let endpoint = Header { vpc_endpoint: Some("vpce-08d2bf15fac5001c9".into()), ..plain.clone() };
        let aws = tlv(0xEA, b"\x01vpce-08d2bf15fac5001c9");
        let mapped = [
            &[0; 10][..],
            &[0xFF, 0xFF, 192, 0, 2, 1],
            &[0; 10],
            &[0xFF, 0xFF, 10, 0, 0, 1],
            &[0x03, 0xE8, 0x02, 0x7C],
        ]
        .concat();
        let longest = format!("PROXY UNKNOWN {}\r\n", "f".repeat(91));
        for (bytes, expected) in [
            (b"PROXY TCP4 192.0.2.1 10.0.0.1 1000 636\r\n".to_vec(), plain.clone()),
            (b"PROXY TCP6 2001:db8::1 2001:db8::2 1 2\r\n".to_vec(), header("[2001:db8::1]:1", "[2001:db8::2]:2")),
            (b"PROXY TCP6 ::ffff:192.0.2.1 ::ffff:10.0.0.1 1000 636\r\n".to_vec(), plain.clone()),
            (b"PROXY UNKNOWN\r\n".to_vec(), Header::default()),
            (longest.into_bytes(), Header::default()),
            (v2(0x21, 0x11, &IPV4), plain.clone()),
            (v2(0x21, 0x21, &mapped), plain.clone()),
            // Rule 32: unknown TLVs, and TLVs that can't be read, are skipped.
            (v2(0x21, 0x11, &[&IPV4[..], &tlv(0xE0, b"?"), &tlv(0x02, b"\xFF"), &aws].concat()), endpoint.clone()),
            (v2(0x21, 0x11, &[&IPV4[..], &aws, &[0x04, 0xFF, 0xFF]].concat()), endpoint),
            (v2(0x21, 0x11, &[&IPV4[..], &tlv(0xEA, b"\x01vpce\n08")].concat()), plain.clone()),
            (v2(0x21, 0x11, &[&IPV4[..], &tlv(0xEA, b"")].concat()), plain),
            // Not TCP over IP: UDP, a Unix socket, unspecified.
            (v2(0x21, 0x12, &IPV4), Header::default()),
            (v2(0x21, 0x31, &[b'/'; 216]), Header::default()),
            (v2(0x21, 0x00, b"anything"), Header::default()),
            // Rule 32: LOCAL uses the socket's own address, whatever comes with it.
            (v2(0x20, 0x00, b""), Header::default()),
            (v2(0x20, 0x11, &IPV4), Header::default()),
            (v2(0x20, 0x11, b""), Header::default()),
            (v2(0x20, 0xFF, b"anything"), Header::default()),
        ] {
            let bytes = [&bytes[..], b"\x16\x03\x01 TLS"].concat();
            let (read, rest) = read_all(&bytes);
            assert_eq!(read.unwrap(), expected, "{:?}", String::from_utf8_lossy(&bytes));
            assert_eq!(rest, b"\x16\x03\x01 TLS", "the bytes after the header are not ours");
        }
    }

    #[test]
    fn refusals() {
        let too_long = format!("PROXY UNKNOWN {}\r\n", "f".repeat(92));
        for bytes in [
            &b"\x16\x03\x01\x02\x00\x01\x00\x01\xFC\x03\x03 a ClientHello"[..],
            b"GET / HTTP/1.1\r\n\r\n",
            b"PROXY TCP4 192.0.2.1 10.0.0.1 1000\r\n",
            b"PROXY TCP4 192.0.2.1 10.0.0.1 1000 65536\r\n",
            b"PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n",
            b"PROXY TCP4 192.0.2.1 10.0.0.1 1000 636 more\r\n",
            b"PROXY UDP4 192.0.2.1 10.0.0.1 1000 636\r\n",
            too_long.as_bytes(),
            &v2(0x11, 0x11, &IPV4),
            &v2(0x22, 0x11, &IPV4),
            &v2(0x21, 0x41, &IPV4),
            &v2(0x21, 0x11, &IPV4[..11]),
            &v2(0x21, 0x21, &IPV4),
        ] {
            assert!(matches!(read_all(bytes).0, Err(Error::Malformed)), "{:?}", String::from_utf8_lossy(bytes));
        }
        assert!(matches!(read_all(&v2(0x21, 0x11, &[0; 4081])).0, Err(Error::TooLong)));
        assert!(read_all(&v2(0x21, 0x00, &[0; 4080])).0.is_ok());
    }

    /// A header is skipped, and of anything else no octet is lost, however it arrives.
    #[test]
    fn a_header_that_may_be_missing() {
        let request = &b"GET /readyz HTTP/1.1\r\n\r\n"[..];
        let headers =
            [&b"PROXY TCP4 192.0.2.1 10.0.0.1 1000 8080\r\n"[..], &v2(0x21, 0x11, &IPV4), &v2(0x20, 0x00, b""), b""];
        let others = [
            request,
            b"P",
            b"POST / HTTP/1.1\r\n\r\n",
            b"PROXYING",
            b"\r\nGET / HTTP/1.1\r\n\r\n",
            b"\r\n\r\n\0\r\nQUIT?",
        ];
        for (header, rest) in
            headers.map(|header| (header, request)).into_iter().chain(others.map(|other| (&b""[..], other)))
        {
            let bytes = [header, rest].concat();
            for piece in [1, bytes.len()] {
                let left = block_on(async {
                    let (mut near, mut far) = tokio::io::duplex(piece);
                    let send = async {
                        far.write_all(&bytes).await.unwrap();
                        drop(far);
                    };
                    let receive = async {
                        let mut left = skip_header(&mut near, SECOND).await?;
                        near.read_to_end(&mut left).await?;
                        Ok::<_, Error>(left)
                    };
                    tokio::join!(send, receive).1
                });
                match rest {
                    b"P" => assert!(matches!(left, Err(Error::Io(_))), "it might have become a header"),
                    rest => assert_eq!(left.unwrap(), rest),
                }
            }
        }
        for malformed in [b"PROXY TCP4 nonsense\r\n".to_vec(), v2(0x11, 0x11, &IPV4)] {
            let skipped = block_on(skip_header(&mut &malformed[..], SECOND));
            assert!(matches!(skipped, Err(Error::Malformed)), "{:?}", String::from_utf8_lossy(&malformed));
        }
        let (mut near, _far) = tokio::io::duplex(1);
        assert!(matches!(block_on(skip_header(&mut near, SECOND)), Err(Error::Timeout)));
    }

    /// Rule 32: the whole header is awaited, with a timeout.
    #[test]
    fn a_header_that_stops_ends_in_time_or_with_the_connection() {
        block_on(async {
            let whole = v2(0x21, 0x11, &IPV4);
            for end in 0..whole.len() {
                let (mut near, mut far) = tokio::io::duplex(64);
                far.write_all(&whole[..end]).await.unwrap();
                assert!(matches!(read_header(&mut near, SECOND).await, Err(Error::Timeout)), "{end}");
                drop(far);
                let cut = read_header(&mut &whole[..end], SECOND).await;
                assert!(matches!(cut, Err(Error::Io(error)) if error.kind() == io::ErrorKind::UnexpectedEof), "{end}");
            }
        });
    }

    #[test]
    fn a_mixed_pair_is_written_as_ipv6() {
        let mut out = b"before".to_vec();
        write_v2("192.0.2.1:7".parse().unwrap(), "[2001:db8::2]:636".parse().unwrap(), &mut out);
        assert_eq!(out[..6], *b"before");
        assert_eq!(out[6 + 13], 0x21);
        assert_eq!(read_all(&out[6..]).0.unwrap(), header("192.0.2.1:7", "[2001:db8::2]:636"));
    }

    #[test]
    fn local_is_written_and_read() {
        let mut out = Vec::new();
        write_v2_local(&mut out);
        assert_eq!(out, v2(0x20, 0x00, b""));
        assert_eq!(read_all(&out).0.unwrap(), Header::default());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_whatever_the_split(
            source: SocketAddr, destination: SocketAddr, cut in 0_usize..52, rest: Vec<u8>,
        ) {
            let mut bytes = Vec::new();
            write_v2(source, destination, &mut bytes);
            let end = bytes.len();
            bytes.extend(&rest);
            let (first, second) = bytes.split_at(cut.min(end));
            let (read, left) = block_on(async {
                let mut stream = first.chain(second);
                let header = read_header(&mut stream, SECOND).await;
                let mut left = Vec::new();
                stream.read_to_end(&mut left).await.unwrap();
                (header.unwrap(), left)
            });
            // Flow label and scope are no part of a PROXY header.
            let plain = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
            prop_assert_eq!(read.source, Some(plain(source)));
            prop_assert_eq!(read.destination, Some(plain(destination)));
            prop_assert_eq!(left, rest);
        }

        #[test]
        fn what_is_skipped_is_what_is_read(start in prop::sample::select(vec![
            &b""[..], b"GET / HTTP/1.1\r\n", b"PROXY UNKNOWN", b"PROXY UNKNOWN\r\n", b"\r\n\r\n\0\r\nQUIT\n\x20\x11\0\x01",
        ]), rest: Vec<u8>) {
            let bytes = [start, &rest].concat();
            let mut left = &bytes[..];
            match (read_all(&bytes), block_on(skip_header(&mut left, SECOND))) {
                ((Ok(_), after), begun) => prop_assert_eq!((begun.unwrap(), left), (Vec::new(), after)),
                (_, Ok(begun)) => prop_assert_eq!([&begun, left].concat(), bytes),
                (_, Err(_)) => {}
            }
        }

        #[test]
        fn garbage_never_panics(start in prop::sample::select(vec![
            &b""[..], b"PROXY ", b"PROXY TCP4 1", b"PROXY UNKNOWN", &V2_SIGNATURE, b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x20",
        ]), garbage: Vec<u8>) {
            let _ = read_all(&[start, &garbage].concat());
        }
    }
}
