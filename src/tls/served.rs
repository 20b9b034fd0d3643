//! What serves the `[tls]` tables of a configuration.

use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::UnixTime;
use tokio::time::{MissedTickBehavior, interval};

use super::server::files;
use super::{CertificateInfo, Finding, ServerTls, Snapshot};
use crate::config::{Config, Tls};

/// Each table with its server; listeners whose tables are alike share one.
#[derive(Debug, Clone, Default)]
pub struct Served {
    tables: Vec<Table>,
}

#[derive(Debug, Clone)]
struct Table {
    settings: Arc<Tls>,
    server: Arc<ServerTls>,
    /// Its files before they were read.
    files: Snapshot,
}

impl Served {
    /// Loads what the listeners of `config` ask for. A table that was served `before` is read again, and resumes the
    /// sessions it began. Every finding goes to `report`, with the place of the first listener it concerns; a table with an
    /// error is left out.
    pub fn load(config: &Config, before: &Self, now: UnixTime, mut report: impl FnMut(usize, Finding)) -> Self {
        let mut served = Self::default();
        for (place, listener) in config.listeners.iter().enumerate() {
            let Some(table) = listener.tls.as_ref().filter(|table| served.find(table).is_none()) else { continue };
            let files = Snapshot::take(files(table));
            let loaded = match before.find(table) {
                Some(server) => server.renewed(now),
                None => ServerTls::load(table, now),
            };
            let findings = match loaded {
                Ok(loaded) => {
                    served.tables.push(Table { settings: Arc::clone(table), server: Arc::new(loaded.server), files });
                    loaded.findings
                }
                Err(findings) => findings,
            };
            findings.into_iter().for_each(|finding| report(place, finding));
        }
        served
    }

    /// The server of a table.
    pub fn find(&self, table: &Tls) -> Option<&Arc<ServerTls>> {
        self.tables.iter().find(|known| *known.settings == *table).map(|known| &known.server)
    }

    /// All servers, in the order of their listeners.
    pub fn servers(&self) -> impl Iterator<Item = &Arc<ServerTls>> {
        self.tables.iter().map(|table| &table.server)
    }

    /// The certificates now served.
    pub fn certificates(&self) -> Vec<CertificateInfo> {
        self.servers().flat_map(|server| server.certificates()).collect()
    }

    /// Every file whose change calls for [`ServerTls::reload`], as it was before it was read.
    pub fn files(&self) -> Snapshot {
        self.tables.iter().map(|table| table.files.clone()).collect()
    }
}

/// Warns of each certificate that has ended or soon will, now and every day: `served` are those of that day.
pub async fn remind_of_expiry(
    served: impl Fn() -> Served,
    clock: impl Fn() -> UnixTime,
    mut warn: impl FnMut(Finding),
) {
    let mut days = interval(DAY);
    days.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        days.tick().await;
        served().servers().flat_map(|server| server.expiring(clock())).for_each(&mut warn);
    }
}

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tokio::time::{Instant, timeout};

    use super::super::testing::*;
    use super::*;
    use crate::config::parse;

    const NAME: &str = "ldap.example.com";

    /// Two listeners on `[tls]` and one with a table of its own.
    fn config(directory: &Path, own: &str) -> Config {
        let listener = |port: u16| {
            format!("[[listener]]\naddress = \"127.0.0.1:{port}\"\ntrusted_networks = [\"127.0.0.1\"]\npool = \"p\"\n")
        };
        let text = format!(
            "{}{}{}tls = {{ certificate = \"own.pem\", private_key = \"{own}\" }}\n[tls]\ncertificate = \"server.pem\"\n\
             private_key = \"server.key\"\n[pools.p]\nbackends = [\"127.0.0.1:389\"]\n",
            listener(1),
            listener(2),
            listener(3)
        );
        parse(&text, &directory.join("f.toml")).expect("the file is right").config
    }

    fn load(config: &Config, before: &Served) -> (Served, Vec<(usize, Finding)>) {
        let mut found = Vec::new();
        let served = Served::load(config, before, UnixTime::now(), |place, finding| found.push((place, finding)));
        (served, found)
    }

    #[test]
    fn tables_that_are_alike_are_read_once_and_findings_say_whose_they_are() {
        let directory = tempfile::tempdir().unwrap();
        let root = Authority::root("root");
        root.issue(&[NAME]).write(directory.path(), "server");
        root.issue(&[]).write(directory.path(), "own");
        let good = config(directory.path(), "own.key");
        let (served, found) = load(&good, &Served::default());
        assert_eq!(served.servers().count(), 2);
        assert_eq!(found.iter().map(|(place, finding)| (*place, finding.is_error())).collect::<Vec<_>>(), [(2, false)]);
        let files: Vec<_> = served.files().files().map(|file| file.file_name().unwrap().to_owned()).collect();
        assert_eq!(files, ["server.pem", "server.key", "own.pem", "own.key"]);

        let (served, found) = load(&config(directory.path(), "server.key"), &Served::default());
        assert_eq!(
            found.iter().map(|(place, finding)| (*place, finding.is_error())).collect::<Vec<_>>(),
            [(2, true), (2, false)]
        );
        assert!(served.find(good.listeners[0].tls.as_ref().unwrap()).is_some());
        assert_eq!(served.servers().count(), 1);
    }

    /// A reload costs no client its session, though all files are read again.
    #[tokio::test]
    async fn a_table_that_stays_resumes_what_it_began() {
        let directory = tempfile::tempdir().unwrap();
        let root = Authority::root("root");
        for name in ["server", "own"] {
            root.issue(&[NAME]).write(directory.path(), name);
        }
        let config = config(directory.path(), "own.key");
        let (first, _) = load(&config, &Served::default());
        let client = client(&root, ONLY_12, None);
        let begin = first.servers().next().unwrap();
        assert!(!handshake(begin, &client, NAME).await.unwrap().0.resumed);
        root.issue(&[NAME]).write(directory.path(), "server");
        let (second, _) = load(&config, &first);
        let [same, other] = second.servers().collect::<Vec<_>>()[..] else { panic!("two tables") };
        assert_ne!(same.certificates(), begin.certificates());
        assert!(handshake(same, &client, NAME).await.unwrap().0.resumed);
        assert!(!handshake(other, &client, NAME).await.unwrap().0.resumed, "tables share no tickets");
    }

    #[tokio::test(start_paused = true)]
    async fn a_warning_is_given_every_day_from_45_days_before_the_end() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["server", "own"] {
            Authority::root("root").issue(&[NAME]).write(directory.path(), name);
        }
        let (served, _) = load(&config(directory.path(), "own.key"), &Served::default());
        let end = served.certificates()[0].not_after.as_secs();
        let start = Instant::now();
        // The proxy starts 60 days and a half before the certificates end.
        let clock = || UnixTime::since_unix_epoch(Duration::from_secs(end) - DAY * 121 / 2 + start.elapsed());
        let mut days = Vec::new();
        let reminding = remind_of_expiry(
            || served.clone(),
            clock,
            |finding| days.push((start.elapsed().as_secs() / DAY.as_secs(), finding.message)),
        );
        assert!(timeout(DAY * 123 / 2, reminding).await.is_err());
        let first = days.first().expect("a warning");
        assert!(first.0 == 16 && first.1.contains("ends in 44 days"), "{first:?}");
        let last = days.last().expect("a warning");
        assert!(last.0 == 61 && last.1.contains("ended 0 days ago"), "{last:?}");
        assert_eq!(days.len(), 2 * (61 - 16 + 1), "each certificate, each day");
    }
}
