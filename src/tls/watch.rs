//! Says when files have changed: by their directories' events, and every [`POLL`] by looking, for file systems
//! without events.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};
use zeroize::Zeroizing;

/// Files that are looked after together, such as those of a certificate.
///
/// A change is one of contents: touching a file, or replacing it by its like, is none. What counts is what a path
/// leads to, so a renamed file, a moved symbolic link and Kubernetes' swapped `..data` directory are all seen.
#[derive(Debug)]
pub struct FileWatcher {
    files: Vec<PathBuf>,
    seen: Vec<Contents>,
    events: Arc<Notify>,
    watcher: Option<RecommendedWatcher>,
}

/// A digest; `None` where there is no readable file.
type Contents = Option<[u8; 32]>;

impl FileWatcher {
    /// Begins with the files as they are now: make it before they are read, and no change is missed.
    pub async fn new(files: impl IntoIterator<Item = PathBuf>) -> Self {
        let events = Arc::new(Notify::new());
        let wake = Arc::clone(&events);
        let watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            if is_change(&event) {
                wake.notify_one();
            }
        });
        if let Err(error) = &watcher {
            tracing::warn!(%error, "no file events here: files are looked at every {} s", POLL.as_secs());
        }
        Self::with(files, events, watcher.ok()).await
    }

    /// Waits for the next change, and until it has been quiet for a moment, so that a certificate and its key written
    /// one after the other are one change. Await it in a task of its own: a call that is dropped begins to wait anew.
    pub async fn changed(&mut self) {
        loop {
            // A timeout is as good as an event: it is time to look.
            let _ = timeout(POLL, self.events.notified()).await;
            let patience = Instant::now() + PATIENCE;
            while Instant::now() < patience && timeout(QUIET, self.events.notified()).await.is_ok() {}
            let now = contents(&self.files).await;
            if now != self.seen {
                self.seen = now;
                // A directory that was replaced is another one now, without a watch.
                self.watch_directories();
                return;
            }
        }
    }

    async fn with(
        files: impl IntoIterator<Item = PathBuf>,
        events: Arc<Notify>,
        watcher: Option<RecommendedWatcher>,
    ) -> Self {
        let files = files.into_iter().collect();
        let mut this = Self { files, seen: Vec::new(), events, watcher };
        this.watch_directories();
        this.seen = contents(&this.files).await;
        this
    }

    fn watch_directories(&mut self) {
        let Some(watcher) = &mut self.watcher else { return };
        let parent = |file: &PathBuf| match file.parent() {
            Some(parent) if parent != Path::new("") => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        for directory in self.files.iter().map(parent).collect::<BTreeSet<_>>() {
            if let Err(error) = watcher.watch(&directory, RecursiveMode::NonRecursive) {
                tracing::warn!(%error, directory = %directory.display(), "no file events from this directory");
            }
        }
    }
}

/// Our own reading makes access events, which would keep us busy for ever. An error may hide a change.
fn is_change(event: &notify::Result<Event>) -> bool {
    event.as_ref().map_or(true, |event| !event.kind.is_access())
}

async fn contents(files: &[PathBuf]) -> Vec<Contents> {
    let mut all = Vec::with_capacity(files.len());
    for file in files {
        let bytes = tokio::fs::read(file).await.map(Zeroizing::new);
        all.push(bytes.ok().map(|bytes| digest(&SHA256, &bytes).as_ref().try_into().expect("SHA-256 has 32 octets")));
    }
    all
}

const POLL: Duration = Duration::from_secs(30);
/// Without an event for this long, whoever writes is done.
const QUIET: Duration = Duration::from_millis(300);
/// In a directory that is never quiet, the longest wait.
const PATIENCE: Duration = Duration::from_secs(3);

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;

    /// Far longer than any wait of the watcher; only a broken one needs it.
    const LIMIT: Duration = Duration::from_secs(25);

    async fn polling(files: impl IntoIterator<Item = PathBuf>) -> FileWatcher {
        FileWatcher::with(files, Arc::default(), None).await
    }

    #[test]
    fn reading_is_no_change() {
        use notify::event::{AccessKind, EventKind, ModifyKind};
        let event = |kind| Ok(Event::new(kind));
        assert!(!is_change(&event(EventKind::Access(AccessKind::Any))));
        assert!(is_change(&event(EventKind::Modify(ModifyKind::Any))));
        assert!(is_change(&event(EventKind::Any)));
        assert!(is_change(&Err(notify::Error::generic("queue overflow"))));
    }

    #[tokio::test]
    async fn a_file_renamed_into_place_is_a_change() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("certificate.pem");
        std::fs::write(&file, "old").unwrap();
        let mut watcher = FileWatcher::new([file.clone()]).await;
        std::fs::write(dir.path().join("new"), "new").unwrap();
        std::fs::rename(dir.path().join("new"), &file).unwrap();
        timeout(LIMIT, watcher.changed()).await.expect("the event comes before the poll");
    }

    /// Kubernetes: `tls.crt` → `..data/tls.crt`, `..data` → a dated directory; only `..data` is replaced.
    #[cfg(unix)]
    #[tokio::test]
    async fn a_swapped_data_link_is_a_change() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for (version, text) in [("..1", "old"), ("..2", "new")] {
            std::fs::create_dir(path(version)).unwrap();
            std::fs::write(path(version).join("tls.crt"), text).unwrap();
        }
        symlink("..1", path("..data")).unwrap();
        symlink("..data/tls.crt", path("tls.crt")).unwrap();
        let mut watcher = FileWatcher::new([path("tls.crt")]).await;
        symlink("..2", path("..data_tmp")).unwrap();
        std::fs::rename(path("..data_tmp"), path("..data")).unwrap();
        timeout(LIMIT, watcher.changed()).await.expect("the event comes before the poll");
    }

    #[tokio::test(start_paused = true)]
    async fn without_events_the_poll_sees_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("certificate.pem");
        let mut watcher = polling([file.clone()]).await;
        std::fs::write(&file, "appeared").unwrap();
        let begin = Instant::now();
        watcher.changed().await;
        assert!(begin.elapsed() < 2 * POLL);
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_contents_are_no_change() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("certificate.pem");
        std::fs::write(&file, "same").unwrap();
        let mut watcher = polling([file.clone()]).await;
        std::fs::write(&file, "same").unwrap();
        assert!(timeout(10 * POLL, watcher.changed()).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_directory_that_is_never_quiet_doesn_t_hide_a_change() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("certificate.pem");
        let mut watcher = polling([file.clone()]).await;
        std::fs::write(&file, "appeared").unwrap();
        let events = Arc::clone(&watcher.events);
        let noise = tokio::spawn(async move {
            loop {
                events.notify_one();
                sleep(QUIET / 3).await;
            }
        });
        timeout(POLL, watcher.changed()).await.expect("patience ends");
        noise.abort();
    }
}
