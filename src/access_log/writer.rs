//! The thread that writes lines. Whoever has a line never waits for the output: a line that finds no room is lost and counted.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::unistd::{AccessFlags, access};
use tracing::{error, info};

use super::journal;
use crate::config::AccessLogOutput;
use crate::metrics::Metrics;

/// Octets that may wait, those in the thread's hands included.
const QUEUE_BYTES: usize = 16 * 1024 * 1024;
/// Lines are written together up to this many octets.
const BATCH_BYTES: usize = 64 * 1024;
/// Octets that don't wait for more.
const ENOUGH_BYTES: usize = 4 * BATCH_BYTES;
/// Room that each of the two buffers has from the start and keeps: one that grows again and again breaks the heap up. For larger
/// batches it keeps twice what the last one took, up to [`MOST_KEPT_BYTES`]: memory that the system has to provide for each
/// batch took a tenth of a busy proxy's CPU (bench/README.md).
const KEPT_BYTES: usize = 2 * ENOUGH_BYTES;
const MOST_KEPT_BYTES: usize = 4 * KEPT_BYTES;
/// How long a line may wait for others. To wake the thread for each of them doubled the CPU of a search (bench/README.md).
const GATHERING: Duration = Duration::from_millis(5);

/// How long the end waits for what is queued: a disk may hang.
const FINISH_TIMEOUT: Duration = Duration::from_secs(5);

/// The way to the thread, which ends when this goes.
pub(super) struct Writer {
    shared: Arc<Shared>,
    ended: Arc<Ended>,
}

/// Whether the thread has ended: it does once what was queued is written and the [`Writer`] is gone or has finished.
pub(super) struct Ended(Mutex<Receiver<()>>);

struct Shared {
    queue: Mutex<Queue>,
    /// There is something to do after there was nothing, or enough to wait no longer.
    news: Condvar,
    gathering: Duration,
    metrics: Arc<Metrics>,
}

/// What the thread has to do. Lines stand one behind the other, so that no memory passes from thread to thread.
#[derive(Default)]
struct Queue {
    lines: Vec<u8>,
    /// Octets that the thread has taken and is writing.
    in_hand: usize,
    reopen: bool,
    finish: bool,
}

impl Writer {
    /// Opens the output and starts the thread; an error names the output.
    pub(super) fn start(output: &AccessLogOutput, metrics: Arc<Metrics>) -> io::Result<Self> {
        let output = Output::open(output)?;
        let (ending, ended) = sync_channel(0);
        let shared = Arc::new(Shared::new(GATHERING, metrics));
        let writer = Arc::clone(&shared);
        std::thread::Builder::new().name("access-log".into()).spawn(move || {
            write_lines(output, &writer);
            drop(ending);
        })?;
        Ok(Self { shared, ended: Arc::new(Ended(Mutex::new(ended))) })
    }

    /// Queues a line, or loses and counts it.
    pub(super) fn line(&self, line: &[u8]) {
        let mut queue = self.shared.queue();
        if queue.finish || queue.in_hand + queue.lines.len() + line.len() > QUEUE_BYTES {
            drop(queue);
            return self.shared.metrics.access_log_dropped.inc();
        }
        let before = queue.lines.len();
        queue.lines.extend_from_slice(line);
        let is_enough = before < ENOUGH_BYTES && queue.lines.len() >= ENOUGH_BYTES;
        let is_news = before == 0 || is_enough;
        drop(queue);
        if is_news {
            self.shared.news.notify_one();
        }
    }

    /// Opens the output again after the lines at hand.
    pub(super) fn reopen(&self) {
        self.shared.tell(|queue| queue.reopen = true);
    }

    /// Writes what is queued and ends the thread. Blocks, but not for long.
    pub(super) fn finish(&self) {
        self.shared.tell(|queue| queue.finish = true);
        self.ended.wait();
    }

    /// What outlives the writer.
    pub(super) fn ended(&self) -> &Arc<Ended> {
        &self.ended
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.shared.tell(|queue| queue.finish = true);
    }
}

impl Ended {
    /// Whether it has.
    pub(super) fn is_so(&self) -> bool {
        self.receiver().try_recv() == Err(TryRecvError::Disconnected)
    }

