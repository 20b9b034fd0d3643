//! Whole handshakes against [`ServerTls`].

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use rcgen::{
    CertificateRevocationListParams, ExtendedKeyUsagePurpose, KeyIdMethod, RevokedCertParams, SerialNumber,
    date_time_ymd,
};
use rustls::NamedGroup;
use rustls::crypto::aws_lc_rs::kx_group::X25519;
use rustls::crypto::{ActiveKeyExchange, SharedSecret, SupportedKxGroup};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::TlsConnector;

use super::testing::*;
use super::*;
use crate::config::{ClientCertificates, SessionTickets, Tls, TlsPolicy, TlsVersion};
use crate::failure::HandshakeFailureReason;

const NAME: &str = "ldap.example.com";

/// A directory with one good certificate, settings that name it, and its issuer.
fn good() -> (TempDir, Tls, Authority) {
    let directory = tempfile::tempdir().unwrap();
    let root = Authority::root("root");
    let settings = Tls::new(root.issue(&[NAME]).write(directory.path(), "server"));
    (directory, settings, root)
}

fn der(issued: &Issued) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(issued.certificate.as_bytes()).unwrap()
}

fn reason(outcome: Outcome) -> HandshakeFailureReason {
    HandshakeFailure::from(&outcome.expect_err("the handshake fails")).reason
}

async fn resumes(first: &ServerTls, second: &ServerTls, authority: &Authority, versions: Versions) -> bool {
    let client = client(authority, versions, None);
    assert!(!handshake(first, &client, NAME).await.unwrap().0.resumed);
    handshake(second, &client, NAME).await.unwrap().0.resumed
}

#[tokio::test]
async fn the_default_agrees_on_the_newest() {
    let (_directory, settings, root) = good();
    let server = load(&settings);
    let (agreed, _) = handshake(&server, &client(&root, BOTH, None), NAME).await.unwrap();
    let expected = Handshake {
        version: "1.3",
        suite: "TLS_AES_128_GCM_SHA256",
        group: "X25519MLKEM768",
        resumed: false,
        sni: Some(NAME.into()),
        client_subject: None,
    };
    assert_eq!(agreed, expected);
    let (agreed, _) = handshake(&server, &client(&root, ONLY_12, None), NAME).await.unwrap();
    assert_eq!((agreed.version, agreed.suite), ("1.2", "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"));
}

#[tokio::test]
async fn versions_follow_policy_and_min_version() {
    let (_directory, mut settings, root) = good();
    for (policy, min_version) in [(TlsPolicy::Modern, TlsVersion::V1_2), (TlsPolicy::Intermediate, TlsVersion::V1_3)] {
        (settings.policy, settings.min_version) = (policy, min_version);
        let server = load(&settings);
        assert_eq!(handshake(&server, &client(&root, BOTH, None), NAME).await.unwrap().0.version, "1.3");
        let refused = handshake(&server, &client(&root, ONLY_12, None), NAME).await;
        assert_eq!(reason(refused), HandshakeFailureReason::NoSharedVersion, "{policy:?}");
    }
}

#[cfg(not(feature = "fips"))]
#[test]
fn fips_needs_a_build_of_its_own() {
    let (_directory, mut settings, _root) = good();
    settings.policy = TlsPolicy::Fips;
    let findings = ServerTls::load(&settings, UnixTime::now()).unwrap_err();
    assert_eq!(
        findings.iter().map(|finding| (finding.key, finding.is_error())).collect::<Vec<_>>(),
        [("policy", true)]
    );
}

#[cfg(feature = "fips")]
#[tokio::test]
async fn fips_offers_nothing_that_is_not_approved() {
    let (_directory, mut settings, root) = good();
    settings.policy = TlsPolicy::Fips;
    let server = load(&settings);
    let config = server.server_config();
    assert!(config.fips() && config.require_ems);
    for (versions, group) in [(ONLY_12, "secp256r1"), (ONLY_13, "X25519MLKEM768")] {
        let (agreed, _) = handshake(&server, &client(&root, versions, None), NAME).await.unwrap();
        assert_eq!(agreed.group, group);
        assert!(agreed.suite.contains("AES"), "{}", agreed.suite);
    }
}

