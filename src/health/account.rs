//! The service account probes bind as: its password is never tried again once a backend has refused it, so that probing
//! locks nobody out.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use zeroize::Zeroizing;

use super::judgement::Failure;
use crate::config;
use crate::metrics::PoolMetrics;

/// A refused password may be tried again after this long: AD forgets failed logins after 30 minutes by default, and a
/// backend that hadn't replicated a new password yet has it by then.
const TRIED_AGAIN_AFTER: Duration = Duration::from_secs(3600);

type Password = Zeroizing<Vec<u8>>;

/// Shared by the probes of all backends of a pool: they bind as the same account.
pub(super) struct ServiceAccount {
    pool: String,
    name: Option<String>,
    password_file: Option<PathBuf>,
    refused: Mutex<Option<(Password, Instant)>>,
    /// The file couldn't be read the last time, and that is told.
    unreadable: AtomicBool,
    metrics: PoolMetrics,
}

impl ServiceAccount {
    pub(super) fn new(pool: &str, probe: &config::Probe, metrics: PoolMetrics) -> Self {
        Self {
            pool: pool.to_owned(),
            name: probe.bind_name.clone(),
            password_file: probe.password_file.clone(),
            refused: Mutex::default(),
            unreadable: AtomicBool::default(),
            metrics,
        }
    }

    pub(super) fn name(&self) -> &str {
        self.name.as_deref().unwrap_or_default()
    }

    /// The password as the file has it now, without the end of its line; `None` where no account is configured.
    pub(super) async fn password(&self) -> Result<Option<Password>, Failure> {
        let (Some(_), Some(path)) = (&self.name, &self.password_file) else { return Ok(None) };
        let password = match tokio::fs::read(path).await.and_then(password_in) {
            Ok(password) => password,
            Err(error) => {
                let reason = format!("password_file {}: {error}", path.display());
                self.cannot_be_read(&reason);
                return Err(Failure::NotAsked(reason));
            }
        };
        if self.unreadable.swap(false, Ordering::Relaxed) {
            tracing::info!(
                pool = self.pool,
                account = self.name(),
                "the password of the probe's account can be read again"
            );
        }
        let is_refused = |(refused, at): &(Password, Instant)| *refused == password && at.elapsed() < TRIED_AGAIN_AFTER;
        if self.refusal().as_ref().is_some_and(is_refused) {
            return Err(Failure::NotAsked(format!(
                "the password of {:?} was refused and isn't tried again: correct {}",
                self.name(),
                path.display()
            )));
        }
        Ok(Some(password))
    }

    /// Tells it once, not for each probe of each backend. Only a bind that succeeds ends the alarm: the password that is read
    /// next may be a wrong one.
    fn cannot_be_read(&self, reason: &str) {
        let is_news = !self.unreadable.swap(true, Ordering::Relaxed);
        // Raised each time: a bind that was under way, or the pool's other account, may have ended it.
        self.metrics.probe_account_unreadable(is_news.then_some(reason));
        if !is_news {
            return;
        }
        tracing::error!(
            pool = self.pool,
            account = self.name(),
            reason,
            "the password of the probe's account can't be read: its probe stops for the whole pool, no backend changes its state"
        );
    }

    /// A backend answered invalidCredentials.
    pub(super) fn refused(&self, password: Password, backend: &str, diagnostic: &str) {
        tracing::error!(
            pool = self.pool,
            backend,
            account = self.name(),
            diagnostic,
            "the probe's account is refused (invalidCredentials): its probe stops for the whole pool, no backend changes its \
             state; correct bind_name or password_file"
        );
        *self.refusal() = Some((password, Instant::now()));
        self.metrics.probe_account_refused(true);
    }

    /// A backend answered success.
    pub(super) fn accepted(&self) {
        self.metrics.probe_account_refused(false);
        *self.refusal() = None;
    }

