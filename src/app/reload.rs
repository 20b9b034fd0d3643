//! Reloading: everything is read first, then swapped; a bad file changes nothing.

use std::sync::Arc;
use std::time::SystemTime;

use super::Proxy;
use crate::admin::model::Reload;
use crate::config;
use crate::failure::{ReloadOutcome, Trouble};
use crate::lifecycle::fit_descriptors;
use crate::session::Command;
use crate::tls::{self, FileWatcher, UnixTime};

impl Proxy {
    /// Reads the configuration file and every file it names again.
    ///
    /// # Errors
    /// What is wrong, one line each; then nothing has changed.
    pub async fn reload_all(self: &Arc<Self>) -> Result<Vec<String>, Vec<String>> {
        let _alone = self.reloading.lock().await;
        let outcome = self.read_and_swap().await;
        let (applied, lines) = match &outcome {
            Ok(changes) => (true, changes.clone()),
            Err(problems) => (false, problems.clone()),
        };
        if applied {
            self.metrics.reloaded(ReloadOutcome::Applied);
            tracing::info!(changes = ?lines, "reloaded");
        } else {
            self.metrics.reloaded(ReloadOutcome::Rejected);
            tracing::error!(problems = ?lines, "reload refused, nothing was changed");
            self.record_rejected("configuration", lines.join(" "));
        }
        self.state().last_reload = Some(Reload { at: super::control::unix(SystemTime::now()), applied, lines });
        outcome
    }

    async fn read_and_swap(self: &Arc<Self>) -> Result<Vec<String>, Vec<String>> {
        let before = Arc::clone(&self.state().config);
        let file = self.state().loaded.as_ref().map(|loaded| loaded.file().to_owned());
        let loaded = match file {
            Some(file) => {
                let mut loaded = config::load(&file).map_err(|found| lines(&found))?;
                fit_descriptors(&mut loaded.config.limits);
                Some(loaded)
            }
            None => None,
        };
        let fresh = loaded.as_ref().map_or_else(|| Arc::clone(&before), |loaded| Arc::new(loaded.config.clone()));
        let certificates = self.state().parts.tls.certificates();
        let plan = self.plan(&fresh, self.load_tls(&fresh)).await?;
        if fresh.log.level != before.log.level {
            self.log.set_level(&fresh.log.level).map_err(|error| vec![error])?;
        }
        if fresh.log.format != before.log.format {
            self.log.set_format(fresh.log.format).map_err(|error| vec![error])?;
        }
        self.carry_out(plan);
        self.reloaded.notify_one();
        let mut state = self.state();
        let mut changes = match (&state.loaded, &loaded) {
            (Some(before), Some(now)) => config::changes(before, now),
            _ => Vec::new(),
        };
        changes.extend(tls::replacements(&certificates, &state.parts.tls.certificates()));
        state.loaded = loaded;
        drop(state);
        if fresh.end_untrusted_sessions {
            self.end_untrusted_sessions();
        }
        Ok(changes)
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
            let mut watcher = FileWatcher::new(files.clone()).await;
            while files == self.state().parts.files() {
                tokio::select! {
                    () = watcher.changed() => self.files_changed().await,
                    () = self.reloaded.notified() => {}
                }
            }
        }
    }

    async fn files_changed(self: &Arc<Self>) {
        let _alone = self.reloading.lock().await;
        // A key in a token may take its time to sign: nobody waits for this lock meanwhile.
        let served = self.state().parts.tls.clone();
        let mut outcome = ReloadOutcome::Applied;
        for server in served.servers() {
            match server.reload(UnixTime::now()) {
                Ok(findings) => findings.iter().for_each(|finding| tracing::warn!("{finding}")),
                Err(findings) => {
                    outcome = ReloadOutcome::Rejected;
                    findings.iter().for_each(|finding| tracing::error!("{finding}; the old certificate stays"));
                    findings.iter().for_each(|finding| self.record_rejected("certificate", finding));
                }
            }
        }
        let state = self.state();
        self.show_certificates(&state.parts);
        for listener in state.parts.listeners.values() {
            self.reload_trust(&listener.door, &listener.settings);
        }
        self.metrics.reloaded(outcome);
    }
}

fn lines(found: &config::Diagnostics) -> Vec<String> {
    found.to_string().lines().map(str::to_owned).collect()
}
