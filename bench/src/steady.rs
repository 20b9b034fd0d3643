//! Bound sessions that send the same request over and over: closed loop (a window of requests in flight each) or open
//! loop (a rate kept whatever the answers do).

use std::{collections::VecDeque, io, str::FromStr, time::Duration};

use clap::{Args, value_parser};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep},
};

use crate::{
    client::{Connection, Target},
    meter::Meter,
    pdu::{self, MESSAGE_IDS, Template, message_id},
    window::{Latencies, Report, Tally, Times, measure},
};

/// Requests sent but not yet answered that an open-loop session may have: beyond it the target is saturated.
const MAX_BACKLOG: usize = MESSAGE_IDS as usize / 2;
const SLOW_READ: usize = 4096;
const SLOW_PAUSE: Duration = Duration::from_millis(20);

#[derive(Args)]
pub struct Steady {
    #[arg(long, default_value_t = 50, value_parser = value_parser!(u32).range(1..=9500))]
    sessions: u32,
    /// Requests in flight a session.
    #[arg(long, default_value_t = 1, value_parser = value_parser!(u32).range(1..=1024))]
    window: u32,
    /// search:COUNTxSIZE (entries of SIZE octets), add:SIZE or modify:SIZE (one value of SIZE octets).
    #[arg(long, default_value = "search:1x500")]
    request: Request,
    /// Operations a second over all sessions, whatever the answers do, on a grid of 1 ms; instead of a window.
    #[arg(long, value_parser = value_parser!(u32).range(1..=1_000_000))]
    rate: Option<u32>,
    /// Sessions beside the others that each fetch 5,000 entries and read 4 KiB every 20 ms.
    #[arg(long, default_value_t = 0, value_parser = value_parser!(u32).range(0..=100))]
    slow_readers: u32,
}

impl Steady {
    pub async fn run(self, target: &Target, times: Times, meter: &Meter) -> io::Result<Report> {
        let tally = Tally::default();
        let mut sessions = Vec::new();
        for n in 0..self.sessions {
            let mut connection = target.open(n, None).await?;
            connection.bind().await?;
            let request = self.request.template();
            let entries = self.request.entries();
            sessions.push(Session {
                connection,
                request,
                entries,
                sent: 0,
                sent_at: VecDeque::new(),
                answered: 0,
                received: 0,
            });
        }
        let mut slow = Vec::new();
        for n in 0..self.slow_readers {
            let mut connection = target.open(self.sessions + n, Some(SLOW_READ as u32)).await?;
            connection.bind().await?;
            slow.push(connection);
        }

        let mut tasks = JoinSet::new();
        for connection in slow {
            tasks.spawn(read_slowly(connection, tally.clone()));
        }
        match self.rate {
            None => {
                for session in sessions {
                    tasks.spawn(session.closed_loop(self.window as usize, tally.clone()));
                }
            }
            Some(rate) => {
                let mut senders = Vec::new();
                for session in sessions {
                    let (sender, due) = mpsc::channel(MAX_BACKLOG);
                    senders.push(sender);
                    tasks.spawn(session.open_loop(due, tally.clone()));
                }
                tasks.spawn(dispatch(rate, senders, tally.clone()));
            }
        }
        measure(tasks, &tally, times, meter).await
    }
}

/// What is asked.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    /// The base tells the sink what to answer.
    Search {
        count: usize,
        size: usize,
    },
    Add(usize),
    Modify(usize),
}

impl Request {
    fn template(&self) -> Template {
        let operation = match self {
            Self::Search { count, size } => pdu::search_request(&format!("ou={count}x{size},dc=bench")),
            Self::Add(size) => pdu::add_request(*size),
            Self::Modify(size) => pdu::modify_request(*size),
        };
        Template::new(&[operation], 2)
    }

    fn entries(&self) -> usize {
        if let Self::Search { count, .. } = self { *count } else { 0 }
    }
}

impl FromStr for Request {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let size = |text: &str| text.parse().ok().filter(|&size| size <= 16 << 20);
        let parsed = match text.split_once(':') {
            Some(("search", wanted)) => wanted
                .split_once('x')
                .and_then(|(count, bytes)| Some(Self::Search { count: count.parse().ok()?, size: size(bytes)? })),
            Some(("add", bytes)) => size(bytes).map(Self::Add),
            Some(("modify", bytes)) => size(bytes).map(Self::Modify),
            _ => None,
        };
        parsed.ok_or_else(|| "expected search:COUNTxSIZE, add:SIZE or modify:SIZE, SIZE up to 16777216".into())
    }
}

