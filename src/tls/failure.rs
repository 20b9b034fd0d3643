//! Why a client's handshake failed, in a sentence for the operator.

use std::borrow::Cow;
use std::fmt;
use std::io;

use rustls::{AlertDescription, CertificateError, Error, InvalidMessage, PeerIncompatible};

use crate::failure::HandshakeFailureReason;

/// A failed handshake, explained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandshakeFailure {
    /// What kind it is.
    pub reason: HandshakeFailureReason,
    /// What an operator can make of it.
    pub explanation: Cow<'static, str>,
}

impl HandshakeFailure {
    /// A handshake that wasn't done within its time.
    pub fn timeout() -> Self {
        Self::new(HandshakeFailureReason::Timeout, "the client didn't finish the handshake in time")
    }

    fn new(reason: HandshakeFailureReason, explanation: impl Into<Cow<'static, str>>) -> Self {
        Self { reason, explanation: explanation.into() }
    }
}

impl From<&io::Error> for HandshakeFailure {
    fn from(error: &io::Error) -> Self {
        if let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
            return tls.into();
        }
        match error.kind() {
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::NotConnected
            | io::ErrorKind::BrokenPipe => Self::new(
                HandshakeFailureReason::Closed,
                "the client closed the connection during the handshake: a port check, or a client that distrusts our certificate \
                 and doesn't say so",
            ),
            io::ErrorKind::TimedOut => Self::timeout(),
            _ => Self::new(HandshakeFailureReason::Other, error.to_string()),
        }
    }
}

impl From<&Error> for HandshakeFailure {
    fn from(error: &Error) -> Self {
        use HandshakeFailureReason::*;
        let (reason, explanation): (_, Cow<'static, str>) = match error {
            Error::PeerIncompatible(incompatible) => incompatible_peer(incompatible),
            Error::AlertReceived(alert) => alert_received(*alert),
            Error::InvalidMessage(InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion) => (
                NotTls,
                "the client doesn't speak TLS: if it is an LDAP client, let it use ldaps://, or give it an \"ldap\" \
                 listener with StartTLS"
                    .into(),
            ),
            Error::NoCertificatesPresented => {
                (ClientCertificate, "the client showed no certificate, and client_certificates is \"required\"".into())
            }
            Error::InvalidCertificate(error) => (ClientCertificate, client_certificate(error)),
            Error::InvalidCertRevocationList(error) => (
                ClientCertificate,
                format!("client_crl can't be applied to the client's certificate: {error:?}").into(),
            ),
            other => (Other, other.to_string().into()),
        };
        Self { reason, explanation }
    }
}

impl fmt::Display for HandshakeFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.explanation)
    }
}

fn incompatible_peer(incompatible: &PeerIncompatible) -> (HandshakeFailureReason, Cow<'static, str>) {
    use PeerIncompatible::*;
    match incompatible {
        // rustls looks for the signature schemes first, and they came with TLS 1.2.
        Tls12NotOffered | SignatureAlgorithmsExtensionRequired => {
            (HandshakeFailureReason::NoSharedVersion, "the client offers nothing newer than TLS 1.1: update it".into())
        }
        Tls12NotOfferedOrEnabled | SupportedVersionsExtensionRequired => (
            HandshakeFailureReason::NoSharedVersion,
            "no shared version: the client's newest is older than min_version, or than policy \"modern\" allows".into(),
        ),
        NoCipherSuitesInCommon => (
            HandshakeFailureReason::NoSharedCipher,
            "no shared cipher suite: the client offers only obsolete ones".into(),
        ),
        NoKxGroupsInCommon | NamedGroupsExtensionRequired | NoEcPointFormatsInCommon | UncompressedEcPointsRequired => {
            (
                HandshakeFailureReason::NoSharedCipher,
                "no shared key exchange: the client offers only suites without forward secrecy, or none of the groups \
                 X25519, P-256 and P-384"
                    .into(),
            )
        }
        NoSignatureSchemesInCommon => (
            HandshakeFailureReason::NoSharedCipher,
            "no shared signature scheme: the client can't verify the key type of any certificate here; \
             add an RSA one in [[tls.additional]]"
                .into(),
        ),
        ExtendedMasterSecretExtensionRequired => (
            HandshakeFailureReason::NoSharedCipher,
            "the client's TLS 1.2 lacks the extended master secret, which policy \"fips\" demands".into(),
        ),
        other => (HandshakeFailureReason::Other, format!("incompatible client: {other:?}").into()),
    }
}

