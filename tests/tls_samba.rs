//! Samba's own client library against the server side, for every `session_tickets`.
//!
//! It hangs on a TLS 1.3 ticket (docs/tls.md says why), so GnuTLS clients get none; this keeps it so. That others do get
//! theirs is tested beside `ServerTls`.
#![allow(clippy::unwrap_used, reason = "whatever fails here fails the test")]

use std::io;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use ldaps_proxy::config::{CertificateFiles, SessionTickets, Tls};
use ldaps_proxy::ldap::reply::result;
use ldaps_proxy::ldap::{OperationKind, ResultCode, envelope};
use ldaps_proxy::tls::{ServerTls, UnixTime};
use rcgen::generate_simple_self_signed;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::process::Command;

#[tokio::test]
async fn ldbsearch_gets_its_answer() {
    let directory = tempfile::tempdir().unwrap();
    for session_tickets in [SessionTickets::All, SessionTickets::Tls12, SessionTickets::Off] {
        let server = Arc::new(server(directory.path(), session_tickets));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let directory = tokio::spawn(async move {
            let (tcp, _) = listener.accept().await.unwrap();
            tcp.set_nodelay(true).unwrap();
            let (mut tls, agreed) = server.accept(tcp).await.unwrap();
            assert_eq!((agreed.version, agreed.resumed), ("1.3", false));
            answer(&mut tls).await.unwrap();
        });
        let client = Command::new("ldbsearch")
            .args(["-H", &format!("ldaps://{address}"), "--option=tls verify peer = no_check", "-s", "base", "-b", ""])
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(Duration::from_secs(30), client)
            .await
            .unwrap_or_else(|_| panic!("{session_tickets:?}: ldbsearch hangs"))
            .expect("this test needs ldbsearch: apt-get install ldb-tools samba-dsdb-modules");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("# returned 0 records"), "{session_tickets:?}: {output:?}");
        directory.await.unwrap();
    }
}

fn server(directory: &Path, session_tickets: SessionTickets) -> ServerTls {
    let made = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let write = |name: &str, text: String| {
        let path = directory.join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let default_certificate = CertificateFiles {
        certificate: write("certificate.pem", made.cert.pem()),
        private_key: write("private_key.pem", made.signing_key.serialize_pem()).into(),
        certificate_chain: None,
        private_key_passphrase_file: None,
    };
    let settings = Tls { session_tickets, ..Tls::new(default_certificate) };
    ServerTls::load(&settings, UnixTime::now()).unwrap().server
}

/// A directory without entries: success to every bind and search, until the client leaves.
async fn answer(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> io::Result<()> {
    let mut bytes = Vec::new();
    loop {
        while let Some(request) = envelope(&bytes, 64 * 1024).unwrap().filter(|request| request.length <= bytes.len()) {
            let kind = match request.tag {
                0x60 => OperationKind::Bind,
                0x63 => OperationKind::Search,
                _ => OperationKind::Unbind,
            };
            bytes.drain(..request.length);
            stream.write_all(&result(kind, request.message_id, ResultCode::SUCCESS, "")).await?;
            stream.flush().await?;
        }
        match stream.read_buf(&mut bytes).await {
            Ok(0) => return Ok(()),
            // Samba's client leaves without close_notify.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            read => read?,
        };
    }
}