#[tokio::test]
async fn session_tickets_decides_who_resumes() {
    let (_directory, mut settings, root) = good();
    for (tickets, in_12, in_13) in
        [(SessionTickets::All, true, true), (SessionTickets::Tls12, true, false), (SessionTickets::Off, false, false)]
    {
        settings.session_tickets = tickets;
        let server = load(&settings);
        assert_eq!(resumes(&server, &server, &root, ONLY_12).await, in_12, "{tickets:?}");
        assert_eq!(resumes(&server, &server, &root, ONLY_13).await, in_13, "{tickets:?}");
    }
}

#[tokio::test]
async fn copies_resume_each_other_with_the_same_ticket_keys_only() {
    let (directory, mut settings, root) = good();
    settings.session_tickets = SessionTickets::All;
    assert!(!resumes(&load(&settings), &load(&settings), &root, ONLY_13).await, "each has its own keys");
    settings.ticket_key_file = Some(write(directory.path(), "tickets", &"5a".repeat(48)));
    for versions in [ONLY_12, ONLY_13] {
        assert!(resumes(&load(&settings), &load(&settings), &root, versions).await);
    }
    write(directory.path(), "tickets", "short");
    let findings = ServerTls::load(&settings, UnixTime::now()).unwrap_err();
    assert_eq!((findings[0].key, findings[0].is_error()), ("ticket_key_file", true));
}

#[tokio::test]
async fn a_rotated_ticket_key_file_is_read_on_reload() {
    let (directory, mut settings, root) = good();
    settings.ticket_key_file = Some(write(directory.path(), "tickets", &"5a".repeat(48)));
    let server = load(&settings);
    let client = client(&root, ONLY_12, None);
    handshake(&server, &client, NAME).await.unwrap();
    write(directory.path(), "tickets", &format!("{}\n{}\n", "6b".repeat(48), "5a".repeat(48)));
    server.reload(UnixTime::now()).unwrap();
    assert!(handshake(&server, &client, NAME).await.unwrap().0.resumed, "the previous key still opens");
    write(directory.path(), "tickets", &"7c".repeat(48));
    server.reload(UnixTime::now()).unwrap();
    assert!(!handshake(&server, &client, NAME).await.unwrap().0.resumed, "its key is gone");
}

#[tokio::test]
async fn a_reload_swaps_the_certificate_and_keeps_tickets() {
    let (directory, settings, root) = good();
    let server = load(&settings);
    let tls12 = client(&root, ONLY_12, None);
    handshake(&server, &tls12, NAME).await.unwrap();
    let renewed = root.issue(&[NAME]);
    renewed.write(directory.path(), "server");
    assert_eq!(server.reload(UnixTime::now()).unwrap(), []);
    let (_, seen) = handshake(&server, &client(&root, BOTH, None), NAME).await.unwrap();
    assert_eq!(seen, der(&renewed));
    assert!(handshake(&server, &tls12, NAME).await.unwrap().0.resumed);
}

#[tokio::test]
async fn a_bad_pair_leaves_the_old_one() {
    let (directory, settings, root) = good();
    let server = load(&settings);
    let before = server.certificates();
    let other = root.issue(&[NAME]);
    write(directory.path(), "server.pem", &other.certificate);
    let findings = server.reload(UnixTime::now()).unwrap_err();
    assert_eq!(findings[0].key, "private_key");
    assert_eq!(server.certificates(), before);
    handshake(&server, &client(&root, BOTH, None), NAME).await.unwrap();
    write(directory.path(), "server.key", &other.key);
    server.reload(UnixTime::now()).unwrap();
    assert_ne!(server.certificates(), before);
}

#[tokio::test]
async fn no_handshake_fails_while_certificates_are_swapped() {
    let (directory, settings, root) = good();
    let server = std::sync::Arc::new(load(&settings));
    let swapping = tokio::spawn({
        let server = server.clone();
        let pairs = [root.issue(&[NAME]), root.issue_with(&[NAME], rsa(), |_| {})];
        async move {
            for turn in 0..200 {
                pairs[turn % 2].write(directory.path(), "server");
                server.reload(UnixTime::now()).unwrap();
                tokio::task::yield_now().await;
            }
        }
    });
    let mut handshakes = 0;
    while !swapping.is_finished() {
        handshake(&server, &client(&root, BOTH, None), NAME).await.unwrap();
        handshakes += 1;
    }
    swapping.await.unwrap();
    assert!(handshakes > 10);
}

