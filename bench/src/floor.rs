//! The cryptographic floor: what one churn cycle costs the server in the TLS library alone, with no socket, no proxy
//! and no LDAP. It is measured in memory on both sides, and only the server's calls are timed.

use std::{
    io::{self, Read, Write},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use clap::{Args, value_parser};
use rustls::{
    ClientConnection, ServerConfig, ServerConnection, SupportedProtocolVersion,
    crypto::{CryptoProvider, aws_lc_rs::Ticketer},
    server::NoServerSessionStorage,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use serde::Serialize;

use crate::client::{client_config, one_suite_provider};

/// Octets of a bind request, a bind response, a search request and its answer of one entry, as the load has them.
const EXCHANGE: [(Side, usize); 4] = [(Side::Client, 50), (Side::Server, 14), (Side::Client, 110), (Side::Server, 520)];

/// What a server shows of itself.
#[derive(Args)]
pub struct Identity {
    /// PEM chain.
    #[arg(long)]
    certificate: PathBuf,
    /// PEM key.
    #[arg(long)]
    key: PathBuf,
}

#[derive(Args)]
pub struct Floor {
    #[command(flatten)]
    identity: Identity,
    /// Cycles measured.
    #[arg(long, default_value_t = 4000, value_parser = value_parser!(u32).range(10..=100_000))]
    cycles: u32,
}

/// µs of the server per cycle.
#[derive(Debug, Serialize)]
struct Floors {
    tls13_full_us: f64,
    tls13_resumed_us: f64,
    tls12_full_us: f64,
    tls12_resumed_us: f64,
}

#[derive(Clone, Copy, PartialEq)]
enum Side {
    Client,
    Server,
}

impl Floor {
    /// Prints one line of JSON.
    pub fn run(self) -> io::Result<()> {
        let (tls12, tls13) = (&rustls::version::TLS12, &rustls::version::TLS13);
        let floors = Floors {
            tls13_full_us: self.median(tls13, false)?,
            tls13_resumed_us: self.median(tls13, true)?,
            tls12_full_us: self.median(tls12, false)?,
            tls12_resumed_us: self.median(tls12, true)?,
        };
        println!("{}", serde_json::to_string(&floors).map_err(io::Error::other)?);
        Ok(())
    }

    fn median(&self, version: &'static SupportedProtocolVersion, resume: bool) -> io::Result<f64> {
        let client = Arc::new(client_config(version, resume));
        let provider = Arc::new(one_suite_provider(version));
        let mut server = server_config(provider, &[version], &self.identity)?;
        if resume {
            server.ticketer = Ticketer::new().map_err(io::Error::other)?;
            server.send_tls13_tickets = 1;
        }
        let server = Arc::new(server);
        let mut times = Vec::new();
        for n in 0..=self.cycles {
            let (time, resumed) = cycle(&client, &server)?;
            if n == 0 {
                continue; // nothing to resume yet
            }
            if resumed != resume {
                return Err(io::Error::other("a handshake was not of the kind asked for"));
            }
            times.push(time);
        }
        times.sort_unstable();
        Ok(times[times.len() / 2].as_nanos() as f64 / 1000.0)
    }
}

/// A server's side of TLS, without tickets.
pub fn server_config(
    provider: Arc<CryptoProvider>,
    versions: &[&'static SupportedProtocolVersion],
    identity: &Identity,
) -> io::Result<ServerConfig> {
    let chain = CertificateDer::pem_file_iter(&identity.certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(io::Error::other)?;
    let key = PrivateKeyDer::from_pem_file(&identity.key).map_err(io::Error::other)?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
        .map_err(io::Error::other)?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// One connection: handshake, bind, search, close. Returns the server's time and whether it resumed.
fn cycle(client: &Arc<rustls::ClientConfig>, server: &Arc<ServerConfig>) -> io::Result<(Duration, bool)> {
    let name = ServerName::try_from("localhost").map_err(io::Error::other)?;
    let mut client = ClientConnection::new(Arc::clone(client), name).map_err(io::Error::other)?;
    let mut spent = Duration::ZERO;
    let mut server = timed(&mut spent, || ServerConnection::new(Arc::clone(server))).map_err(io::Error::other)?;
    let mut wire = Vec::new();
    let mut plain = vec![0; 1024];
    while client.is_handshaking() || server.is_handshaking() {
        to_server(&mut client, &mut server, &mut wire, &mut spent)?;
        to_client(&mut client, &mut server, &mut wire, &mut spent)?;
    }
    for (from, octets) in EXCHANGE {
        let message = vec![0x30; octets];
        match from {
            Side::Client => {
                client.writer().write_all(&message)?;
                to_server(&mut client, &mut server, &mut wire, &mut spent)?;
                timed(&mut spent, || server.reader().read_exact(&mut plain[..octets]))?;
            }
            Side::Server => {
                timed(&mut spent, || server.writer().write_all(&message))?;
                to_client(&mut client, &mut server, &mut wire, &mut spent)?;
                client.reader().read_exact(&mut plain[..octets])?;
            }
        }
    }
    client.send_close_notify();
    to_server(&mut client, &mut server, &mut wire, &mut spent)?;
    let resumed = server.handshake_kind() == Some(rustls::HandshakeKind::Resumed);
    timed(&mut spent, || drop(server));
    Ok((spent, resumed))
}

fn to_server(
    client: &mut ClientConnection,
    server: &mut ServerConnection,
    wire: &mut Vec<u8>,
    spent: &mut Duration,
) -> io::Result<()> {
    wire.clear();
    while client.wants_write() {
        client.write_tls(wire)?;
    }
    let mut unread = wire.as_slice();
    timed(spent, || {
        while !unread.is_empty() {
            server.read_tls(&mut unread)?;
            server.process_new_packets().map_err(io::Error::other)?;
        }
        Ok(())
    })
}

fn to_client(
    client: &mut ClientConnection,
    server: &mut ServerConnection,
    wire: &mut Vec<u8>,
    spent: &mut Duration,
) -> io::Result<()> {
    wire.clear();
    timed(spent, || {
        while server.wants_write() {
            server.write_tls(wire)?;
        }
        io::Result::Ok(())
    })?;
    let mut unread = wire.as_slice();
    while !unread.is_empty() {
        client.read_tls(&mut unread)?;
        client.process_new_packets().map_err(io::Error::other)?;
    }
    Ok(())
}

fn timed<T>(spent: &mut Duration, work: impl FnOnce() -> T) -> T {
    let started = Instant::now();
    let result = work();
    *spent += started.elapsed();
    result
}
