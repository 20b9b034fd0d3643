//! Reloading: everything is read first, then swapped; a bad file changes nothing.

use std::sync::Arc;
use std::time::SystemTime;

use super::Proxy;
use super::parts::{RunningListener, aside};
use crate::admin::model::Reload;
use crate::config::{self, Loaded};
use crate::failure::{ReloadOutcome, Trouble};
use crate::lifecycle::fit_descriptors;
use crate::session::Command;
use crate::tls::{self, FileWatcher, Served, UnixTime};

/// The newest reload of the whole, and of the files that are followed: one that was rejected isn't mended by the other.
#[derive(Default)]
pub(super) struct Reloads {
    configuration: Option<Reload>,
    files: Option<Reload>,
}

/// Why a reload was rejected.
pub(super) struct Rejection {
    /// Whether the configuration file says what is in force, and only files that are followed are at fault.
    pub of_followed_files: bool,
    pub problems: Vec<String>,
}

impl Reloads {
    /// The one to show: a rejected one, else the newest.
    pub fn shown(&self) -> Option<&Reload> {
        let rejected = self.both().find(|reload| !reload.applied);
        rejected.or_else(|| self.both().max_by_key(|reload| reload.at))
    }

    fn all_applied(&self) -> bool {
        self.both().all(|reload| reload.applied)
    }

    fn both(&self) -> impl Iterator<Item = &Reload> {
        self.configuration.iter().chain(&self.files)
    }
}

impl Proxy {
    /// Reads the configuration file and every file it names again. Dropped before it is done, it has changed nothing.
    ///
    /// # Errors
    /// What is wrong, one line each; then nothing has changed.
    pub async fn reload_all(self: &Arc<Self>) -> Result<Vec<String>, Vec<String>> {
        let _alone = self.reloading.lock().await;
        match self.read_and_swap().await {
            Ok(changes) => {
                tracing::info!(?changes, "reloaded");
                let applied = Some(reload(true, changes.clone()));
                self.reloaded(ReloadOutcome::Applied, Reloads { configuration: applied, files: None });
                Ok(changes)
            }
            Err(Rejection { of_followed_files, problems }) => {
                tracing::error!(?problems, "reload refused, nothing was changed");
                self.record_rejected("configuration", problems.join(" "));
                let rejected = Some(reload(false, problems.clone()));
                let reloads = if of_followed_files {
                    Reloads { configuration: None, files: rejected }
                } else {
                    Reloads { configuration: rejected, files: self.state().reloads.files.clone() }
                };
                self.reloaded(ReloadOutcome::Rejected, reloads);
                Err(problems)
            }
        }
    }

    async fn read_and_swap(self: &Arc<Self>) -> Result<Vec<String>, Rejection> {
        let of_configuration = |problems| Rejection { of_followed_files: false, problems };
        let before = Arc::clone(&self.state().config);
        let loaded = self.read_configuration().map_err(of_configuration)?;
        let fresh = loaded.as_ref().map_or_else(|| Arc::clone(&before), |loaded| Arc::new(loaded.config.clone()));
        let certificates = self.state().parts.tls.certificates();
        let plan = self.plan(&fresh, self.load_tls(&fresh)).await?;
        // From here on nothing is awaited: whoever gives the reload up can't leave it half-done.
        self.change_log(&before.log, &fresh.log).map_err(|problem| of_configuration(vec![problem]))?;
        let ca_files = plan.replaced_ca_files();
        self.carry_out(plan);
        self.reloaded.notify_one();
        let mut state = self.state();
        let mut changes = match (&state.loaded, &loaded) {
            (Some(before), Some(now)) => config::changes(before, now),
            _ => Vec::new(),
        };
        changes.extend(tls::replacements(&certificates, &state.parts.tls.certificates()));
        changes.extend(ca_files);
        state.loaded = loaded;
        drop(state);
        if fresh.end_untrusted_sessions {
            self.end_untrusted_sessions();
        }
        Ok(changes)
    }

    /// The configuration file as it is now; none for the demo.
    fn read_configuration(&self) -> Result<Option<Loaded>, Vec<String>> {
        let known = self.state().loaded.as_ref().map(|loaded| (loaded.file().to_owned(), loaded.is_without_admin()));
        let Some((file, without_admin)) = known else { return Ok(None) };
        let mut loaded = config::load(&file).map_err(|found| lines(&found))?;
        if without_admin {
            loaded.leave_out_admin();
        }
        fit_descriptors(&mut loaded.config.limits);
        Ok(Some(loaded))
    }

