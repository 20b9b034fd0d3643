//! The thread that writes lines. Whoever has a line never waits: a line that finds the queue full is lost and counted.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tracing::{error, info};

use crate::config::AccessLogOutput;
use crate::metrics::Metrics;

/// Lines that may wait.
const QUEUE_LINES: usize = 16 * 1024;
/// Bytes that may wait.
const QUEUE_BYTES: usize = 16 * 1024 * 1024;
/// Lines are written together up to about this many bytes.
const BATCH_BYTES: usize = 64 * 1024;
/// How long a line may wait for others. To wake the thread for each of them doubled the CPU of a search (bench/README.md).
const GATHERING: Duration = Duration::from_millis(5);
const JOURNAL_SOCKET: &str = "/run/systemd/journal/socket";

/// How long the end waits for what is queued: a disk may hang.
const FINISH_TIMEOUT: Duration = Duration::from_secs(5);

/// The queue to the thread.
pub(super) struct Writer {
    /// Lines; an empty one only wakes the thread.
    queue: SyncSender<Vec<u8>>,
    shared: Arc<Shared>,
    ended: Arc<Ended>,
}

/// Whether the thread has ended: it does once what was queued is written and the last [`Writer`] is gone or has finished.
pub(super) struct Ended(Mutex<Receiver<()>>);

struct Shared {
    queued_bytes: AtomicUsize,
    reopen: AtomicBool,
    finish: AtomicBool,
    metrics: Arc<Metrics>,
}

impl Writer {
    /// Opens the output and starts the thread; an error names the output.
    pub(super) fn start(output: &AccessLogOutput, metrics: Arc<Metrics>) -> io::Result<Self> {
        let output = Output::open(output)?;
        let (queue, lines) = sync_channel(QUEUE_LINES);
        let (ending, ended) = sync_channel(0);
        let shared = Arc::new(Shared::new(metrics));
        let writer = Arc::clone(&shared);
        std::thread::Builder::new().name("access-log".into()).spawn(move || {
            write_lines(output, &lines, &writer);
            drop(ending);
        })?;
        Ok(Self { queue, shared, ended: Arc::new(Ended(Mutex::new(ended))) })
    }

    /// Queues a line, or loses and counts it.
    pub(super) fn line(&self, line: Vec<u8>) {
        let length = line.len();
        let queued = self.shared.queued_bytes.fetch_add(length, Ordering::Relaxed);
        if queued + length > QUEUE_BYTES || self.queue.try_send(line).is_err() {
            self.shared.queued_bytes.fetch_sub(length, Ordering::Relaxed);
            self.shared.metrics.access_log_dropped.inc();
        }
    }

    /// Opens the output again after the lines at hand.
    pub(super) fn reopen(&self) {
        self.shared.reopen.store(true, Ordering::Release);
        self.wake();
    }

    /// Writes what is queued and ends the thread. Blocks, but not for long.
    pub(super) fn finish(&self) {
        self.shared.finish.store(true, Ordering::Release);
        self.wake();
        self.ended.wait();
    }

    /// What outlives the writer.
    pub(super) fn ended(&self) -> &Arc<Ended> {
        &self.ended
    }

    fn wake(&self) {
        // A full queue keeps the thread awake as well.
        let _ = self.queue.try_send(Vec::new());
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
    fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            queued_bytes: AtomicUsize::new(0),
            reopen: AtomicBool::new(false),
            finish: AtomicBool::new(false),
            metrics,
        }
    }
}

/// Writes until the queue is disconnected, or until it is empty when asked to finish.
fn write_lines(mut output: Output, lines: &Receiver<Vec<u8>>, shared: &Shared) {
    let mut failing = false;
    let mut behind = false;
    loop {
        let finishing = shared.finish.load(Ordering::Acquire);
        let first = if finishing { lines.try_recv().ok() } else { lines.recv().ok() };
        let Some(mut batch) = first else { return };
        if !behind && !finishing {
            std::thread::sleep(GATHERING);
        }
        let mut count = u64::from(!batch.is_empty());
        while batch.len() < BATCH_BYTES
            && let Ok(line) = lines.try_recv()
        {
            count += u64::from(!line.is_empty());
            batch.extend_from_slice(&line);
        }
        behind = batch.len() >= BATCH_BYTES;
        shared.queued_bytes.fetch_sub(batch.len(), Ordering::Relaxed);
        match output.write(&batch) {
            Ok(()) => {
                shared.metrics.access_log_records.inc_by(count);
                if count > 0 && std::mem::take(&mut failing) {
                    info!("the access log is written again");
                }
            }
            Err(error) => {
                shared.metrics.access_log_dropped.inc_by(count);
                if !std::mem::replace(&mut failing, true) {
                    error!(%error, "the access log can't be written; records are lost until it can");
                }
            }
        }
        if shared.reopen.swap(false, Ordering::AcqRel)
            && let Err(error) = output.reopen()
        {
            error!(%error, "the access log can't be reopened; the old file is used");
        }
    }
}

enum Output {
    Stdout,
    File { path: PathBuf, file: File },
    Journal(UnixDatagram),
}

impl Output {
    fn open(output: &AccessLogOutput) -> io::Result<Self> {
        Ok(match output {
            AccessLogOutput::Off | AccessLogOutput::Stdout => Self::Stdout,
            AccessLogOutput::File(path) => Self::File { path: path.clone(), file: open_file(path)? },
            AccessLogOutput::Journald => Self::Journal(open_journal()?),
        })
    }