fn alert_received(alert: AlertDescription) -> (HandshakeFailureReason, Cow<'static, str>) {
    use AlertDescription::*;
    let distrust = |why: &'static str| (HandshakeFailureReason::ClientDistrustsUs, Cow::from(why));
    match alert {
        UnknownCA => distrust(
            "the client doesn't trust our issuer (alert unknown_ca): give it the root, and check certificate_chain",
        ),
        BadCertificate => distrust(
            "the client refuses our certificate (alert bad_certificate): does it carry the name the client connects to?",
        ),
        CertificateExpired => distrust("the client finds our certificate expired (alert certificate_expired)"),
        CertificateRevoked => distrust("the client finds our certificate revoked (alert certificate_revoked)"),
        CertificateUnknown => distrust(
            "the client refuses our certificate (alert certificate_unknown): it doesn't trust the issuer or the name",
        ),
        UnsupportedCertificate => {
            distrust("the client can't use our kind of certificate (alert unsupported_certificate)")
        }
        ProtocolVersion => (
            HandshakeFailureReason::NoSharedVersion,
            "the client accepts no TLS version of ours (alert protocol_version)".into(),
        ),
        HandshakeFailure | InsufficientSecurity => (
            HandshakeFailureReason::NoSharedCipher,
            "the client accepts no parameters of ours (alert handshake_failure)".into(),
        ),
        CloseNotify | UserCanceled => {
            (HandshakeFailureReason::Closed, "the client gave up during the handshake".into())
        }
        other => (HandshakeFailureReason::Other, format!("the client gave up: alert {other:?}").into()),
    }
}

fn client_certificate(error: &CertificateError) -> Cow<'static, str> {
    match error {
        CertificateError::UnknownIssuer => "the client's certificate is of no issuer in client_ca".into(),
        CertificateError::Revoked => "the client's certificate is revoked".into(),
        CertificateError::UnknownRevocationStatus => {
            "client_crl has no list of the issuer of the client's certificate".into()
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "the client's certificate isn't for clients: its extended key usage leaves out clientAuth".into()
        }
        other => format!("the client's certificate is refused: {other}").into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cause_has_its_reason() {
        use HandshakeFailureReason::*;
        for (error, reason) in [
            (Error::PeerIncompatible(PeerIncompatible::Tls12NotOffered), NoSharedVersion),
            (Error::PeerIncompatible(PeerIncompatible::NoCipherSuitesInCommon), NoSharedCipher),
            (Error::PeerIncompatible(PeerIncompatible::NullCompressionRequired), Other),
            (Error::AlertReceived(AlertDescription::UnknownCA), ClientDistrustsUs),
            (Error::AlertReceived(AlertDescription::InternalError), Other),
            (Error::InvalidMessage(InvalidMessage::InvalidContentType), NotTls),
            (Error::NoCertificatesPresented, ClientCertificate),
            (Error::InvalidCertificate(CertificateError::Revoked), ClientCertificate),
            (Error::DecryptError, Other),
        ] {
            let wrapped = io::Error::new(io::ErrorKind::InvalidData, error.clone());
            assert_eq!(HandshakeFailure::from(&wrapped).reason, reason, "{error:?}");
        }
        for (kind, reason) in [
            (io::ErrorKind::UnexpectedEof, Closed),
            (io::ErrorKind::ConnectionReset, Closed),
            (io::ErrorKind::TimedOut, Timeout),
            (io::ErrorKind::OutOfMemory, Other),
        ] {
            assert_eq!(HandshakeFailure::from(&io::Error::from(kind)).reason, reason, "{kind:?}");
        }
    }
}