    fn change_log(&self, before: &config::Log, now: &config::Log) -> Result<(), String> {
        // What an operator has set since the file was read stays where the file says nothing new.
        if now.level != before.level {
            self.log.set_level(&now.level)?;
        }
        if now.format != before.format {
            self.log.set_format(now.format)?;
        }
        Ok(())
    }

    fn reloaded(&self, outcome: ReloadOutcome, reloads: Reloads) {
        let all_in_force = reloads.all_applied();
        self.state().reloads = reloads;
        self.metrics.reloaded(outcome, all_in_force);
    }

    fn record_rejected(&self, what: &str, problem: impl std::fmt::Display) {
        self.metrics.failures.record(SystemTime::now(), Trouble::ReloadRejected, what, problem);
    }

    fn end_untrusted_sessions(&self) {
        let state = self.state();
        for session in self.registry.sessions() {
            let listener = state.parts.listener_of(&session);
            let trusted =
                listener.is_some_and(|listener| listener.door.trust().verdict(session.client.ip()).is_trusted());
            if !trusted {
                session.command(Command::Distrust);
            }
        }
    }

    /// Follows the files that may change without a word: certificates and lists of trusted networks.
    pub(super) fn watch_files(self: &Arc<Self>) {
        let proxy = Arc::clone(self);
        self.background.spawn(async move {
            let stopping = proxy.stopping.clone();
            let _ = stopping.run_until_cancelled(proxy.follow_files()).await;
        });
    }

    /// Says every day which certificates end soon.
    pub(super) fn watch_expiry(self: &Arc<Self>) {
        let proxy = Arc::clone(self);
        self.background.spawn(async move {
            let served = || proxy.state().parts.tls.clone();
            let warn = |finding| tracing::warn!("{finding}");
            let stopping = proxy.stopping.clone();
            let _ = stopping.run_until_cancelled(tls::remind_of_expiry(served, UnixTime::now, warn)).await;
        });
    }

    async fn follow_files(self: Arc<Self>) {
        loop {
            let files = self.state().parts.files();
            let mut watcher = FileWatcher::new(files.clone());
            while files.files().eq(self.state().parts.files().files()) {
                tokio::select! {
                    () = watcher.changed() => self.files_changed().await,
                    () = self.reloaded.notified() => {}
                }
            }
        }
    }

    async fn files_changed(self: &Arc<Self>) {
        let _alone = self.reloading.lock().await;
        let served = self.state().parts.tls.clone();
        let certificates = served.certificates();
        let (proxy, renewed) = (Arc::clone(self), served.clone());
        let problems = aside(move || {
            let problems = proxy.reload_certificates(&renewed);
            proxy.reload_lists();
            problems
        })
        .await;
        let state = self.state();
        self.show_certificates(&state.parts);
        let configuration = state.reloads.configuration.clone();
        let ends_sessions = state.config.end_untrusted_sessions;
        drop(state);
        if ends_sessions {
            self.end_untrusted_sessions();
        }
        let (outcome, files) = if problems.is_empty() {
            let changes = tls::replacements(&certificates, &served.certificates());
            tracing::info!(?changes, "certificates and lists of networks read again");
            // Files that a whole reload has read already are no news to hide it behind.
            (ReloadOutcome::Applied, Some(reload(true, changes)).filter(|reload| !reload.lines.is_empty()))
        } else {
            (ReloadOutcome::Rejected, Some(reload(false, problems)))
        };
        self.reloaded(outcome, Reloads { configuration, files });
    }

    /// What is wrong with those that stay as they were. Waits for files, and for keys in tokens to sign.
    fn reload_certificates(&self, served: &Served) -> Vec<String> {
        let mut problems = Vec::new();
        for server in served.servers() {
            match server.reload(UnixTime::now()) {
                Ok(findings) => findings.iter().for_each(|finding| tracing::warn!("{finding}")),
                Err(findings) => {
                    findings.iter().for_each(|finding| tracing::error!("{finding}; the old certificate stays"));
                    findings.iter().for_each(|finding| self.record_rejected("certificate", finding));
                    problems.extend(findings.iter().map(ToString::to_string));
                }
            }
        }
        problems
    }

