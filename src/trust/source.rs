//! One listener's trust, kept current with its list file.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use ipnet::IpNet;

use super::list::{LineError, parse_list};
use super::{Trust, Verdict};
use crate::config::Listener;

/// No list needs more: half a million networks.
const LIST_SIZE: u64 = 8 * 1024 * 1024;

/// The trust of one listener: what its settings and its list file say, the last good list where the file is bad.
#[derive(Debug)]
pub struct TrustSource {
    current: ArcSwap<Trust>,
    /// The last good list. Held over a whole reload, so that two can't cross.
    list: Mutex<Vec<IpNet>>,
}

/// What a reload did.
#[derive(Debug)]
pub enum Reload {
    /// The networks are those of the settings and of the list file as it is now.
    Done {
        /// Number of distinct networks, trusted and denied.
        networks: usize,
    },
    /// The list file is bad, and the last good list stays in force together with the settings: an alarm.
    ListKept(ListError),
}

/// Why a list file can't be used.
#[derive(Debug)]
pub struct ListError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: ListProblem,
}

/// What is wrong with a list file.
#[derive(Debug)]
pub enum ListProblem {
    /// It can't be read as text.
    Unreadable(io::Error),
    /// It names no network. A truncated write must not lock everyone out.
    Empty,
    /// It is larger than 8 MiB.
    TooLarge,
    /// These lines are no networks; never empty.
    Lines(Vec<LineError>),
}

impl std::error::Error for ListError {}

impl fmt::Display for ListError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.path.display())?;
        match &self.problem {
            ListProblem::Unreadable(error) => write!(f, "{error}"),
            ListProblem::Empty => f.write_str("no network in it: write one a line"),
            ListProblem::TooLarge => write!(f, "larger than {} MiB", LIST_SIZE / (1024 * 1024)),
            ListProblem::Lines(errors) => {
                write!(f, "{}", errors.first().expect("Lines holds at least one error, see `read_list`"))?;
                if errors.len() > 1 {
                    write!(f, " (and {} more lines)", errors.len() - 1)?;
                }
                Ok(())
            }
        }
    }
}

impl TrustSource {
    /// The trust of a listener that starts.
    ///
    /// # Errors
    /// [`ListError`]: there is no last good list to fall back on.
    pub fn open(settings: &Listener) -> Result<Self, ListError> {
        let list = settings.trusted_networks_file.as_deref().map(read_list).transpose()?.unwrap_or_default();
        Ok(Self { current: ArcSwap::from_pointee(trust(settings, &list)), list: Mutex::new(list) })
    }

    /// Takes the listener's networks from `settings`, which may have changed, and its list file from disk.
    ///
    /// Reads a file: not for the data path.
    pub fn reload(&self, settings: &Listener) -> Reload {
        // The list is replaced whole, so a panic elsewhere can't have left half of one.
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        let read = settings.trusted_networks_file.as_deref().map(read_list).transpose();
        let problem = match read {
            Ok(fresh) => {
                *list = fresh.unwrap_or_default();
                None
            }
            Err(problem) => Some(problem),
        };
        let trust = trust(settings, &list);
        let networks = trust.len();
        self.current.store(Arc::new(trust));
        problem.map_or(Reload::Done { networks }, Reload::ListKept)
    }

    /// Whether `address` may enter now.
    pub fn verdict(&self, address: IpAddr) -> Verdict {
        self.current.load().verdict(address)
    }
}

fn trust(settings: &Listener, list: &[IpNet]) -> Trust {
    let trusted = settings.trusted_networks.iter().chain(list).copied();
    Trust::new(trusted, settings.denied_networks.iter().copied())
}