    /// Waits for it. Blocks, but not for long.
    pub(super) fn wait(&self) {
        if self.receiver().recv_timeout(FINISH_TIMEOUT) == Err(RecvTimeoutError::Timeout) {
            error!("the access log's output hangs; records are lost");
        }
    }

    /// Nothing is ever sent: it is disconnected when the thread ends.
    fn receiver(&self) -> MutexGuard<'_, Receiver<()>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    fn new(gathering: Duration, metrics: Arc<Metrics>) -> Self {
        let queue = Queue { lines: Vec::with_capacity(KEPT_BYTES), ..Queue::default() };
        Self { queue: Mutex::new(queue), news: Condvar::new(), gathering, metrics }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, change: impl FnOnce(&mut Queue)) {
        change(&mut self.queue());
        self.news.notify_one();
    }

    /// Waits until there is something to do, swaps the lines that were written for those that wait, and says whether to
    /// reopen the output and whether to finish after them.
    fn take(&self, lines: &mut Vec<u8>) -> (bool, bool) {
        let kept = (2 * lines.len()).clamp(KEPT_BYTES, MOST_KEPT_BYTES);
        lines.clear();
        lines.shrink_to(kept);
        let mut queue = self.queue();
        queue.in_hand = 0;
        let idle = |queue: &mut Queue| queue.lines.is_empty() && !queue.reopen && !queue.finish;
        let queue = self.news.wait_while(queue, idle).unwrap_or_else(PoisonError::into_inner);
        let more_may_come = |queue: &mut Queue| queue.lines.len() < ENOUGH_BYTES && !queue.finish;
        let gathered = self.news.wait_timeout_while(queue, self.gathering, more_may_come);
        let (mut queue, _) = gathered.unwrap_or_else(PoisonError::into_inner);
        std::mem::swap(&mut queue.lines, lines);
        queue.in_hand = lines.len();
        (std::mem::take(&mut queue.reopen), queue.finish)
    }
}

/// Writes until it is told to finish.
fn write_lines(mut output: Output, shared: &Shared) {
    let mut failing = false;
    let mut lines = Vec::with_capacity(KEPT_BYTES);
    loop {
        let (reopen, finish) = shared.take(&mut lines);
        let mut failure = None;
        for piece in pieces(&lines, output.most_at_once()) {
            let (written, outcome) = output.write(piece);
            let count = |octets| memchr::memchr_iter(b'\n', octets).count() as u64;
            let (written, lost) = piece.split_at(written);
            shared.metrics.access_log_records.inc_by(count(written));
            shared.metrics.access_log_dropped.inc_by(count(lost));
            failure = outcome.err().or(failure);
        }
        match failure {
            Some(error) if !std::mem::replace(&mut failing, true) => {
                error!(%error, "the access log can't be written; records are lost until it can");
            }
            None if !lines.is_empty() && std::mem::take(&mut failing) => {
                info!("the access log is written again");
            }
            _ => {}
        }
        if reopen && let Err(error) = output.reopen() {
            error!(%error, "the access log can't be reopened; the old file is used");
        }
        if finish {
            return;
        }
    }
}

/// Whole lines, together up to `most` octets; one that is longer comes alone.
fn pieces(mut lines: &[u8], most: usize) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let within = &lines[..lines.len().min(most)];
        let end = memchr::memrchr(b'\n', within).or_else(|| memchr::memchr(b'\n', lines))?;
        let (piece, rest) = lines.split_at(end + 1);
        lines = rest;
        Some(piece)
    })
}

enum Output {
    Stdout(Lines<File>),
    File { path: PathBuf, file: Lines<File> },
    Journal(UnixDatagram),
}

/// What takes lines one behind the other, and may take part of one: a disk that is full.
struct Lines<W> {
    output: W,
    /// What was written last ends in the middle of a line.
    is_torn: bool,
}

impl<W: Write> Lines<W> {
    const fn new(output: W) -> Self {
        Self { output, is_torn: false }
    }

    /// Writes whole lines, after the end of one that was torn; how many octets of them were taken comes with every outcome.
    fn write(&mut self, lines: &[u8]) -> (usize, io::Result<()>) {
        let mut taken = 0;
        let outcome = self.write_from(lines, &mut taken);
        (taken, outcome)
    }

