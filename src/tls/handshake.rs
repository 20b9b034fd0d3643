//! What a finished handshake agreed on.

use rustls::{CipherSuite, CommonState, HandshakeKind, NamedGroup, ProtocolVersion};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

/// A client's handshake, in the words of the metrics and the access log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handshake {
    /// "1.2" or "1.3".
    pub version: &'static str,
    /// The cipher suite's IANA name.
    pub suite: &'static str,
    /// The key exchange group; "none" for a session of TLS 1.2 that was resumed.
    pub group: &'static str,
    /// Whether an earlier session was resumed.
    pub resumed: bool,
    /// The host name the client asked for.
    pub sni: Option<String>,
    /// The subject of the client's certificate, verified.
    pub client_subject: Option<String>,
}

impl Handshake {
    /// Call it once the handshake is done; before that, most of it is unknown.
    pub(super) fn new(connection: &CommonState, sni: Option<String>) -> Self {
        let subject =
            |certificate| X509Certificate::from_der(certificate).ok().map(|(_, x509)| x509.subject().to_string());
        Self {
            version: version_label(connection.protocol_version()),
            suite: connection.negotiated_cipher_suite().map_or("none", |suite| suite_label(suite.suite())),
            group: connection.negotiated_key_exchange_group().map_or("none", |group| group_label(group.name())),
            resumed: connection.handshake_kind() == Some(HandshakeKind::Resumed),
            sni,
            client_subject: connection
                .peer_certificates()
                .and_then(|chain| chain.first())
                .and_then(|leaf| subject(leaf)),
        }
    }
}

fn version_label(version: Option<ProtocolVersion>) -> &'static str {
    match version {
        Some(ProtocolVersion::TLSv1_2) => "1.2",
        Some(ProtocolVersion::TLSv1_3) => "1.3",
        _ => "none",
    }
}

/// rustls prefixes the suites of TLS 1.3 so that their names tell the version; IANA doesn't.
fn suite_label(suite: CipherSuite) -> &'static str {
    match suite {
        CipherSuite::TLS13_AES_128_GCM_SHA256 => "TLS_AES_128_GCM_SHA256",
        CipherSuite::TLS13_AES_256_GCM_SHA384 => "TLS_AES_256_GCM_SHA384",
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => "TLS_CHACHA20_POLY1305_SHA256",
        other => other.as_str().unwrap_or("other"),
    }
}

fn group_label(group: NamedGroup) -> &'static str {
    group.as_str().unwrap_or("other")
}
