//! Warm upstreams: connections that are open, TLS included, and have never been used, so that a login doesn't wait.
//!
//! A connection belongs to one session for good once it is taken, so nothing of one client can reach another.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::{Backend, Duty, Health, Pool};
use crate::upstream::Stream;

/// Samba closes a connection without a first request after 120 s.
const RENEWED_AFTER: Duration = Duration::from_secs(90);
const THROWN_AWAY_AFTER: Duration = Duration::from_secs(100);
/// How often the stock is looked after when nobody takes from it, and after a connection failed.
const ROUND: Duration = Duration::from_secs(1);

/// One backend's warm upstreams.
#[derive(Debug, Default)]
pub(super) struct Stock(Mutex<Shelf>);

#[derive(Debug, Default)]
struct Shelf {
    /// Oldest first.
    streams: Vec<(Instant, Stream)>,
    /// Nobody will take from it any more.
    is_closed: bool,
}

impl Stock {
    /// A connection that is still good.
    pub(super) fn take(&self) -> Option<Stream> {
        let streams = &mut self.lock().streams;
        while !streams.is_empty() {
            let (opened, mut stream) = streams.remove(0);
            if opened.elapsed() < THROWN_AWAY_AFTER && stream.is_fresh() {
                return Some(stream);
            }
        }
        None
    }

    fn put(&self, stream: Stream) {
        let mut shelf = self.lock();
        if !shelf.is_closed {
            shelf.streams.push((Instant::now(), stream));
        }
    }

    fn clear(&self) {
        self.lock().streams.clear();
    }

    /// Closes what there is and whatever is still put in: its backend's object is out of use, and sessions may keep that for hours.
    pub(super) fn close(&self) {
        *self.lock() = Shelf { streams: Vec::new(), is_closed: true };
    }

    /// Throws away what is no good any more; how many are left that don't need to be renewed yet.
    fn count(&self) -> usize {
        let streams = &mut self.lock().streams;
        streams.retain_mut(|(opened, stream)| opened.elapsed() < THROWN_AWAY_AFTER && stream.is_fresh());
        streams.iter().filter(|(opened, _)| opened.elapsed() < RENEWED_AFTER).count()
    }

    fn lock(&self) -> MutexGuard<'_, Shelf> {
        // Every change is whole before the guard goes, so a panic elsewhere leaves nothing half-done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps `warm` upstreams ready at every backend that is up, for as long as it runs; returns at once where the pool wants
/// none. They are opened one at a time: Samba's listen backlog is 10.
pub async fn keep_warm(pool: Arc<Pool>) {
    if pool.settings().warm == 0 {
        return;
    }
    if !pool.connector().is_same_for_all_clients() {
        let pool = &pool.settings().name;
        tracing::warn!(pool, "warm is ignored: with send_proxy_protocol a connection begins with its client's address");
        return;
    }
    loop {
        let mut more = false;
        for backend in pool.backends().iter() {
            more |= top_up(&pool, backend).await;
        }
        if !more {
            tokio::select! {
                () = sleep(ROUND) => {}
                () = pool.bells.stock.notified() => {}
            }
        }
    }
}

/// Opens at most one connection; whether another is wanted at once.
async fn top_up(pool: &Pool, backend: &Backend) -> bool {
    if backend.duty() != Duty::Enabled || backend.health() != Health::Up {
        backend.stock.clear();
        return false;
    }
    let wanted = pool.settings().warm.saturating_sub(backend.stock.count());
    if wanted == 0 {
        return false;
    }
    match timeout(pool.settings().connect_timeout, pool.connector().open_own(backend)).await {
        Ok(Ok(stream)) => {
            backend.stock.put(stream);
            wanted > 1
        }
        // The probes will see it as well.
        Ok(Err(_)) | Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpStream};
    use tokio::time::advance;

    use super::*;
    use crate::pool::Endpoint;
    use crate::pool::tests::{endpoint, pool, settings};

    async fn connection() -> (Stream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (Stream::Plain(near), listener.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn what_the_backend_has_closed_is_not_given_out() {
        let stock = Stock::default();
        let (mut closed, far) = connection().await;
        drop(far);
        while closed.is_fresh() {
            tokio::task::yield_now().await;
        }
        let (open, _far) = connection().await;
        let Stream::Plain(tcp) = &open else { unreachable!() };
        let expected = tcp.local_addr().unwrap();
        stock.put(closed);
        stock.put(open);
        let Some(Stream::Plain(given)) = stock.take() else { panic!("one is open") };
        assert_eq!(given.local_addr().unwrap(), expected);
        assert!(stock.take().is_none());
    }

    /// Samba closes a connection without a first request after 120 s.
    #[tokio::test(start_paused = true)]
    async fn each_is_renewed_and_thrown_away_in_time() {
        let stock = Stock::default();
        let (stream, _far) = connection().await;
        stock.put(stream);
        assert_eq!(stock.count(), 1);
        advance(RENEWED_AFTER).await;
        assert_eq!((stock.count(), stock.lock().streams.len()), (0, 1), "still good, but a new one is wanted");
        let (stream, _far) = connection().await;
        stock.put(stream);
        advance(THROWN_AWAY_AFTER - RENEWED_AFTER).await;
        assert_eq!((stock.count(), stock.lock().streams.len()), (1, 1));
        advance(THROWN_AWAY_AFTER).await;
        assert!(stock.take().is_none());
    }

    /// A regression test: a session that was on it kept them open for as long as it lived.
    #[tokio::test]
    async fn a_backend_that_is_gone_or_replaced_has_none() {
        let here = endpoint(([10, 0, 0, 1], 389).into());
        for now in [vec![], vec![Endpoint { host: "dc1".to_owned(), ..here.clone() }]] {
            let (pool, _events) = pool(settings(), std::slice::from_ref(&here));
            let gone = Arc::clone(&pool.backends()[0]);
            let ((first, _a), (late, _b)) = (connection().await, connection().await);
            gone.stock.put(first);
            pool.admit(&now);
            assert!(gone.stock.take().is_none(), "{now:?}");
            // It was being opened meanwhile.
            gone.stock.put(late);
            assert!(gone.stock.take().is_none(), "{now:?}");
        }
    }
}