    fn write_from(&mut self, lines: &[u8], taken: &mut usize) -> io::Result<()> {
        if self.is_torn {
            self.output.write_all(b"\n")?;
            self.is_torn = false;
        }
        while *taken < lines.len() {
            match self.output.write(&lines[*taken..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    *taken += count;
                    self.is_torn = lines[*taken - 1] != b'\n';
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.output.flush()
    }
}

/// The descriptor itself: `io::Stdout` keeps what it could not write and doesn't tell how much that is.
fn stdout() -> io::Result<File> {
    std::os::fd::AsFd::as_fd(&io::stdout()).try_clone_to_owned().map(File::from)
}

impl Output {
    fn open(output: &AccessLogOutput) -> io::Result<Self> {
        Ok(match output {
            AccessLogOutput::Off | AccessLogOutput::Stdout => Self::Stdout(Lines::new(stdout()?)),
            AccessLogOutput::File(path) => Self::File { path: path.clone(), file: open_file(path)? },
            AccessLogOutput::Journald => Self::Journal(journal::open()?),
        })
    }

    /// Octets of whole lines that are written, or lost, together.
    fn most_at_once(&self) -> usize {
        match self {
            Self::Stdout(_) | Self::File { .. } => BATCH_BYTES,
            // Each is a message, and the journal may refuse one for its length.
            Self::Journal(_) => 0,
        }
    }

    /// Writes whole lines, for the journal a single one; how many octets of them were taken comes with every outcome.
    fn write(&mut self, lines: &[u8]) -> (usize, io::Result<()>) {
        match self {
            Self::Stdout(file) | Self::File { file, .. } => file.write(lines),
            Self::Journal(socket) => {
                let line = lines.strip_suffix(b"\n").unwrap_or(lines);
                match socket.send(&journal::entry(line)) {
                    Ok(_) => (lines.len(), Ok(())),
                    Err(error) => (0, Err(error)),
                }
            }
        }
    }

    fn reopen(&mut self) -> io::Result<()> {
        match self {
            Self::Stdout(_) => {}
            Self::File { path, file } => *file = open_file(path)?,
            Self::Journal(socket) => *socket = journal::open()?,
        }
        Ok(())
    }
}

/// Whether the file of an access log could be opened. Makes none: who asks, such as root, may not be who runs.
///
/// # Errors
/// What keeps it from being opened.
pub fn try_file(path: &Path) -> io::Result<()> {
    let outcome = match std::fs::metadata(path) {
        // To open it would wait for who reads it.
        Ok(found) if found.file_type().is_fifo() => Ok(()),
        Ok(_) => OpenOptions::new().append(true).open(path).map(drop),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
            access(folder, AccessFlags::W_OK | AccessFlags::X_OK).map_err(io::Error::from)
        }
        Err(error) => Err(error),
    };
    outcome.map_err(|error| unopened(path, &error))
}

fn unopened(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("can't open the access log {}: {error}", path.display()))
}

fn open_file(path: &Path) -> io::Result<Lines<File>> {
    let file = OpenOptions::new().append(true).create(true).mode(0o640).open(path);
    let file = file.map_err(|error| unopened(path, &error))?;
    // A full disk may have torn its last line before it was opened anew.
    Ok(Lines { output: file, is_torn: last_octet(path).is_some_and(|last| last != b'\n') })
}

/// The last octet of a regular file that can be read and isn't empty.
fn last_octet(path: &Path) -> Option<u8> {
    let mut octet = [0];
    let length = std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file)?.len();
    File::open(path).ok()?.read_exact_at(&mut octet, length.checked_sub(1)?).ok()?;
    Some(octet[0])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_was_queued_is_written_and_a_reopened_file_takes_the_rest() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (path, moved) = (folder.path().join("access.log"), folder.path().join("access.log.1"));
        let metrics = Metrics::new();
        let output = AccessLogOutput::File(path.clone());
        let first = Writer::start(&output, Arc::clone(&metrics)).expect("the folder is ours");
        first.line(b"one\n");
        first.finish();
        assert_eq!(std::fs::read_to_string(&path).expect("it is there"), "one\n");