#[tokio::test]
async fn the_name_asked_for_chooses_the_certificate() {
    let (directory, mut settings, root) = good();
    let other = root.issue(&["other.example.com"]);
    settings.additional.push(other.write(directory.path(), "other"));
    let server = load(&settings);
    let (_, seen) = handshake(&server, &client(&root, BOTH, None), "other.example.com").await.unwrap();
    assert_eq!(seen, der(&other));
    let names: Vec<_> = server.certificates().into_iter().map(|certificate| certificate.sans).collect();
    assert_eq!(names, [[NAME], ["other.example.com"]]);
}

#[tokio::test]
async fn an_additional_certificate_s_findings_say_which() {
    let (directory, mut settings, root) = good();
    settings.additional.push(root.issue(&["fine.example.com"]).write(directory.path(), "fine"));
    settings.additional.push(root.issue(&[]).write(directory.path(), "nameless"));
    let loaded = ServerTls::load(&settings, UnixTime::now()).unwrap();
    assert_eq!(loaded.findings.iter().map(|finding| finding.additional).collect::<Vec<_>>(), [Some(1)]);
    let expiring = loaded.server.expiring(loaded.server.certificates()[0].not_after);
    assert_eq!(expiring.iter().map(|finding| finding.additional).collect::<Vec<_>>(), [None, Some(0), Some(1)]);
}

fn as_client(params: &mut rcgen::CertificateParams) {
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
}

#[tokio::test]
async fn client_certificates_are_verified_at_every_handshake() {
    let (directory, mut settings, root) = good();
    let ca = write(directory.path(), "client-ca.pem", &root.pem);
    let own = root.issue_with(&["app1"], ecdsa(), as_client);
    let with = |versions| client(&root, versions, Some(&own));
    settings.session_tickets = SessionTickets::All;

    settings.client_certificates = ClientCertificates::Required { ca: ca.clone(), crl: None };
    let server = load(&settings);
    assert_eq!(
        reason(handshake(&server, &client(&root, BOTH, None), NAME).await),
        HandshakeFailureReason::ClientCertificate
    );
    let foreign = Authority::root("stranger").issue_with(&["app1"], ecdsa(), as_client);
    let refused = handshake(&server, &client(&root, BOTH, Some(&foreign)), NAME).await;
    assert_eq!(reason(refused), HandshakeFailureReason::ClientCertificate);
    for versions in [ONLY_12, ONLY_13] {
        let client = with(versions);
        for _ in 0..2 {
            let (agreed, _) = handshake(&server, &client, NAME).await.unwrap();
            assert!(!agreed.resumed, "a resumed session would skip the check");
            assert_eq!(agreed.client_subject.as_deref(), Some("CN=app1"), "{agreed:?}");
        }
    }

    settings.client_certificates = ClientCertificates::Optional { ca, crl: None };
    let server = load(&settings);
    assert_eq!(handshake(&server, &client(&root, BOTH, None), NAME).await.unwrap().0.client_subject, None);
    assert!(handshake(&server, &with(BOTH), NAME).await.unwrap().0.client_subject.is_some());
}

/// Two copies share ticket keys, and only one of them asks for certificates, or the same one did not before a reload.
#[tokio::test]
async fn a_ticket_given_without_a_certificate_opens_no_door_that_asks_for_one() {
    let (directory, mut settings, root) = good();
    settings.session_tickets = SessionTickets::All;
    settings.ticket_key_file = Some(write(directory.path(), "tickets", &"5a".repeat(48)));
    let open = load(&settings);
    let ca = write(directory.path(), "client-ca.pem", &root.pem);
    settings.client_certificates = ClientCertificates::Required { ca, crl: None };
    let closed = load(&settings);
    for versions in [ONLY_12, ONLY_13] {
        let client = client(&root, versions, None);
        handshake(&open, &client, NAME).await.unwrap();
        assert!(handshake(&open, &client, NAME).await.unwrap().0.resumed);
        assert_eq!(reason(handshake(&closed, &client, NAME).await), HandshakeFailureReason::ClientCertificate);
    }
}