    /// Writes whole lines.
    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        match self {
            Self::Stdout => {
                let mut stdout = io::stdout().lock();
                stdout.write_all(lines)?;
                stdout.flush()
            }
            Self::File { file, .. } => file.write_all(lines),
            Self::Journal(socket) => {
                let mut lines = lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
                lines.try_for_each(|line| socket.send(&journal_entry(line)).map(|_| ()))
            }
        }
    }

    fn reopen(&mut self) -> io::Result<()> {
        match self {
            Self::Stdout => {}
            Self::File { path, file } => *file = open_file(path)?,
            Self::Journal(socket) => *socket = open_journal()?,
        }
        Ok(())
    }
}

fn open_file(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o640)
        .open(path)
        .map_err(|error| io::Error::new(error.kind(), format!("can't open the access log {}: {error}", path.display())))
}

fn open_journal() -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.connect(JOURNAL_SOCKET).map_err(|error| {
        io::Error::new(error.kind(), format!("can't reach the journal at {JOURNAL_SOCKET}: {error}"))
    })?;
    Ok(socket)
}

/// An entry in the journal's native protocol: the line as its message and, where that is JSON, its texts and numbers as
/// fields to search by (`LDAPS_PROXY_RESULT=busy`). Priority 6 is "informational".
fn journal_entry(line: &[u8]) -> Vec<u8> {
    let mut entry = b"PRIORITY=6\nSYSLOG_IDENTIFIER=ldaps-proxy\nLDAPS_PROXY_LOG=access\n".to_vec();
    journal_field(&mut entry, "MESSAGE", line);
    for (name, value) in serde_json::from_slice::<serde_json::Map<_, _>>(line).unwrap_or_default() {
        let name = format!("LDAPS_PROXY_{}", name.to_ascii_uppercase());
        match value {
            Value::String(text) => journal_field(&mut entry, &name, text.as_bytes()),
            Value::Number(number) => journal_field(&mut entry, &name, number.to_string().as_bytes()),
            _ => {}
        }
    }
    entry
}

/// With its length, since a client's words may hold a line's end.
fn journal_field(entry: &mut Vec<u8>, name: &str, value: &[u8]) {
    entry.extend_from_slice(name.as_bytes());
    entry.push(b'\n');
    entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
    entry.extend_from_slice(value);
    entry.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_queued_is_written_and_a_reopened_file_takes_the_rest() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (path, moved) = (folder.path().join("access.log"), folder.path().join("access.log.1"));
        let metrics = Metrics::new();
        let output = AccessLogOutput::File(path.clone());
        let first = Writer::start(&output, Arc::clone(&metrics)).expect("the folder is ours");
        first.line(b"one\n".to_vec());
        first.finish();
        assert_eq!(std::fs::read_to_string(&path).expect("it is there"), "one\n");

        let second = Writer::start(&output, Arc::clone(&metrics)).expect("the folder is ours");
        std::fs::rename(&path, &moved).expect("the folder is ours");
        second.reopen();
        // The thread reopens after the batch at hand: only a line told after the new file is there goes into it.
        while !path.exists() {
            std::thread::yield_now();
        }
        second.line(b"two\n".to_vec());
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
        (0..lines).for_each(|_| writer.line(b"fifteen octets.\n".to_vec()));
        let ended = Arc::clone(writer.ended());
        drop(writer);
        assert!(!ended.is_so(), "a pipe holds less");
        let read = std::thread::spawn(move || io::Read::read_exact(&mut reader, &mut vec![0; lines * 16]));
        ended.wait();
        assert!(ended.is_so());
        read.join().expect("it doesn't panic").expect("all of it is there");
    }

    #[test]
    fn a_full_queue_loses_lines_and_counts_them_without_waiting() {
        let metrics = Metrics::new();
        let ((queue, lines), (_, ended)) = (sync_channel(2), sync_channel(0));
        let shared = Arc::new(Shared::new(Arc::clone(&metrics)));
        let writer = Writer { queue, shared, ended: Arc::new(Ended(Mutex::new(ended))) };
        for _ in 0..5 {
            writer.line(b"line\n".to_vec());
        }
        assert_eq!(metrics.access_log_dropped.get(), 3);
        assert_eq!(lines.try_iter().count(), 2);
        writer.line(vec![b'x'; QUEUE_BYTES]);
        assert_eq!(metrics.access_log_dropped.get(), 4, "bytes are bounded as well");
    }

    #[test]
    fn an_output_that_fails_loses_lines_and_counts_them() {
        let metrics = Metrics::new();
        let writer = Writer::start(&AccessLogOutput::File("/dev/full".into()), Arc::clone(&metrics)).expect("it opens");
        writer.line(b"one\n".to_vec());
        writer.finish();
        assert_eq!((metrics.access_log_records.get(), metrics.access_log_dropped.get()), (0, 1));
    }

    #[test]
    fn a_journal_entry_has_the_line_and_its_fields() {
        let entry = journal_entry(br#"{"event":"operation","session":7,"dn":"a\nPRIORITY=0","tls":{"version":"1.3"}}"#);
        let field = |name: &str, value: &[u8]| {
            [name.as_bytes(), b"\n", &(value.len() as u64).to_le_bytes(), value, b"\n"].concat()
        };
        for (name, value) in [("EVENT", &b"operation"[..]), ("SESSION", b"7"), ("DN", b"a\nPRIORITY=0")] {
            let wanted = field(&format!("LDAPS_PROXY_{name}"), value);
            assert!(entry.windows(wanted.len()).any(|window| window == wanted), "{name}");
        }
        let text = journal_entry(b"a line of text");
        assert!(text.ends_with(&field("MESSAGE", b"a line of text")));
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_named() {
        let output = AccessLogOutput::File("/nonexistent/access.log".into());
        let error = Writer::start(&output, Metrics::new()).err().expect("there is no such folder");
        assert!(error.to_string().contains("/nonexistent/access.log"), "{error}");
    }
}