    /// Waits for files, so that it holds no lock meanwhile.
    fn reload_lists(&self) {
        let of_listener = |listener: &RunningListener| (Arc::clone(&listener.door), listener.settings.clone());
        let listeners: Vec<_> = self.state().parts.listeners.values().map(of_listener).collect();
        listeners.iter().for_each(|(door, settings)| self.reload_trust(door, settings));
    }
}

/// A reload that ends now.
fn reload(applied: bool, lines: Vec<String>) -> Reload {
    Reload { at: super::control::unix(SystemTime::now()), applied, lines }
}

fn lines(found: &config::Diagnostics) -> Vec<String> {
    found.to_string().lines().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};
    use std::time::Duration;

    use super::*;
    use crate::log::LogHandle;

    const CONFIG: &str = "[[listener]]\nname = \"corp\"\naddress = \"127.0.0.1:0\"\n\
        trusted_networks = [\"127.0.0.1\"]\ntrusted_networks_file = \"networks\"\npool = \"p\"\n\
        [tls]\ncertificate = \"cert.pem\"\nprivate_key = \"key.pem\"\n[pools.p]\nbackends = [\"127.0.0.1:1\"]";

    fn put_certificate(directory: &Path) {
        let issued = rcgen::generate_simple_self_signed(["ldap.example.com".to_owned()]).unwrap();
        std::fs::write(directory.join("key.pem"), issued.signing_key.serialize_pem()).unwrap();
        std::fs::write(directory.join("cert.pem"), issued.cert.pem()).unwrap();
    }

    /// A proxy whose files are in `directory`, and the one of its networks.
    async fn started(directory: &Path) -> (Arc<Proxy>, PathBuf) {
        put_certificate(directory);
        let list = directory.join("networks");
        std::fs::write(&list, "192.0.2.1\n").unwrap();
        let config = config::parse(CONFIG, &directory.join("test.toml")).expect("the file is right").config;
        (Proxy::start_without_file(config, LogHandle::of_no_log()).await.expect("it starts"), list)
    }

    /// A regression test: what was put in place between the reading of files and the first look of who follows them was missed
    /// until it changed once more.
    #[tokio::test]
    async fn files_that_change_before_they_are_followed_are_read_again() {
        for what in ["a certificate", "a list"] {
            let directory = tempfile::tempdir().unwrap();
            let (proxy, list) = started(directory.path()).await;
            // The task that follows them has not run yet: nothing has been awaited since it was spawned.
            let served = proxy.state().parts.tls.certificates();
            let trusts = |address: [u8; 4]| {
                proxy.state().parts.listeners["corp"].door.trust().verdict(address.into()).is_trusted()
            };
            match what {
                "a certificate" => put_certificate(directory.path()),
                _ => std::fs::write(&list, "192.0.2.2\n").unwrap(),
            }
            let news = async {
                while proxy.state().parts.tls.certificates() == served && !trusts([192, 0, 2, 2]) {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(60), news).await.expect(what);
            proxy.drain(std::future::ready(())).await;
        }
    }

    /// A regression test: /readyz and the status waited for a list that was slow in coming, as did whatever else the worker served.
    #[tokio::test]
    async fn nobody_waits_for_a_list_that_is_slow() {
        let directory = tempfile::tempdir().unwrap();
        let (proxy, list) = started(directory.path()).await;
        let [pipe, next] = ["pipe", "next"].map(|name| directory.path().join(name));
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        std::fs::rename(&pipe, &list).unwrap();
        std::fs::write(&next, "192.0.2.3\n").unwrap();
        let (ask, mut asked) = tokio::sync::mpsc::unbounded_channel();
        let slow = std::thread::spawn(move || {
            // It opens when the proxy has opened the other end, and now waits for what comes.
            let mut writer = std::fs::File::options().write(true).open(&list).unwrap();
            std::fs::rename(&next, &list).unwrap();
            let (reply, answer) = std::sync::mpsc::channel();
            ask.send(reply).expect("the test waits for it");
            let is_answered = answer.recv_timeout(Duration::from_secs(20)).is_ok();
            std::io::Write::write_all(&mut writer, b"192.0.2.2\n").unwrap();
            is_answered
        });
        while let Some(reply) = asked.recv().await {
            drop(proxy.state());
            // Too late for a thread that waits no longer.
            let _ = reply.send(());
        }
        assert!(slow.join().expect("it doesn't panic"));
        proxy.drain(std::future::ready(())).await;
    }
}
