//! What real traffic tells of a backend: failed connects, connections lost under an operation, operations without an
//! answer. Pure: time is an argument.
//!
//! One client can make a backend look bad: by a query that kills the connection it comes on, and is sent again
//! elsewhere. So troubles count once for each client address, and it takes three of them, or a failed probe, to eject.

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use tokio::time::Instant;

use crate::pool::EventKind;

/// Troubles this far apart have nothing to do with each other.
const WINDOW: Duration = Duration::from_secs(10);
/// Clients that must meet trouble within [`WINDOW`].
const ADDRESSES: usize = 3;
/// A probe is asked for at most this often.
const BETWEEN_PROBES: Duration = Duration::from_millis(250);
/// The first ejection takes this long, each further one twice as long as the one before.
const FIRST_EJECTION: Duration = Duration::from_secs(5);
const LONGEST_EJECTION: Duration = Duration::from_secs(300);
/// After this long without an ejection the next one counts as the first.
const FORGIVEN_AFTER: Duration = Duration::from_secs(300);

/// What a trouble calls for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suspicion {
    /// Nothing.
    None,
    /// A probe at once, whose failure decides.
    Probe,
    /// Ejecting the backend, whatever its probes say.
    Eject,
}

/// The troubles met at one backend lately.
#[derive(Debug, Default)]
pub struct Troubles {
    /// The newest of each client, fewer than [`ADDRESSES`].
    met: Vec<(IpAddr, Instant)>,
    asked: Option<Instant>,
}

impl Troubles {
    /// Counts what `client` met; what it calls for.
    pub fn meet(&mut self, client: IpAddr, kind: EventKind, now: Instant) -> Suspicion {
        match kind {
            EventKind::ConnectFailed | EventKind::TimedOut => {}
            EventKind::Lost { in_flight } if in_flight > 0 => {}
            EventKind::Connected(_) | EventKind::Lost { .. } => return Suspicion::None,
        }
        let client = household(client);
        self.met.retain(|&(known, at)| known != client && now < at + WINDOW);
        self.met.push((client, now));
        if self.met.len() >= ADDRESSES {
            self.met.clear();
            return Suspicion::Eject;
        }
        self.ask(now)
    }

    /// A sign that a backend that is down may be back.
    pub fn hope(&mut self, now: Instant) -> Suspicion {
        self.ask(now)
    }

    fn ask(&mut self, now: Instant) -> Suspicion {
        if self.asked.is_some_and(|asked| now < asked + BETWEEN_PROBES) {
            return Suspicion::None;
        }
        self.asked = Some(now);
        Suspicion::Probe
    }
}

/// Who counts as one client: an IPv4 address, an IPv6 /64.
fn household(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        address => address,
    }
}

/// How long a backend stays ejected: longer each time it fails.
#[derive(Debug, Clone, Default)]
pub struct Ejection {
    /// Failures lately.
    times: u32,
    until: Option<Instant>,
    relapsed: bool,
}

impl Ejection {
    /// Begins an ejection; how long it takes.
    pub fn begin(&mut self, now: Instant) -> Duration {
        let before = self.count(now);
        self.last(now, doubled(before), false)
    }

    /// Its probes have taken it down. The first time it may return as soon as they pass; one that comes and goes stays out,
    /// for how long.
    pub fn relapse(&mut self, now: Instant) -> Option<Duration> {
        let Some(before) = self.count(now).checked_sub(1) else {
            self.last(now, Duration::ZERO, true);
            return None;
        };
        Some(self.last(now, doubled(before), true))
    }

    /// Ends it before its time.
    pub fn end(&mut self, now: Instant) {
        self.until = self.until.map(|until| until.min(now));
    }

    /// Whether it comes and goes, rather than fail its clients while its probes pass.
    pub fn is_relapse(&self) -> bool {
        self.relapsed
    }

