//! `ldaps-proxy demo`: the whole proxy on one machine, with two embedded directories and a certificate made on the spot.

mod certificate;
mod prompt;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use crate::config::{
    AccessLog, Admin, BackendAddress, BackendSource, Config, Limits, Listener, ListenerProtocol, Log, LoginThrottle,
    Policy, Pool, Referrals, Shutdown, Tls,
};
use crate::embedded::{ADMINISTRATOR_PASSWORD, Directory, Server};
use certificate::Certificates;

/// Where the demo serves LDAPS.
pub const LDAPS_ADDRESS: SocketAddr = loopback(1636);
/// Where the demo serves the status page and the metrics.
pub const ADMIN_ADDRESS: SocketAddr = loopback(9636);

/// What the demo runs beside the proxy: the directories behind it and the files it reads. Dropping it ends and removes them.
pub struct Demo {
    certificates: Certificates,
    directories: Vec<EmbeddedDirectory>,
}

impl Demo {
    /// Makes the certificates and starts both directories on free loopback ports. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// Those of the temporary directory and of listening.
    pub fn start() -> io::Result<Self> {
        let contents = Arc::new(Directory::corp());
        let directories = ["dc1", "dc2"].map(|name| EmbeddedDirectory::start(name, Arc::clone(&contents)));
        Ok(Self {
            certificates: Certificates::create()?,
            directories: directories.into_iter().collect::<io::Result<_>>()?,
        })
    }

    /// The configuration for the proxy in front of the directories.
    pub fn config(&self) -> Config {
        let pool = "demo";
        let backend = |directory: &EmbeddedDirectory| BackendSource {
            address: BackendAddress::Socket(directory.address),
            weight: 1,
            tier: 0,
            max_sessions: 0,
        };
        let backends = self.directories.iter().map(backend).collect();
        Config {
            listeners: vec![self.listener(pool)],
            pools: BTreeMap::from([(pool.to_owned(), Arc::new(Pool::new(pool, backends)))]),
            limits: Limits::default(),
            login_throttle: LoginThrottle::default(),
            access_log: AccessLog::default(),
            admin: Admin { address: Some(ADMIN_ADDRESS), ..Admin::default() },
            log: Log::default(),
            health_address: None,
            shutdown: Shutdown::default(),
            end_untrusted_sessions: false,
            workers: None,
        }
    }

    /// To be called once the proxy listens: the command to try goes to standard output as its only line, so that a script
    /// can read it; what helps people goes to standard error.
    ///
    /// # Errors
    /// Those of writing.
    pub fn announce(&self) -> io::Result<()> {
        let mut help = io::stderr().lock();
        for directory in &self.directories {
            writeln!(help, "{directory} serves corp.example.com")?;
        }
        writeln!(help, "status page: http://{ADMIN_ADDRESS}/   metrics: http://{ADMIN_ADDRESS}/metrics")?;
        writeln!(help, "{}", prompt::HELP)?;
        writeln!(help, "Try this in another terminal:")?;
        let mut out = io::stdout().lock();
        writeln!(out, "{}", ldapsearch(self.certificates.authority()))?;
        out.flush()
    }

    /// Obeys the commands on standard input until one says `quit`. When standard input ends, it waits for ever.
    pub async fn prompt(&mut self) {
        prompt::obey(prompt::standard_input(), &mut self.directories, |said| eprintln!("{said}")).await;
    }

    fn listener(&self, pool: &str) -> Listener {
        Listener {
            name: "demo".to_owned(),
            address: LDAPS_ADDRESS,
            protocol: ListenerProtocol::Ldaps,
            trusted_networks: vec!["127.0.0.0/8".parse().expect("a network")],
            denied_networks: Vec::new(),
            trusted_networks_file: None,
            pool: pool.to_owned(),
            proxy_protocol_from: Vec::new(),
            referrals: Referrals::default(),
            public_name: None,
            policy: Policy::default(),
            tls: Some(Arc::new(Tls::new(self.certificates.server().clone()))),
        }
    }
}

/// A directory that can be stopped and started again on the same address.
struct EmbeddedDirectory {
    name: &'static str,
    contents: Arc<Directory>,
    address: SocketAddr,
    server: Option<Server>,
}

impl EmbeddedDirectory {
    fn start(name: &'static str, contents: Arc<Directory>) -> io::Result<Self> {
        let server = Server::bind(loopback(0), Arc::clone(&contents), name)?;
        Ok(Self { name, contents, address: server.local_addr(), server: Some(server) })
    }
}

impl std::fmt::Display for EmbeddedDirectory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.name, self.address)
    }
}

/// A whole command, ready to paste: no character in it means anything to a shell.
///
/// It names 127.0.0.1, because libldap replaces `localhost` by the machine's own name when it checks a certificate.
fn ldapsearch(authority: &Path) -> String {
    format!(
        "LDAPTLS_CACERT={} ldapsearch -x -H ldaps://{LDAPS_ADDRESS} -D administrator@corp.example.com \
         -w {ADMINISTRATOR_PASSWORD} -b dc=corp,dc=example,dc=com sAMAccountName=administrator",
        quoted(&authority.to_string_lossy())
    )
}

/// In single quotes where a shell would read anything into it: a temporary directory's name may hold a space.
fn quoted(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-".contains(&byte);
    if word.bytes().all(plain) { word.to_owned() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

const fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_is_one_plain_line() {
        let line = ldapsearch(Path::new("/tmp/demo/ca.pem"));
        assert!(line.starts_with("LDAPTLS_CACERT=/tmp/demo/ca.pem ldapsearch -x -H ldaps://127.0.0.1:1636 "), "{line}");
        let read_by_shells = |letter: char| r#"$`"'\!*?[](){}<>|&;~#"#.contains(letter) || letter.is_control();
        assert!(!line.contains(read_by_shells), "{line}");
    }

    #[test]
    fn odd_paths_are_quoted() {
        assert_eq!(quoted("/tmp/a-b_c.pem"), "/tmp/a-b_c.pem");
        assert_eq!(quoted("/tmp/my files"), "'/tmp/my files'");
        assert_eq!(quoted("/tmp/it's"), r"'/tmp/it'\''s'");
    }

    #[tokio::test]
    async fn the_configuration_names_what_was_started() {
        let demo = Demo::start().expect("free ports and a temporary directory");
        let config = demo.config();
        let sources: Vec<_> = config.pools["demo"].backends.iter().map(|backend| backend.address.clone()).collect();
        let started: Vec<_> =
            demo.directories.iter().map(|directory| BackendAddress::Socket(directory.address)).collect();
        assert!(sources == started && sources.len() == 2 && sources[0] != sources[1], "{sources:?}");
        let tls = config.listeners[0].tls.as_ref().expect("an LDAPS listener has TLS");
        assert!(
            tls.default_certificate.certificate.exists()
                && tls.default_certificate.private_key.file().is_some_and(Path::exists)
        );

        let files = demo.certificates.authority().to_owned();
        drop(demo);
        assert!(!files.exists(), "the demo leaves nothing behind");
    }
}