/// Reads and parses a list file that must name at least one network.
fn read_list(path: &Path) -> Result<Vec<IpNet>, ListError> {
    let read = || {
        let mut text = String::new();
        File::open(path)
            .and_then(|file| file.take(LIST_SIZE + 1).read_to_string(&mut text))
            .map_err(ListProblem::Unreadable)?;
        if text.len() as u64 > LIST_SIZE {
            return Err(ListProblem::TooLarge);
        }
        let networks = parse_list(&text).map_err(ListProblem::Lines)?;
        if networks.is_empty() { Err(ListProblem::Empty) } else { Ok(networks) }
    };
    read().map_err(|problem| ListError { path: path.to_owned(), problem })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::config::{ListenerProtocol, Policy, Referrals};

    fn listener(trusted: &[&str], file: Option<PathBuf>) -> Listener {
        Listener {
            name: "test".into(),
            address: "127.0.0.1:0".parse().unwrap(),
            protocol: ListenerProtocol::Ldaps,
            trusted_networks: trusted.iter().map(|text| text.parse().unwrap()).collect(),
            denied_networks: Vec::new(),
            trusted_networks_file: file,
            pool: "test".into(),
            proxy_protocol_from: Vec::new(),
            referrals: Referrals::Pass,
            public_name: None,
            policy: Policy::default(),
            tls: None,
        }
    }

    fn trusts(source: &TrustSource, address: &str) -> bool {
        source.verdict(address.parse().unwrap()).is_trusted()
    }

    #[test]
    fn a_bad_list_at_reload_keeps_the_last_good_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("networks");
        fs::write(&path, "10.1.0.0/16\n").unwrap();
        let source = TrustSource::open(&listener(&["192.0.2.0/24"], Some(path.clone()))).unwrap();

        let bad: [(&str, &dyn Fn()); 5] = [
            ("unparsable", &|| fs::write(&path, "10.2.0.0/16\n10.3.0.0/99\n").unwrap()),
            ("empty", &|| fs::write(&path, "").unwrap()),
            ("only comments", &|| fs::write(&path, "# nobody\n").unwrap()),
            ("not text", &|| fs::write(&path, [0xFF, 0xFE]).unwrap()),
            ("missing", &|| fs::remove_file(&path).unwrap()),
        ];
        for (what, spoil) in bad {
            spoil();
            let settings = listener(&["198.51.100.0/24"], Some(path.clone()));
            assert!(matches!(source.reload(&settings), Reload::ListKept(_)), "{what}");
            assert!(trusts(&source, "10.1.2.3"), "{what}: the last good list stays");
            assert!(!trusts(&source, "10.2.0.1"), "{what}: half a list is no list");
            assert!(trusts(&source, "198.51.100.1"), "{what}: the settings are taken all the same");
            assert!(!trusts(&source, "192.0.2.1"), "{what}");
        }

        fs::write(&path, "10.2.0.0/16\n").unwrap();
        let settings = listener(&["192.0.2.0/24"], Some(path));
        assert!(matches!(source.reload(&settings), Reload::Done { networks: 2 }));
        assert!(trusts(&source, "10.2.0.1") && !trusts(&source, "10.1.2.3"));

        assert!(matches!(source.reload(&listener(&["192.0.2.0/24"], None)), Reload::Done { networks: 1 }));
        assert!(!trusts(&source, "10.2.0.1"), "no file in the settings any more");
    }

    #[test]
    fn a_bad_list_at_start_is_an_error_that_names_file_and_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("networks");
        let open = || TrustSource::open(&listener(&["192.0.2.0/24"], Some(path.clone())));
        assert!(matches!(open().unwrap_err().problem, ListProblem::Unreadable(_)));

        fs::write(&path, "10.0.0.0/16\nnonsense\n10.0.0.0/40\n").unwrap();
        let message = open().unwrap_err().to_string();
        assert!(message.starts_with(&format!("{}: line 2: \"nonsense\": not a network", path.display())), "{message}");
        assert!(message.ends_with("(and 1 more lines)"), "{message}");

        fs::write(&path, "#".repeat(usize::try_from(LIST_SIZE).unwrap() + 1)).unwrap();
        assert!(matches!(open().unwrap_err().problem, ListProblem::TooLarge));
    }
}