struct Session {
    connection: Connection,
    request: Template,
    /// Entries each answer must have.
    entries: usize,
    sent: u64,
    sent_at: VecDeque<Instant>,
    answered: usize,
    received: usize,
}

impl Session {
    async fn closed_loop(mut self, window: usize, tally: Tally) -> io::Result<Latencies> {
        let mut latencies = Latencies::default();
        let mut due = vec![Instant::now(); window];
        while !due.is_empty() || !self.sent_at.is_empty() {
            self.send(&due).await?;
            let answered = self.receive(&tally, &mut latencies).await?;
            due.clear();
            if !tally.stopping() {
                due.resize(answered, Instant::now());
            }
        }
        self.end().await?;
        Ok(latencies)
    }

    async fn open_loop(mut self, mut due: mpsc::Receiver<Instant>, tally: Tally) -> io::Result<Latencies> {
        let mut latencies = Latencies::default();
        let mut open = true;
        let mut next = Vec::new();
        while open || !self.sent_at.is_empty() {
            tokio::select! {
                count = due.recv_many(&mut next, MAX_BACKLOG), if open => {
                    open = count > 0;
                    self.send(&next).await?;
                    next.clear();
                }
                answered = self.receive(&tally, &mut latencies), if !self.sent_at.is_empty() => {
                    answered?;
                }
            }
        }
        self.end().await?;
        Ok(latencies)
    }

    /// Sends one request for each instant it was due at, all in one write.
    async fn send(&mut self, due: &[Instant]) -> io::Result<()> {
        if self.sent_at.len() + due.len() > MAX_BACKLOG {
            return Err(io::Error::other("the target doesn't keep up with the rate"));
        }
        if let [at] = due {
            self.sent_at.push_back(*at);
            self.connection.send(self.request.stamp(&message_id(self.sent))).await?;
            self.sent += 1;
        } else if !due.is_empty() {
            let mut messages = Vec::new();
            for &at in due {
                self.sent_at.push_back(at);
                messages.extend_from_slice(self.request.stamp(&message_id(self.sent)));
                self.sent += 1;
            }
            self.connection.send(&messages).await?;
        }
        Ok(())
    }

    async fn receive(&mut self, tally: &Tally, latencies: &mut Latencies) -> io::Result<usize> {
        let responses = self.connection.responses().await?;
        self.answered += responses.finals;
        self.received += responses.entries;
        if responses.finals > self.sent_at.len() {
            return Err(io::Error::other("an answer that nothing asked for"));
        }
        let now = Instant::now();
        tally.operations(self.sent_at.drain(..responses.finals).map(|sent_at| now - sent_at), latencies);
        Ok(responses.finals)
    }

    async fn end(self) -> io::Result<()> {
        let expected = self.answered * self.entries;
        if self.received != expected {
            return Err(io::Error::other(format!("{} entries came, {expected} were asked for", self.received)));
        }
        self.connection.unbind().await
    }
}

/// Hands out due requests over all sessions in turn, each millisecond its share of `rate`. A request counts as due from
/// the moment it is handed out: what a session then waits for is the target's doing.
async fn dispatch(rate: u32, senders: Vec<mpsc::Sender<Instant>>, tally: Tally) -> io::Result<Latencies> {
    let mut tick = interval(Duration::from_millis(1));
    tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let (mut owed, mut turn) = (0, 0);
    while !tally.stopping() {
        tick.tick().await;
        let now = Instant::now();
        owed += rate;
        for _ in 0..owed / 1000 {
            if senders[turn % senders.len()].try_send(now).is_err() {
                return Err(io::Error::other("the target doesn't keep up with the rate"));
            }
            turn += 1;
        }
        owed %= 1000;
    }
    Ok(Latencies::default())
}

async fn read_slowly(mut connection: Connection, tally: Tally) -> io::Result<Latencies> {
    let mut request = Request::Search { count: 5000, size: 500 }.template();
    connection.send(request.stamp(&message_id(0))).await?;
    while !tally.stopping() {
        if connection.sip(SLOW_READ).await? == 0 {
            return Err(io::Error::other("the slow reader was cut off"));
        }
        sleep(SLOW_PAUSE).await;
    }
    Ok(Latencies::default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_parsed() {
        assert_eq!("search:5000x500".parse(), Ok(Request::Search { count: 5000, size: 500 }));
        assert_eq!("add:1048576".parse(), Ok(Request::Add(1 << 20)));
        assert_eq!("modify:0".parse(), Ok(Request::Modify(0)));
        for wrong in ["", "search", "search:1", "search:1x", "add:17777777", "delete:1"] {
            assert!(wrong.parse::<Request>().is_err(), "{wrong}");
        }
    }
}