/// A bind in early data could be replayed.
#[tokio::test]
async fn no_ticket_allows_early_data() {
    let (_directory, mut settings, root) = good();
    settings.session_tickets = SessionTickets::All;
    let server = load(&settings);
    let mut eager = std::sync::Arc::unwrap_or_clone(client(&root, ONLY_13, None));
    eager.enable_early_data = true;
    let eager = std::sync::Arc::new(eager);
    for resumed in [false, true] {
        assert_eq!(handshake(&server, &eager, NAME).await.unwrap().0.resumed, resumed, "there are tickets");
    }
    let mut third = rustls::ClientConnection::new(eager, NAME.try_into().unwrap()).unwrap();
    assert!(third.early_data().is_none());
}

#[tokio::test]
async fn a_revoked_client_ends_at_the_handshake_after_a_reload() {
    let (directory, mut settings, root) = good();
    let serial = SerialNumber::from(77u64);
    let own = root.issue_with(&["app1"], ecdsa(), |params| {
        as_client(params);
        params.serial_number = Some(serial.clone());
    });
    let list = |revoked: &[SerialNumber], next_update| {
        let revoked_certs = revoked.iter().map(|serial_number| RevokedCertParams {
            serial_number: serial_number.clone(),
            revocation_time: date_time_ymd(2025, 1, 1),
            reason_code: None,
            invalidity_date: None,
        });
        CertificateRevocationListParams {
            this_update: date_time_ymd(2025, 1, 1),
            next_update,
            crl_number: SerialNumber::from(1u64),
            issuing_distribution_point: None,
            revoked_certs: revoked_certs.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        }
        .signed_by(&root.issuer)
        .unwrap()
        .pem()
        .unwrap()
    };
    let ca = write(directory.path(), "client-ca.pem", &root.pem);
    let crl = write(directory.path(), "crl.pem", &list(&[], date_time_ymd(2060, 1, 1)));
    settings.client_certificates = ClientCertificates::Required { ca, crl: Some(crl) };
    let server = load(&settings);
    let client = client(&root, BOTH, Some(&own));
    handshake(&server, &client, NAME).await.unwrap();

    write(directory.path(), "crl.pem", &list(&[serial], date_time_ymd(2025, 2, 1)));
    let warnings = server.reload(UnixTime::now()).unwrap();
    assert!(warnings[0].message.contains("was to be replaced on"), "{warnings:?}");
    let failure = HandshakeFailure::from(&handshake(&server, &client, NAME).await.unwrap_err());
    assert_eq!(failure.explanation, "the client's certificate is revoked");

    write(directory.path(), "crl.pem", &root.pem);
    assert_eq!(server.reload(UnixTime::now()).unwrap_err()[0].key, "client_crl");
}

#[tokio::test]
async fn a_client_that_distrusts_us_is_told_apart() {
    let (_directory, settings, _root) = good();
    let server = load(&settings);
    let stranger = client(&Authority::root("stranger"), BOTH, None);
    let failure = HandshakeFailure::from(&handshake(&server, &stranger, NAME).await.unwrap_err());
    assert_eq!(failure.reason, HandshakeFailureReason::ClientDistrustsUs);
    assert!(failure.explanation.contains("unknown_ca"), "{failure}");
}

/// A client's side that puts every handshake message into records of one octet each.
struct InPieces(tokio::io::DuplexStream);

impl AsyncWrite for InPieces {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, octets: &[u8]) -> Poll<io::Result<usize>> {
        const HANDSHAKE: u8 = 22;
        let (mut rest, mut sent) = (octets, Vec::new());
        while let [kind, major, minor, high, low, ..] = *rest {
            let (record, next) = rest.split_at(5 + usize::from(u16::from_be_bytes([high, low])));
            match kind {
                HANDSHAKE => sent.extend(record[5..].iter().flat_map(|octet| [kind, major, minor, 0, 1, *octet])),
                _ => sent.extend(record),
            }
            rest = next;
        }
        let written = ready!(Pin::new(&mut self.0).poll_write(cx, &sent))?;
        assert_eq!(written, sent.len(), "the transport has room");
        Poll::Ready(Ok(octets.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

impl AsyncRead for InPieces {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, room: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, room)
    }
}

/// A group that no server has: a client that begins with a share of it has to say hello again.
#[derive(Debug)]
struct Unknown;

impl SupportedKxGroup for Unknown {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, rustls::Error> {
        Ok(Box::new(Unknown))
    }

