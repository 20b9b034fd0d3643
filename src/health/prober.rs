//! Asking one backend one question, as `[pools.NAME.health]` describes it.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use ldap3_proto::{LdapSearchResultEntry, LdapSearchScope, parse_ldap_filter_str};
use tokio::time::{Instant, timeout_at};

use super::account::ServiceAccount;
use super::conversation::Conversation;
use super::judgement::{Depth, Failure};
use super::request::Search;
use crate::config::{self, ProbeKind};
use crate::ldap::dn::Dn;
use crate::pool::{Backend, Pool};
use crate::upstream::{is_our_own, is_refusal};

/// The part of a probe's `timeout` after which a new connection isn't waited for any more: what the old one has answered is to be
/// reported before the time is over.
const TIME_TO_CONNECT_ANEW: f64 = 0.9;

/// Asks. Dropping [`Prober::probe`]'s future, as a timeout does, also drops the connection it asked on.
pub(super) struct Prober {
    pool: Arc<Pool>,
    backend: Arc<Backend>,
    settings: config::Probe,
    account: Arc<ServiceAccount>,
    depth: Depth,
    /// The cheap probe's connection between two questions: connecting each time would fill the backend's log.
    kept: Option<Conversation>,
    /// The one it was on before real traffic met trouble, until a new one works as well.
    former: Option<Conversation>,
    unheard: Unheard,
    /// The server has been asked for its names.
    knows_names: bool,
}

/// When a new connection that took too long was last counted. A crowd may fill a server's queue for a moment, and has all of its
/// troubles looked into: that is one failure, not one for each.
#[derive(Default)]
struct Unheard(Option<Instant>);

impl Unheard {
    /// Whether one more counts.
    fn counts(&mut self, now: Instant, interval: Duration) -> bool {
        let counts = self.0.is_none_or(|last| now >= last + interval / 2);
        if counts {
            self.0 = Some(now);
        }
        counts
    }
}

impl Prober {
    pub(super) fn new(
        pool: Arc<Pool>,
        backend: Arc<Backend>,
        settings: config::Probe,
        account: Arc<ServiceAccount>,
        depth: Depth,
    ) -> Self {
        Self {
            pool,
            backend,
            settings,
            account,
            depth,
            kept: None,
            former: None,
            unheard: Unheard::default(),
            knows_names: false,
        }
    }

    pub(super) fn settings(&self) -> &config::Probe {
        &self.settings
    }

    pub(super) fn backend(&self) -> &Arc<Backend> {
        &self.backend
    }

    /// Asks the next question on a new connection: whether one can be had is what is in doubt.
    pub(super) fn start_afresh(&mut self) {
        if let Some(kept) = self.kept.take() {
            self.former = Some(kept);
        }
    }

    pub(super) async fn probe(&mut self) -> Result<(), Failure> {
        match self.settings.kind {
            ProbeKind::Tcp => self.tcp().await,
            ProbeKind::RootDse => self.root_dse().await,
            ProbeKind::Bind | ProbeKind::Search => match self.ask_as_account().await {
                // Whether the backend answers at all is still worth knowing.
                Err(Failure::NotAsked(_)) if self.depth == Depth::Cheap => self.root_dse().await,
                outcome => outcome,
            },
        }
    }

    async fn tcp(&self) -> Result<(), Failure> {
        self.pool.connector().reach(&self.backend, None).await.map(drop).map_err(unconnected)
    }

