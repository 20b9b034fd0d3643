//! Asking DNS, by hickory: a static binary has no getaddrinfo, and SRV records are beyond it anyway.

use std::net::SocketAddr;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{NameServerConfig, ResolverConfig};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};

use super::answers::{Answer, Question, Service};

/// One attempt at one name server, which are asked side by side.
const PATIENCE: Duration = Duration::from_secs(2);
const ATTEMPTS: usize = 2;

/// A resolver that remembers nothing: [`super::Answers`] does, with the pool's own bounds.
pub(super) struct Resolver(TokioResolver);

impl Resolver {
    /// Asks these name servers, or the system's where there are none.
    ///
    /// # Errors
    /// The system names no name servers.
    pub(super) fn new(name_servers: &[SocketAddr]) -> Result<Self, String> {
        let mut builder = if name_servers.is_empty() {
            TokioResolver::builder_tokio()
                .map_err(|error| format!("this system names no name servers: {error}; set discovery.name_servers"))?
        } else {
            let servers = name_servers.iter().map(name_server).collect();
            let config = ResolverConfig::from_parts(None, Vec::new(), servers);
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        };
        let options = builder.options_mut();
        options.timeout = PATIENCE;
        options.attempts = ATTEMPTS;
        options.cache_size = 0;
        options.try_tcp_on_error = true;
        builder.build().map(Self).map_err(|error| error.to_string())
    }

    /// An answer and how long it holds.
    ///
    /// # Errors
    /// There is none, or no name server could be asked: in words.
    pub(super) async fn ask(&self, question: &Question) -> Result<(Answer, Duration), String> {
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
                // Both or none: an address that couldn't be asked for isn't an address that is gone.
                let (v4, v6) = tokio::join!(self.lookup(name, RecordType::A), self.lookup(name, RecordType::AAAA));
                let records = [v4?, v6?].concat();
                let addresses: Vec<_> = records.iter().filter_map(|record| record.data.ip_addr()).collect();
                if addresses.is_empty() {
                    return Err(format!("{name} has no addresses"));
                }
                Ok((Answer::Addresses(addresses), ttl(&records)))
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
