//! Asking DNS, by hickory: a static binary has no getaddrinfo, and SRV records are beyond it anyway.

use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{NameServerConfig, ResolverConfig, ResolverOpts};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use hickory_resolver::system_conf::parse_resolv_conf;

use super::answers::{Answer, Question, Service};

/// One attempt at one name server, which are asked side by side.
const PATIENCE: Duration = Duration::from_secs(2);
const ATTEMPTS: usize = 2;

/// Where the system names its name servers.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// The name servers to ask: those of the configuration, or the system's as it names them at the moment.
pub(super) struct NameServers {
    configured: Vec<SocketAddr>,
    resolv_conf: PathBuf,
    /// What asks them, and what the file held when it was made.
    current: Option<(Arc<Resolver>, Vec<u8>)>,
}

impl NameServers {
    /// These, or the system's where there are none.
    pub(super) fn new(configured: &[SocketAddr]) -> Self {
        Self { configured: configured.to_vec(), resolv_conf: RESOLV_CONF.into(), current: None }
    }

    /// The system's, if it named them in this file.
    #[cfg(test)]
    pub(super) fn named_in(resolv_conf: PathBuf) -> Self {
        Self { configured: Vec::new(), resolv_conf, current: None }
    }

    /// What asks them now. The system may know its own late, at a boot, and get others with another network. A file that names
    /// none any more is one that is being written.
    ///
    /// # Errors
    /// The system has named no name servers so far.
    pub(super) fn resolver(&mut self) -> Result<Arc<Resolver>, String> {
        let made = match (self.read(), &self.current) {
            (Ok(now), Some((resolver, known))) if now == *known => return Ok(Arc::clone(resolver)),
            (Ok(now), _) => self.make(&now).map(|resolver| (Arc::new(resolver), now)),
            (Err(error), _) => Err(error),
        };
        match (made, &self.current) {
            (Ok(made), former) => {
                if former.is_some() {
                    tracing::info!(file = %self.resolv_conf.display(), "the system's name servers were read again");
                }
                Ok(Arc::clone(&self.current.insert(made).0))
            }
            (Err(_), Some((resolver, _))) => Ok(Arc::clone(resolver)),
            (Err(error), None) => Err(error),
        }
    }

    /// The system's file; nothing where the configuration names them.
    fn read(&self) -> Result<Vec<u8>, String> {
        if self.configured.is_empty() { std::fs::read(&self.resolv_conf).map_err(none_named) } else { Ok(Vec::new()) }
    }

    fn make(&self, resolv_conf: &[u8]) -> Result<Resolver, String> {
        if self.configured.is_empty() {
            let (config, options) = parse_resolv_conf(resolv_conf).map_err(none_named)?;
            return Resolver::new(config, options);
        }
        let servers = self.configured.iter().map(name_server).collect();
        Resolver::new(ResolverConfig::from_parts(None, Vec::new(), servers), ResolverOpts::default())
    }
}

fn none_named(error: impl Display) -> String {
    format!("this system names no name servers: {error}; set discovery.name_servers")
}

/// A resolver that remembers nothing: [`super::Answers`] does, with the pool's own bounds.
pub(super) struct Resolver(TokioResolver);

impl Resolver {
    fn new(config: ResolverConfig, mut options: ResolverOpts) -> Result<Self, String> {
        options.timeout = PATIENCE;
        options.attempts = ATTEMPTS;
        options.cache_size = 0;
        options.try_tcp_on_error = true;
        let builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        builder.with_options(options).build().map(Self).map_err(|error| error.to_string())
    }

