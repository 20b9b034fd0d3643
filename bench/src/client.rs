//! The client side: opens connections from many loopback addresses and reads responses with the least framing that
//! still notices an error.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use bytes::{Buf, BytesMut};
use rustls::{
    ClientConfig, DigitallySignedStruct, HandshakeKind, ProtocolVersion, SignatureScheme, SupportedProtocolVersion,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, aws_lc_rs},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::either::Either;

use crate::pdu::{self, Template, tag};

const OPEN_TIMEOUT: Duration = Duration::from_secs(20);
/// Kept by a client that reads results; rustls alone would read 4 KiB at a time.
const TLS_READ_SIZE: usize = 64 * 1024;

/// The address under test and how to speak to it.
#[derive(Clone)]
pub struct Target {
    address: SocketAddr,
    tls: Option<Tls>,
}

#[derive(Clone)]
struct Tls {
    version: &'static SupportedProtocolVersion,
    resume: bool,
    connector: TlsConnector,
}

impl Target {
    /// `tls`: the one version to offer, or cleartext. The certificate is not verified, so only loopback is allowed.
    pub fn new(address: SocketAddr, tls: Option<&'static SupportedProtocolVersion>, resume: bool) -> io::Result<Self> {
        require_loopback(address)?;
        let tls = tls.map(|version| Tls { version, resume, connector: connector(version, resume) });
        Ok(Self { address, tls })
    }

    /// The same target with a session cache of its own.
    pub fn with_own_session_cache(&self) -> Self {
        let mut target = self.clone();
        if let Some(tls) = &mut target.tls {
            tls.connector = connector(tls.version, tls.resume);
        }
        target
    }

    /// Opens the `n`th connection of a load; `receive_buffer` octets for the socket when given.
    pub async fn open(&self, n: u32, receive_buffer: Option<u32>) -> io::Result<Connection> {
        timeout(OPEN_TIMEOUT, self.open_unbounded(n, receive_buffer))
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "opening a connection took 20 s"))?
    }

    async fn open_unbounded(&self, n: u32, receive_buffer: Option<u32>) -> io::Result<Connection> {
        let socket = if self.address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_nodelay(true)?;
        if let Some(octets) = receive_buffer {
            socket.set_recv_buffer_size(octets)?;
        }
        if self.address.is_ipv4() {
            socket.bind(SocketAddr::new(source(n).into(), 0))?;
        }
        let tcp = socket.connect(self.address).await?;
        let stream = match &self.tls {
            None => Either::Left(tcp),
            Some(tls) => {
                let tcp = BufReader::with_capacity(receive_buffer.map_or(TLS_READ_SIZE, |octets| octets as usize), tcp);
                Either::Right(tls.connector.connect(ServerName::from(IpAddr::from(Ipv4Addr::LOCALHOST)), tcp).await?)
            }
        };
        Ok(Connection { stream, input: BytesMut::new() })
    }
}

/// An error unless `address` is loopback: nothing here may load or trust another machine.
pub fn require_loopback(address: SocketAddr) -> io::Result<()> {
    if address.ip().is_loopback() {
        Ok(())
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{address}: only loopback addresses are allowed")))
    }
}

/// What one read brought.
#[derive(Default)]
pub struct Responses {
    /// Final responses; any but success is an error.
    pub finals: usize,
    /// Search result entries.
    pub entries: usize,
}

/// One client connection.
pub struct Connection {
    stream: Either<TcpStream, TlsStream<BufReader<TcpStream>>>,
    input: BytesMut,
}

