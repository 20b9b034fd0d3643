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
    seen: Snapshot,
    events: Arc<Notify>,
    watcher: Option<RecommendedWatcher>,
}

/// What files held at a moment: of each a digest, `None` where there is no readable file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot(Vec<(PathBuf, Option<[u8; 32]>)>);

impl Snapshot {
    /// Taken before files are read, it lets a [`FileWatcher`] that is made later miss no change.
    pub fn take(files: impl IntoIterator<Item = PathBuf>) -> Self {
        let look = |file: PathBuf| {
            let digest = digest_of(&file);
            (file, digest)
        };
        Self(files.into_iter().map(look).collect())
    }

    /// The files, in the order they were given.
    pub fn files(&self) -> impl Iterator<Item = &PathBuf> {
        self.0.iter().map(|(file, _)| file)
    }
}

impl FromIterator<Snapshot> for Snapshot {
    fn from_iter<I: IntoIterator<Item = Snapshot>>(parts: I) -> Self {
        Self(parts.into_iter().flat_map(|part| part.0).collect())
    }
}

impl FileWatcher {
    /// Begins with the files as they were when they were `seen`: a change since then is the first one.
    pub fn new(seen: Snapshot) -> Self {
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
        Self::with(seen, events, watcher.ok())
    }

    /// Waits for the next change, and until it has been quiet for a moment, so that a certificate and its key written
    /// one after the other are one change. Await it in a task of its own: a call that is dropped begins to wait anew.
    pub async fn changed(&mut self) {
        loop {
            // A timeout is as good as an event: it is time to look.
            let _ = timeout(POLL, self.events.notified()).await;
            let patience = Instant::now() + PATIENCE;
            while Instant::now() < patience && timeout(QUIET, self.events.notified()).await.is_ok() {}
            let now = self.look().await;
            if now != self.seen {
                self.seen = now;
                // A directory that was replaced is another one now, without a watch.
                self.watch_directories();
                return;
            }
        }
    }

    fn with(seen: Snapshot, events: Arc<Notify>, watcher: Option<RecommendedWatcher>) -> Self {
        // What has changed before there were events is looked for at once.
        events.notify_one();
        let mut this = Self { seen, events, watcher };
        this.watch_directories();
        this
    }

    async fn look(&self) -> Snapshot {
        let files: Vec<_> = self.seen.files().cloned().collect();
        // It fails where the runtime ends, and nobody asks any more.
        tokio::task::spawn_blocking(|| Snapshot::take(files)).await.unwrap_or_else(|_| self.seen.clone())
    }

    fn watch_directories(&mut self) {
        let Some(watcher) = &mut self.watcher else { return };
        let parent = |file: &PathBuf| match file.parent() {
            Some(parent) if parent != Path::new("") => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        for directory in self.seen.files().map(parent).collect::<BTreeSet<_>>() {
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

fn digest_of(file: &Path) -> Option<[u8; 32]> {
    // A pipe gives what it holds to one reader only.
    let bytes = std::fs::metadata(file).is_ok_and(|found| found.is_file()).then(|| std::fs::read(file))?;
    let bytes = Zeroizing::new(bytes.ok()?);
    Some(digest(&SHA256, &bytes).as_ref().try_into().expect("SHA-256 has 32 octets"))
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

    fn polling(files: impl IntoIterator<Item = PathBuf>) -> FileWatcher {
        FileWatcher::with(Snapshot::take(files), Arc::default(), None)
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
        let mut watcher = FileWatcher::new(Snapshot::take([file.clone()]));
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
        let mut watcher = FileWatcher::new(Snapshot::take([path("tls.crt")]));
        symlink("..2", path("..data_tmp")).unwrap();
        std::fs::rename(path("..data_tmp"), path("..data")).unwrap();
        timeout(LIMIT, watcher.changed()).await.expect("the event comes before the poll");
    }

    #[tokio::test(start_paused = true)]
    async fn without_events_the_poll_sees_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("certificate.pem");
        let mut watcher = polling([file.clone()]);
        std::fs::write(&file, "appeared").unwrap();
        let begin = Instant::now();
        watcher.changed().await;
        assert!(begin.elapsed() < 2 * POLL);
    }

    /// A regression test: a certificate that was renewed at the moment of a start was missed until its next renewal.
    #[tokio::test]
    async fn what_changed_before_it_was_made_is_a_change() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("certificate.pem");
        std::fs::write(&file, "as it is read").unwrap();
        let seen = Snapshot::take([file.clone()]);
        std::fs::write(&file, "renewed").unwrap();
        let mut watcher = FileWatcher::new(seen);
        timeout(LIMIT, watcher.changed()).await.expect("it looks at once");
    }

    /// It may be a pipe that the certificate is still to be read from.
    #[tokio::test]
    async fn what_is_no_regular_file_is_left_alone() {
        let (pipe, mut other_end) = std::io::pipe().unwrap();
        std::io::Write::write_all(&mut other_end, b"once").unwrap();
        drop(other_end);
        let path = PathBuf::from(format!("/dev/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&pipe)));
        assert_eq!(Snapshot::take([path.clone()]), Snapshot(vec![(path.clone(), None)]));
        assert_eq!(std::fs::read(path).unwrap(), b"once");
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_contents_are_no_change() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("certificate.pem");
        std::fs::write(&file, "same").unwrap();
        let mut watcher = polling([file.clone()]);
        std::fs::write(&file, "same").unwrap();
        assert!(timeout(10 * POLL, watcher.changed()).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_directory_that_is_never_quiet_doesn_t_hide_a_change() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("certificate.pem");
        let mut watcher = polling([file.clone()]);
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