    /// An answer and how long it holds. `known` is the last one.
    ///
    /// # Errors
    /// There is none, or no name server could be asked: in words.
    pub(super) async fn ask(&self, question: &Question, known: Option<&Answer>) -> Result<(Answer, Duration), String> {
        match question {
            Question::Service(name) => {
                let records = self.lookup(name, RecordType::SRV).await?;
                let services: Vec<_> = records.iter().filter_map(service).collect();
                if services.is_empty() {
                    return Err(format!("{name} has no SRV records"));
                }
                // RFC 2782: the target "." says that there is no such service here.
                let offered = services.into_iter().filter(|service| !service.target.is_empty()).collect();
                Ok((Answer::Services(offered), ttl(&records)))
            }
            Question::Host(name) => {
                let (v4, v6) = tokio::join!(self.lookup(name, RecordType::A), self.lookup(name, RecordType::AAAA));
                let known = match known {
                    Some(Answer::Addresses(known)) => known,
                    _ => &[][..],
                };
                let a_failed = v4.is_err();
                let (records, kept) = both_families(v4, v6, known)?;
                let found = records.iter().filter_map(|record| record.data.ip_addr());
                let addresses: Vec<_> = found.chain(kept).collect();
                if addresses.is_empty() {
                    return Err(format!("{name} has no addresses"));
                }
                // IPv6 alone may lead nowhere: where A failed and nothing is known of before, it is asked for again soon.
                let holds_for =
                    if a_failed && !addresses.iter().any(IpAddr::is_ipv4) { Duration::ZERO } else { ttl(&records) };
                Ok((Answer::Addresses(addresses), holds_for))
            }
        }
    }

    /// The records of a name; none where it has none of this type or doesn't exist.
    async fn lookup(&self, name: &str, kind: RecordType) -> Result<Vec<Record>, String> {
        let mut parsed = Name::from_utf8(name).map_err(|error| format!("{name} is not a name: {error}"))?;
        // A name with a dot is meant as it is; a single word may need the system's search list.
        if parsed.num_labels() > 1 {
            parsed.set_fqdn(true);
        }
        match self.0.lookup(parsed, kind).await {
            Ok(found) => Ok(found.answers().to_vec()),
            Err(error) if NetError::is_no_records_found(&error) => Ok(Vec::new()),
            Err(error) => Err(format!("{name} {kind}: {error}")),
        }
    }
}

/// What was found of a host, and what stays of it: an address that couldn't be asked for isn't an address that is gone. That one
/// family can't be asked for is no failure where the other one is found: some name servers have never heard of AAAA (RFC 4074).
fn both_families(
    v4: Result<Vec<Record>, String>,
    v6: Result<Vec<Record>, String>,
    known: &[IpAddr],
) -> Result<(Vec<Record>, Vec<IpAddr>), String> {
    let (found, why, is_kept): (_, _, fn(&IpAddr) -> bool) = match (v4, v6) {
        (Ok(v4), Ok(v6)) => return Ok(([v4, v6].concat(), Vec::new())),
        (Ok(v4), Err(why)) => (v4, why, IpAddr::is_ipv6),
        (Err(why), Ok(v6)) => (v6, why, IpAddr::is_ipv4),
        (Err(why), Err(_)) => return Err(why),
    };
    // A CNAME alone is no address.
    if !found.iter().any(|record| record.data.ip_addr().is_some()) {
        return Err(why);
    }
    tracing::debug!(reason = why, "one family of a host's addresses could not be asked for");
    Ok((found, known.iter().copied().filter(is_kept).collect()))
}

fn name_server(address: &SocketAddr) -> NameServerConfig {
    let mut server = NameServerConfig::udp_and_tcp(address.ip());
    server.connections.iter_mut().for_each(|connection| connection.port = address.port());
    server
}

fn service(record: &Record) -> Option<Service> {
    let RData::SRV(srv) = &record.data else { return None };
    let target = srv.target.to_utf8().trim_end_matches('.').to_owned();
    Some(Service { priority: srv.priority, weight: srv.weight, port: srv.port, target })
}

fn ttl(records: &[Record]) -> Duration {
    let seconds = records.iter().map(|record| record.ttl).min().unwrap_or_default();
    Duration::from_secs(seconds.into())
}