impl Connection {
    /// Whether the TLS handshake resumed an earlier session.
    pub fn resumed(&self) -> bool {
        match &self.stream {
            Either::Left(_) => false,
            Either::Right(tls) => tls.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed),
        }
    }

    /// Binds and awaits success.
    pub async fn bind(&mut self) -> io::Result<()> {
        self.ask(&mut Template::new(&[pdu::bind_request()], 1), &[1]).await.map(drop)
    }

    /// Sends one request and awaits its final response. Returns the number of entries before it.
    pub async fn ask(&mut self, request: &mut Template, id: &[u8]) -> io::Result<usize> {
        self.send(request.stamp(id)).await?;
        let mut entries = 0;
        loop {
            let responses = self.responses().await?;
            entries += responses.entries;
            if responses.finals > 0 {
                return Ok(entries);
            }
        }
    }

    /// Writes whole messages.
    pub async fn send(&mut self, messages: &[u8]) -> io::Result<()> {
        self.stream.write_all(messages).await?;
        self.stream.flush().await
    }

    /// Reads once, and takes every message that is whole by then. Cancelling it loses nothing.
    pub async fn responses(&mut self) -> io::Result<Responses> {
        self.input.reserve(TLS_READ_SIZE);
        if self.stream.read_buf(&mut self.input).await? == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the proxy closed a session"));
        }
        let mut responses = Responses::default();
        let mut at = 0;
        while let Some(frame) = pdu::frame(&self.input[at..])? {
            match frame.tag {
                tag::SEARCH_ENTRY => responses.entries += 1,
                operation => match pdu::result_code(frame.body)? {
                    0 => responses.finals += 1,
                    code => return Err(io::Error::other(format!("result code {code} in operation {operation:#04x}"))),
                },
            }
            at += frame.len;
        }
        self.input.advance(at);
        Ok(responses)
    }

    /// Reads up to `octets` without looking at them.
    pub async fn sip(&mut self, octets: usize) -> io::Result<usize> {
        self.input.clear();
        self.input.reserve(octets);
        let mut limited = (&mut self.stream).take(octets as u64);
        limited.read_buf(&mut self.input).await
    }

    /// Gives back what reading needed; for a connection that will be idle.
    pub fn forget_buffer(&mut self) {
        self.input = BytesMut::new();
    }

    /// Unbinds and closes, as libldap does.
    pub async fn unbind(mut self) -> io::Result<()> {
        self.send(Template::new(&[pdu::unbind_request()], 1).stamp(&[2])).await?;
        match self.stream.shutdown().await {
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()), // the peer was quicker to close
            result => result,
        }
    }
}

/// Source addresses by turns, so that no address runs out of ports: 127.16.0.1 to 127.31.250.250.
fn source(n: u32) -> Ipv4Addr {
    let [a, b, c] = [n % 250, n / 250 % 250, n / 62_500 % 16].map(|octet| octet as u8);
    Ipv4Addr::new(127, 16 + c, b + 1, a + 1)
}

fn connector(version: &'static SupportedProtocolVersion, resume: bool) -> TlsConnector {
    TlsConnector::from(Arc::new(client_config(version, resume)))
}

/// A client that offers one version and one suite, trusts anyone, and resumes sessions or never does.
pub fn client_config(version: &'static SupportedProtocolVersion, resume: bool) -> ClientConfig {
    let provider = Arc::new(one_suite_provider(version));
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[version])
        .expect("the provider has suites for both versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Unverified(provider)))
        .with_no_client_auth();
    config.resumption = if resume { Resumption::in_memory_sessions(32) } else { Resumption::disabled() };
    config
}

/// AES-256-GCM and X25519 only, so that every peer does the same work. In TLS 1.2 the list of groups also says which
/// curves a certificate may use (RFC 8422 §5.1.1), so there P-256 follows, which no server prefers to X25519.
pub fn one_suite_provider(version: &SupportedProtocolVersion) -> CryptoProvider {
    use aws_lc_rs::{cipher_suite, kx_group};
    let mut kx_groups = vec![kx_group::X25519];
    if version.version == ProtocolVersion::TLSv1_2 {
        kx_groups.push(kx_group::SECP256R1);
    }
    CryptoProvider {
        cipher_suites: vec![
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
            cipher_suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
        ],
        kx_groups,
        ..aws_lc_rs::default_provider()
    }
}

/// Trusts any certificate without a look: this client speaks to loopback only, and its CPU is better spent on load.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn only_loopback_is_loaded() {
        for (address, allowed) in [("127.9.9.9:636", true), ("[::1]:636", true), ("10.0.0.1:636", false)] {
            let target = Target::new(address.parse().expect("an address"), None, false);
            assert_eq!(target.is_ok(), allowed, "{address}");
        }
    }

    #[test]
    fn sources_are_distinct_loopback_addresses() {
        let sources: HashSet<_> = (0..9000).map(source).collect();
        assert_eq!(sources.len(), 9000);
        assert!((0..2_000_000).step_by(999).map(source).all(|address| address.is_loopback()));
    }
}