    fn refusal(&self) -> MutexGuard<'_, Option<(Password, Instant)>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The password in a file as it is now, read as a probe reads it.
///
/// # Errors
/// The file can't be read or holds none.
pub fn read_password(path: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
    std::fs::read(path).and_then(password_in)
}

/// What a file holds, without the end of its line.
fn password_in(octets: Vec<u8>) -> io::Result<Password> {
    let mut password = Password::new(octets);
    while password.ends_with(b"\n") || password.ends_with(b"\r") {
        password.pop();
    }
    if password.is_empty() {
        // RFC 4513 §5.1.2: it would pass for a login without being one.
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is empty"));
    }
    Ok(password)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    fn account(path: &std::path::Path) -> ServiceAccount {
        let probe = config::Probe {
            bind_name: Some("probe@corp.example.com".into()),
            password_file: Some(path.to_owned()),
            ..config::Probe::default()
        };
        ServiceAccount::new("p", &probe, Metrics::new().pool("p"))
    }

    #[tokio::test]
    async fn a_refused_password_is_never_tried_again_and_a_corrected_one_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("password");
        std::fs::write(&path, "old\r\n").unwrap();
        let account = account(&path);
        let password = account.password().await.unwrap().unwrap();
        assert_eq!(*password, b"old");
        account.refused(password, "10.0.0.1:389", "data 52e");
        for _ in 0..3 {
            assert!(matches!(account.password().await, Err(Failure::NotAsked(why)) if why.contains("refused")));
        }
        std::fs::write(&path, "new").unwrap();
        assert_eq!(*account.password().await.unwrap().unwrap(), b"new");
        // Another backend's verdict: the password was right after all.
        std::fs::write(&path, "old").unwrap();
        account.accepted();
        assert!(account.password().await.is_ok());
    }

    /// Nothing told it: a cheap probe read the rootDSE instead and passed.
    #[tokio::test]
    async fn a_password_that_cannot_be_read_is_an_alarm_until_a_bind_succeeds() {
        let directory = tempfile::tempdir().unwrap();
        let metrics = Metrics::new();
        let path = directory.path().join("password");
        let probe = config::Probe {
            password_file: Some(path.clone()),
            bind_name: Some("probe".into()),
            ..config::Probe::default()
        };
        let account = ServiceAccount::new("p", &probe, metrics.pool("p"));
        let alarm = || metrics.render().contains("ldaps_proxy_probe_account_refused{pool=\"p\"} 1");
        let told = || metrics.failures.newest().iter().map(|failure| failure.count).sum::<u64>();
        assert!(!alarm());
        for _ in 0..3 {
            assert!(account.password().await.is_err());
            assert_eq!((alarm(), told()), (true, 1));
        }
        std::fs::write(&path, "right").unwrap();
        assert!(account.password().await.is_ok());
        assert!(alarm(), "it may be wrong");
        account.accepted();
        assert!(!alarm());
        std::fs::remove_file(&path).unwrap();
        assert!(account.password().await.is_err());
        account.accepted();
        assert!(account.password().await.is_err());
        assert_eq!((alarm(), told()), (true, 2), "one that was under way ended it only for so long");
        std::fs::write(&path, "right").unwrap();
        assert!(account.password().await.is_ok());
        std::fs::write(&path, "").unwrap();
        assert!(account.password().await.is_err());
        assert_eq!((alarm(), told()), (true, 3));
    }

    #[tokio::test]
    async fn what_cannot_be_asked_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("password");
        assert!(
            matches!(account(&path).password().await, Err(Failure::NotAsked(why)) if why.contains("password_file"))
        );
        std::fs::write(&path, "\n").unwrap();
        assert!(matches!(account(&path).password().await, Err(Failure::NotAsked(why)) if why.contains("empty")));
        let nobody = ServiceAccount::new("p", &config::Probe::default(), Metrics::new().pool("p"));
        assert!(nobody.password().await.unwrap().is_none());
    }
}