    async fn root_dse(&mut self) -> Result<(), Failure> {
        if let Some(mut conversation) = self.kept.take() {
            match self.read_root_dse(&mut conversation).await {
                Ok(()) => {
                    self.learn_names(&mut conversation).await?;
                    self.kept = Some(conversation);
                    return Ok(());
                }
                // It may have been closed for its age, or by a restart that is already over.
                Err(Failure::Unreachable(_)) => {}
                Err(failure) => return Err(failure),
            }
        }
        let Some(mut former) = self.former.take() else {
            let anew = self.root_dse_anew().await?;
            return self.keep(anew).await;
        };
        let deadline = Instant::now() + self.settings.timeout.mul_f64(TIME_TO_CONNECT_ANEW);
        // Side by side: a server that is silent on the old one is silent altogether, and the new one needs all the time there is.
        let (old, anew) = tokio::join!(self.read_root_dse(&mut former), timeout_at(deadline, self.root_dse_anew()));
        let failure = match (old, anew) {
            (Err(failure), _) if !matches!(failure, Failure::Unreachable(_)) => return Err(failure),
            (_, Ok(Ok(anew))) => return self.keep(anew).await,
            (Err(_), Ok(Err(failure))) => return Err(failure),
            (Err(_), Err(_)) => return Err(Failure::Silent(self.settings.timeout)),
            (Ok(()), Ok(Err(Failure::Unreachable(why)))) => Failure::Closed(why),
            (Ok(()), Ok(Err(failure))) => failure,
            (Ok(()), Err(_)) => {
                let why = Failure::Silent(self.settings.timeout).to_string();
                match self.unheard.counts(Instant::now(), self.settings.interval) {
                    true => Failure::Closed(why),
                    false => Failure::NotAsked(why),
                }
            }
        };
        self.former = Some(former);
        Err(failure)
    }

    async fn root_dse_anew(&self) -> Result<Conversation, Failure> {
        let mut conversation = self.connect().await?;
        self.read_root_dse(&mut conversation).await?;
        Ok(conversation)
    }

    /// For the next question, if it is the kind of probe that asks often.
    async fn keep(&mut self, mut conversation: Conversation) -> Result<(), Failure> {
        self.learn_names(&mut conversation).await?;
        match self.depth {
            Depth::Cheap => self.kept = Some(conversation),
            Depth::Deep => conversation.unbind().await,
        }
        Ok(())
    }

    /// Asks, once, for the names under which references may speak of this server, if a listener treats references.
    async fn learn_names(&mut self, conversation: &mut Conversation) -> Result<(), Failure> {
        if self.knows_names || !self.pool.wants_names() {
            return Ok(());
        }
        let mut root = None;
        let search = Search::root_dse(["dnsHostName".to_owned(), "defaultNamingContext".to_owned()]);
        conversation.search(&search, usize::MAX, |entry| root = Some(entry)).await?;
        let value = |name: &str| {
            let attributes = &root.as_ref()?.attributes;
            let attribute = attributes.iter().find(|attribute| attribute.atype.eq_ignore_ascii_case(name))?;
            String::from_utf8(attribute.vals.first()?.clone()).ok()
        };
        let domain = value("defaultNamingContext").and_then(|dn| Dn::parse(&dn)?.domain());
        self.pool.learn_names(value("dnsHostName"), domain);
        self.knows_names = true;
        Ok(())
    }

    async fn read_root_dse(&self, conversation: &mut Conversation) -> Result<(), Failure> {
        // Read in the place of another probe it shows that the backend answers, and takes nobody down.
        let expect = if self.settings.kind == ProbeKind::RootDse { &self.settings.expect } else { &BTreeMap::new() };
        let mut root = None;
        let search = Search::root_dse(expect.keys().cloned());
        conversation.search(&search, usize::MAX, |entry| root = Some(entry)).await?;
        let root = root.ok_or_else(|| Failure::Wrong("the backend has no rootDSE".to_owned()))?;
        meets(&root, expect).map_err(Failure::Wrong)
    }

    /// A bind, and for `search` what it should find.
    async fn ask_as_account(&self) -> Result<(), Failure> {
        let search = (self.settings.kind == ProbeKind::Search).then(|| content(&self.settings)).transpose()?;
        let password = self.account.password().await?;
        let mut conversation = self.connect().await?;
        if let Some(password) = password {
            let bound = conversation.bind(self.account.name(), &password).await;
            if let Err(Failure::CredentialsRefused(diagnostic)) = &bound {
                self.account.refused(password, self.backend.name(), diagnostic);
            } else if bound.is_ok() {
                self.account.accepted();
            }
            bound?;
        }
        if let Some(search) = search {
            let needed = self.settings.min_entries;
            let enough = if needed == 0 { usize::MAX } else { needed };
            let found = conversation.search(&search, enough, |_| {}).await?;
            if found < needed {
                return Err(Failure::Wrong(format!("the search found {found} entries of {needed}")));
            }
        }
        conversation.unbind().await;
        Ok(())
    }