    /// Whether it still lasts.
    pub fn lasts(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    /// Failures before this one.
    fn count(&mut self, now: Instant) -> u32 {
        if self.until.is_none_or(|until| now >= until + FORGIVEN_AFTER) {
            self.times = 0;
        }
        self.times += 1;
        self.times - 1
    }

    fn last(&mut self, now: Instant, length: Duration, relapsed: bool) -> Duration {
        (self.until, self.relapsed) = (Some(now + length), relapsed);
        length
    }
}

fn doubled(times: u32) -> Duration {
    FIRST_EJECTION.saturating_mul(1 << times.min(16)).min(LONGEST_EJECTION)
}

/// Whether one more of `enabled` backends may be ejected, where `ejected` already are and `others` could take its place.
/// At most half may be out, and never the last.
pub fn may_eject(enabled: usize, ejected: usize, others: usize) -> bool {
    others > 0 && (ejected + 1) * 2 <= enabled
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LOST: EventKind = EventKind::Lost { in_flight: 1 };

    fn client(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    fn after(start: Instant, milliseconds: u64) -> Instant {
        start + Duration::from_millis(milliseconds)
    }

    #[test]
    fn three_addresses_eject_and_one_asks_for_a_probe() {
        let start = Instant::now();
        for kind in [LOST, EventKind::ConnectFailed, EventKind::TimedOut] {
            let mut troubles = Troubles::default();
            assert_eq!(troubles.meet(client(1), kind, start), Suspicion::Probe);
            assert_eq!(troubles.meet(client(2), kind, start), Suspicion::None, "one was asked for just now");
            assert_eq!(troubles.meet(client(3), kind, start), Suspicion::Eject);
            assert_eq!(troubles.meet(client(4), kind, after(start, 300)), Suspicion::Probe, "counting begins anew");
        }
    }

    /// The poisonous query: design.md, "Failover is careful with backends".
    #[test]
    fn one_client_never_ejects() {
        let (start, mut troubles) = (Instant::now(), Troubles::default());
        for n in 0..1000 {
            assert_ne!(troubles.meet(client(1), LOST, after(start, n)), Suspicion::Eject);
            let network = format!("2001:db8::{n:x}").parse().unwrap();
            assert_ne!(troubles.meet(network, LOST, after(start, n)), Suspicion::Eject);
        }
        assert!(troubles.met.len() < ADDRESSES);
    }

    #[test]
    fn troubles_far_apart_are_strangers() {
        let (start, mut troubles) = (Instant::now(), Troubles::default());
        for n in 0..20 {
            let suspicion = troubles.meet(client(n), LOST, after(start, u64::from(n) * 5001));
            assert_eq!(suspicion, Suspicion::Probe);
        }
    }

    #[test]
    fn what_is_nobodys_fault_is_no_trouble() {
        let (start, mut troubles) = (Instant::now(), Troubles::default());
        for n in 0..20 {
            assert_eq!(troubles.meet(client(n), EventKind::Lost { in_flight: 0 }, start), Suspicion::None);
            assert_eq!(troubles.meet(client(n), EventKind::Connected(WINDOW), start), Suspicion::None);
        }
    }

    #[test]
    fn ejections_grow_and_are_forgiven() {
        let (mut now, mut ejection) = (Instant::now(), Ejection::default());
        assert!(!ejection.lasts(now));
        for seconds in [5, 10, 20, 40, 80, 160, 300, 300] {
            let length = ejection.begin(now);
            assert_eq!(length, Duration::from_secs(seconds));
            assert!(ejection.lasts(now + length - Duration::from_millis(1)));
            assert!(!ejection.lasts(now + length));
            now += length;
        }
        now += FORGIVEN_AFTER;
        assert_eq!(ejection.begin(now), FIRST_EJECTION);
    }

    #[test]
    fn one_that_comes_and_goes_stays_out_longer_each_time() {
        let (mut now, mut ejection) = (Instant::now(), Ejection::default());
        assert_eq!(ejection.relapse(now), None, "a restart is no flapping");
        assert!(!ejection.lasts(now));
        for seconds in [5, 10, 20, 40, 80, 160, 300, 300] {
            now += Duration::from_secs(1);
            let length = Duration::from_secs(seconds);
            assert_eq!(ejection.relapse(now), Some(length));
            assert!(ejection.lasts(now + length - Duration::from_millis(1)) && ejection.is_relapse());
            assert!(!ejection.lasts(now + length));
            now += length;
        }
        assert_eq!(ejection.begin(now), LONGEST_EJECTION, "both ways of failing count");
        assert!(!ejection.is_relapse());
        now += LONGEST_EJECTION + FORGIVEN_AFTER;
        assert_eq!(ejection.relapse(now), None);
    }

    proptest! {
        /// However often it is asked, half stay and one serves.
        #[test]
        fn ejecting_is_capped(enabled in 0_usize..20) {
            let mut ejected = 0;
            while may_eject(enabled, ejected, enabled.saturating_sub(ejected + 1)) {
                ejected += 1;
            }
            prop_assert_eq!(ejected, enabled / 2);
            prop_assert!(!may_eject(enabled, 0, 0), "the last one stays, whatever became of the others");
        }
    }
}