        let second = Writer::start(&output, Arc::clone(&metrics)).expect("the folder is ours");
        std::fs::rename(&path, &moved).expect("the folder is ours");
        second.reopen();
        // The thread reopens after the batch at hand: only a line told after the new file is there goes into it.
        while !path.exists() {
            std::thread::yield_now();
        }
        second.line(b"two\n");
        second.finish();
        assert_eq!(std::fs::read_to_string(&moved).expect("it is there"), "one\n");
        assert_eq!(std::fs::read_to_string(&path).expect("it is there"), "two\n");
        assert_eq!((metrics.access_log_records.get(), metrics.access_log_dropped.get()), (2, 0));
    }

    /// What the last session of a replaced log has said may still be queued when the process ends.
    #[test]
    fn the_end_waits_for_the_lines_of_a_writer_that_is_gone() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("pipe");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("the folder is ours");
        let mut reader = OpenOptions::new().read(true).write(true).open(&path).expect("it is there");
        let writer = Writer::start(&AccessLogOutput::File(path), Metrics::new()).expect("somebody reads");
        let lines = 4 * BATCH_BYTES / 16;
        (0..lines).for_each(|_| writer.line(b"fifteen octets.\n"));
        let ended = Arc::clone(writer.ended());
        drop(writer);
        assert!(!ended.is_so(), "a pipe holds less");
        let read = std::thread::spawn(move || io::Read::read_exact(&mut reader, &mut vec![0; lines * 16]));
        ended.wait();
        assert!(ended.is_so());
        read.join().expect("it doesn't panic").expect("all of it is there");
    }

    /// A writer whose lines the test takes.
    fn without_thread(gathering: Duration) -> (Writer, Arc<Shared>) {
        let (_, ended) = sync_channel(0);
        let shared = Arc::new(Shared::new(gathering, Metrics::new()));
        (Writer { shared: Arc::clone(&shared), ended: Arc::new(Ended(Mutex::new(ended))) }, shared)
    }

    #[test]
    fn a_full_queue_loses_lines_and_counts_them_without_waiting() {
        let (writer, shared) = without_thread(GATHERING);
        let metrics = &shared.metrics;
        for _ in 0..5 {
            writer.line(&vec![b'x'; QUEUE_BYTES / 2]);
        }
        assert_eq!((shared.queue().lines.len(), metrics.access_log_dropped.get()), (QUEUE_BYTES, 3));
        shared.take(&mut Vec::new());
        writer.line(b"\n");
        assert_eq!(metrics.access_log_dropped.get(), 4, "what is being written counts as well");
    }

    /// The thread is told for nothing where it begins to wait too late, so it gets many chances.
    #[test]
    fn enough_lines_wait_for_no_others() {
        let for_ever = Duration::from_secs(u64::from(u32::MAX));
        for _ in 0..100 {
            let (writer, shared) = without_thread(for_ever);
            let (told, taken) = sync_channel(1);
            std::thread::spawn(move || {
                let mut lines = Vec::new();
                shared.take(&mut lines);
                told.send(lines.len())
            });
            writer.line(&[b'x'; 1024]);
            (0..100).for_each(|_| std::thread::yield_now());
            (1..ENOUGH_BYTES / 1024).for_each(|_| writer.line(&[b'x'; 1024]));
            assert_eq!(taken.recv_timeout(Duration::from_secs(60)), Ok(ENOUGH_BYTES));
        }
    }

    #[test]
    fn a_buffer_keeps_what_the_next_batch_may_take_and_not_what_a_burst_took() {
        let shared = Shared::new(Duration::ZERO, Metrics::new());
        for (last, kept) in [(0, KEPT_BYTES), (KEPT_BYTES, 2 * KEPT_BYTES), (QUEUE_BYTES, MOST_KEPT_BYTES)] {
            let mut lines = vec![b'x'; last];
            lines.reserve_exact(QUEUE_BYTES);
            shared.tell(|queue| queue.lines.push(b'\n'));
            shared.take(&mut lines);
            let capacity = shared.queue().lines.capacity();
            assert!((kept..kept + 4096).contains(&capacity), "{last}: {capacity}");
        }
    }

    #[test]
    fn a_line_that_the_journal_refuses_takes_no_other_with_it() {
        let metrics = Metrics::new();
        let (near, far) = UnixDatagram::pair().expect("a pair of sockets");
        let shared = Shared::new(GATHERING, Arc::clone(&metrics));
        let too_long = "x".repeat(16 << 20) + "\n";
        shared.tell(|queue| {
            queue.lines.extend_from_slice(["one\n", "two\n", &too_long, "three\n"].concat().as_bytes());
            queue.finish = true;
        });
        write_lines(Output::Journal(near), &shared);
        let mut entry = [0; 512];
        for line in ["one", "two", "three"] {
            let count = far.recv(&mut entry).expect("an entry");
            assert!(entry[..count].ends_with(format!("{line}\n").as_bytes()), "{line}");
        }
        assert_eq!((metrics.access_log_records.get(), metrics.access_log_dropped.get()), (3, 1));
    }

    proptest! {
        #[test]
        fn pieces_are_whole_lines_and_nothing_is_left_out(
            lines in proptest::collection::vec("[a-z]{0,9}\n", 0..20), most in 0_usize..30
        ) {
            let lines = lines.concat();
            let pieces: Vec<_> = pieces(lines.as_bytes(), most).collect();
            prop_assert_eq!(pieces.concat(), lines.as_bytes());
            for piece in &pieces {
                prop_assert!(piece.ends_with(b"\n"));
                prop_assert!(piece.len() <= most || piece[..piece.len() - 1].iter().all(|octet| *octet != b'\n'));
            }
        }
    }

    #[test]
    fn what_comes_after_the_end_is_lost_and_counted() {
        let metrics = Metrics::new();
        let folder = tempfile::tempdir().expect("a temporary folder");
        let output = AccessLogOutput::File(folder.path().join("access.log"));
        let writer = Writer::start(&output, Arc::clone(&metrics)).expect("the folder is ours");
        writer.finish();
        writer.line(b"one\n");
        assert_eq!((metrics.access_log_records.get(), metrics.access_log_dropped.get()), (0, 1));
    }

    #[test]
    fn an_output_that_fails_loses_lines_and_counts_them() {
        let metrics = Metrics::new();
        let writer = Writer::start(&AccessLogOutput::File("/dev/full".into()), Arc::clone(&metrics)).expect("it opens");
        writer.line(b"one\n");
        writer.finish();
        assert_eq!((metrics.access_log_records.get(), metrics.access_log_dropped.get()), (0, 1));
    }

    /// Takes so many octets, then none until there is room again.
    #[derive(Default)]
    struct Disk {
        written: Vec<u8>,
        room: usize,
    }

    impl Write for Disk {
        fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
            let count = octets.len().min(self.room);
            if count == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.room -= count;
            self.written.extend_from_slice(&octets[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_that_was_torn_before_the_file_was_opened_takes_no_other_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("access.log");
        for (before, after) in [("", "two\n"), ("one\n", "one\ntwo\n"), ("one\nto", "one\nto\ntwo\n")] {
            std::fs::write(&path, before).unwrap();
            assert!(matches!(open_file(&path).unwrap().write(b"two\n"), (4, Ok(()))), "{before}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), after);
        }
    }

    /// A regression test: the first record after a full disk was glued to what the disk had still taken of another.
    #[test]
    fn a_line_that_a_full_disk_tore_takes_no_other_with_it() {
        let lines = b"one\ntwo\n";
        for room in 0..lines.len() {
            let mut log = Lines::new(Disk { room, ..Disk::default() });
            let (taken, outcome) = log.write(lines);
            assert!(taken == room && outcome.is_err(), "{room}");
            assert_eq!(log.write(b"lost\n").0, 0, "{room}");
            log.output.room = 100;
            assert!(matches!(log.write(b"three\n"), (6, Ok(()))), "{room}");
            let end: &[u8] = if room == 0 || lines[room - 1] == b'\n' { b"" } else { b"\n" };
            let expected = [&lines[..room], end, b"three\n"].concat();
            assert_eq!(log.output.written, expected, "{room}");
        }
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_named() {
        let output = AccessLogOutput::File("/nonexistent/access.log".into());
        let error = Writer::start(&output, Metrics::new()).err().expect("there is no such folder");
        assert!(error.to_string().contains("/nonexistent/access.log"), "{error}");
    }
}
