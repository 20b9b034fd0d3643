//! The names under which a pool's own servers appear in references.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Pool;
use crate::config::BackendAddress;

/// What the servers have said of themselves.
#[derive(Debug, Default)]
pub(super) struct Names(Mutex<Learned>);

#[derive(Debug, Default)]
struct Learned {
    wanted: bool,
    hosts: BTreeSet<String>,
    domains: BTreeSet<String>,
}

/// A pool has few servers; a hostile one must not fill the memory with names.
const MOST: usize = 256;

impl Names {
    fn lock(&self) -> MutexGuard<'_, Learned> {
        // Every change is whole before the guard goes.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pool {
    /// Lets probes ask each server for its names: somebody treats references.
    pub fn want_names(&self) {
        self.names.lock().wanted = true;
    }

    /// Whether probes should ask for names.
    pub fn wants_names(&self) -> bool {
        self.names.lock().wanted
    }

    /// Takes what a server's rootDSE says: its host name and its domain.
    pub fn learn_names(&self, host: Option<String>, domain: Option<String>) {
        let mut learned = self.names.lock();
        if learned.hosts.len() < MOST {
            learned.hosts.extend(host);
        }
        if learned.domains.len() < MOST {
            learned.domains.extend(domain);
        }
    }

    /// Knows what `before`, the same pool as it was, has learned.
    pub(super) fn inherit_names(&self, before: &Self) {
        let (hosts, domains) = {
            let known = before.names.lock();
            (known.hosts.clone(), known.domains.clone())
        };
        let mut learned = self.names.lock();
        (learned.hosts, learned.domains) = (hosts, domains);
    }

    /// Hosts and domains that are this pool's own: configured, resolved or learned.
    pub fn own_names(&self) -> (Vec<String>, Vec<String>) {
        let learned = self.names.lock();
        let mut hosts: Vec<_> = learned.hosts.iter().cloned().collect();
        let mut domains: Vec<_> = learned.domains.iter().cloned().collect();
        for backend in self.backends().iter() {
            hosts.push(backend.address().ip().to_string());
            hosts.push(backend.host().to_owned());
        }
        for source in &self.settings.backends {
            match &source.address {
                BackendAddress::Host { name, .. } => hosts.push(name.clone()),
                // `_ldap._tcp.corp.example.com` and AD's `_ldap._tcp.SITE._sites.dc._msdcs.corp.example.com`.
                BackendAddress::Service(name) => {
                    let domain = name.rsplit_once("._msdcs.").or_else(|| name.rsplit_once("._tcp."));
                    domains.extend(domain.map(|(_, domain)| domain.to_owned()));
                }
                BackendAddress::Socket(_) => {}
            }
        }
        (hosts, domains)
    }
}