    fn name(&self) -> NamedGroup {
        NamedGroup::X448
    }
}

impl ActiveKeyExchange for Unknown {
    fn complete(self: Box<Self>, _: &[u8]) -> Result<SharedSecret, rustls::Error> {
        unreachable!("no server takes its share")
    }

    fn pub_key(&self) -> &[u8] {
        &[7; 56]
    }

    fn group(&self) -> NamedGroup {
        NamedGroup::X448
    }
}

/// A turn is taken for each hello, once all of it is there, and for nothing else.
#[tokio::test]
async fn nothing_is_computed_for_a_hello_without_a_turn() {
    let (_directory, settings, root) = good();
    let server = load(&settings);
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.kx_groups = vec![&Unknown, X25519];
    let retrying = client_of(provider, &root, ONLY_13, None);
    for (client, turns) in [(client(&root, ONLY_13, None), 1), (retrying, 2)] {
        let (near, far) = tokio::io::duplex(1 << 20);
        let taken = AtomicUsize::new(0);
        let connect = TlsConnector::from(client).connect(NAME.try_into().unwrap(), InPieces(near));
        let serve = async {
            let greeted = ServerTls::greeted(far).await?;
            greeted.answer(&server, || std::future::ready(Some(taken.fetch_add(1, Ordering::Relaxed)))).await
        };
        let (connected, served) = tokio::join!(connect, serve);
        connected.unwrap();
        let (_, agreed) = served.unwrap().expect("it had its turns");
        assert_eq!(
            (agreed.sni.as_deref(), agreed.group),
            (Some(NAME), if turns == 1 { "X25519MLKEM768" } else { "X25519" })
        );
        assert_eq!(taken.into_inner(), turns);
    }
}

/// What clients that aren't ours send first.
#[tokio::test]
async fn what_isn_t_our_tls_is_told_apart() {
    use tokio::io::AsyncWriteExt;
    let (_directory, settings, _root) = good();
    let server = load(&settings);
    let simple_bind = b"\x30\x0c\x02\x01\x01\x60\x07\x02\x01\x03\x04\x00\x80\x00".to_vec();
    // TLS 1.0, one suite, no extensions.
    let tls10 = [
        b"\x16\x03\x01\x00\x2d\x01\x00\x00\x29\x03\x01".to_vec(),
        vec![7; 32],
        b"\x00\x00\x02\x00\x2f\x01\x00".to_vec(),
    ];
    for (bytes, expected) in [
        (simple_bind, HandshakeFailureReason::NotTls),
        (
            b"\x30\x84\x00\x00\x00\x10\x02\x01\x01\x60\x84\x00\x00\x00\x07\x02\x01\x03\x04\x00\x80\x00".to_vec(),
            HandshakeFailureReason::NotTls,
        ),
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), HandshakeFailureReason::NotTls),
        (tls10.concat(), HandshakeFailureReason::NoSharedVersion),
        (Vec::new(), HandshakeFailureReason::Closed),
        (b"\x16\x03\x01".to_vec(), HandshakeFailureReason::Closed),
    ] {
        let (mut near, far) = tokio::io::duplex(4096);
        near.write_all(&bytes).await.unwrap();
        near.shutdown().await.unwrap();
        let failure = HandshakeFailure::from(&server.accept(far).await.err().unwrap());
        assert_eq!(failure.reason, expected, "{bytes:x?}: {failure}");
    }
}

#[test]
fn all_files_are_watched() {
    let (directory, mut settings, _root) = good();
    settings.default_certificate.certificate_chain = Some("chain".into());
    settings.additional = vec![settings.default_certificate.clone()];
    settings.ticket_key_file = Some("tickets".into());
    settings.client_certificates = ClientCertificates::Optional { ca: "ca".into(), crl: Some("crl".into()) };
    write(directory.path(), "chain", "");
    let files = super::server::files(&settings);
    assert_eq!(files.len(), 9, "{files:?}");
}