    async fn connect(&self) -> Result<Conversation, Failure> {
        self.pool.connector().open_own(&self.backend).await.map(Conversation::new).map_err(unconnected)
    }
}

/// The search of a `search` probe.
fn content(settings: &config::Probe) -> Result<Search, Failure> {
    let filter = parse_ldap_filter_str(&settings.filter)
        .map_err(|error| Failure::NotAsked(format!("health: filter {:?} can't be read: {error}", settings.filter)))?;
    Ok(Search {
        base: settings.base.clone(),
        // Below the empty base there is nothing to find: it is the rootDSE.
        scope: if settings.base.is_empty() { LdapSearchScope::Base } else { LdapSearchScope::Subtree },
        filter,
        attributes: vec!["1.1".to_owned()],
        size_limit: settings.min_entries,
    })
}

/// Whether an entry has every value it should; attribute names and values compare without case.
fn meets(root: &LdapSearchResultEntry, expect: &BTreeMap<String, String>) -> Result<(), String> {
    for (name, expected) in expect {
        let attribute = root.attributes.iter().find(|attribute| attribute.atype.eq_ignore_ascii_case(name));
        let values = attribute.map_or(&[][..], |attribute| &attribute.vals);
        if !values.iter().any(|value| value.eq_ignore_ascii_case(expected.as_bytes())) {
            let found: Vec<_> = values.iter().take(3).map(|value| String::from_utf8_lossy(value)).collect();
            return Err(if found.is_empty() {
                format!("its rootDSE has no {name}, \"{expected}\" is expected")
            } else {
                format!("its rootDSE has {name} = {}, \"{expected}\" is expected", found.join(", "))
            });
        }
    }
    Ok(())
}

fn unconnected(error: io::Error) -> Failure {
    let reason = error.to_string();
    match error {
        error if is_our_own(&error) => Failure::NotAsked(reason),
        error if is_refusal(&error) => Failure::Wrong(reason),
        _ => Failure::Unreachable(reason),
    }
}

impl fmt::Display for ProbeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::RootDse => "rootdse",
            Self::Tcp => "tcp",
            Self::Bind => "bind",
            Self::Search => "search",
        })
    }
}

#[cfg(test)]
mod tests {
    use ldap3_proto::LdapPartialAttribute;

    use super::*;

    #[test]
    fn a_connection_that_takes_too_long_counts_once_an_interval() {
        let (began, interval) = (Instant::now(), Duration::from_secs(2));
        let mut unheard = Unheard::default();
        let counted =
            [0, 250, 500, 999, 1000, 1250, 2100].map(|ms| unheard.counts(began + Duration::from_millis(ms), interval));
        assert_eq!(counted, [true, false, false, false, true, false, true]);
    }

    #[test]
    fn expectations() {
        let attribute = |name: &str, values: &[&str]| LdapPartialAttribute {
            atype: name.to_owned(),
            vals: values.iter().map(|value| value.as_bytes().to_vec()).collect(),
        };
        let root = LdapSearchResultEntry {
            dn: String::new(),
            attributes: vec![
                attribute("isSynchronized", &["FALSE"]),
                attribute("namingContexts", &["DC=a", "DC=b"]),
                attribute("empty", &[]),
            ],
        };
        for (expect, expected) in [
            (vec![], Ok(())),
            (vec![("issynchronized", "false"), ("namingContexts", "DC=b")], Ok(())),
            (vec![("isSynchronized", "TRUE")], Err("its rootDSE has isSynchronized = FALSE, \"TRUE\" is expected")),
            (vec![("empty", "x")], Err("its rootDSE has no empty, \"x\" is expected")),
            (vec![("absent", "x")], Err("its rootDSE has no absent, \"x\" is expected")),
        ] {
            let expect = expect.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
            assert_eq!(meets(&root, &expect), expected.map_err(str::to_owned));
        }
    }

    #[test]
    fn a_bad_filter_is_no_fault_of_the_backend() {
        let settings = config::Probe { filter: "(cn=".into(), ..config::Probe::default() };
        assert!(matches!(content(&settings), Err(Failure::NotAsked(why)) if why.contains("(cn=")));
    }
}
