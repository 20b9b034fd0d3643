//! A pipe in memory that knows whether it is dry, as a socket does: for tests and the fuzzer.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::task::coop;

use crate::buffer::Source;

/// One end of tokio's pipe.
#[derive(Debug)]
pub struct Pipe {
    end: DuplexStream,
    reader: Arc<Reader>,
}

/// Whoever waits for something to read.
#[derive(Debug, Default)]
struct Reader {
    waits: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

impl Wake for Reader {
    fn wake(self: Arc<Self>) {
        self.waits.store(false, Ordering::Release);
        if let Some(waker) = self.waker.lock().expect("nobody panics holding it").take() {
            waker.wake();
        }
    }
}

impl From<DuplexStream> for Pipe {
    fn from(end: DuplexStream) -> Self {
        Self { end, reader: Arc::default() }
    }
}

impl Pipe {
    /// Reads, and has `task` woken where there is nothing.
    fn read(&mut self, task: Option<Waker>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        *self.reader.waker.lock().expect("nobody panics holding it") = task;
        self.reader.waits.store(true, Ordering::Release);
        let waker = Waker::from(Arc::clone(&self.reader));
        let read = Pin::new(&mut self.end).poll_read(&mut Context::from_waker(&waker), buffer);
        // Without budget the task would be woken, but for no octets.
        if read.is_ready() || !coop::has_budget_remaining() {
            self.reader.waits.store(false, Ordering::Release);
        }
        read
    }
}

impl AsyncRead for Pipe {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let read = this.read(Some(cx.waker().clone()), buffer);
        if buffer.filled().len() > before && buffer.remaining() > 0 {
            // As after a short read of a socket: it is known whether there is more, and nobody is woken for it yet.
            let _ = this.read(None, &mut ReadBuf::new(&mut []));
        }
        read
    }
}

impl Source for Pipe {
    fn is_dry(&self) -> bool {
        self.reader.waits.load(Ordering::Acquire)
    }

    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.read(Some(cx.waker().clone()), &mut ReadBuf::new(&mut [])).map(|_| ())
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, octets: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().end).poll_write(cx, octets)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().end).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().end).poll_shutdown(cx)
    }
}
