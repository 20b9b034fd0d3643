//! How much one address may take: connections at once, new connections a second. IPv6 counts by /64.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ipnet::IpNet;

use crate::buffer::shrink_after_crowd;
use crate::config::Limits;
use crate::failure::Outcome;
use crate::trust::client_network;

/// The connections of each address.
#[derive(Debug)]
pub struct Addresses {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    most_connections: usize,
    rate: u32,
    known: HashMap<IpNet, Known>,
}

/// One address: its connections now, and when the next one may come (a token bucket kept as a time, GCRA).
#[derive(Debug)]
struct Known {
    connections: usize,
    due: Instant,
}

/// One connection of an address; leaving is dropping it.
#[derive(Debug)]
pub struct Guest {
    addresses: Arc<Addresses>,
    network: IpNet,
}

/// Addresses remembered for their rate alone, before those whose second has passed are forgotten.
const MOST_REMEMBERED: usize = 16 * 1024;

impl Addresses {
    /// Limits of `limits.connections_per_address` and `connection_rate_per_address`; 0 is off.
    pub fn new(limits: &Limits) -> Arc<Self> {
        let state = State { most_connections: 0, rate: 0, known: HashMap::new() };
        let addresses = Arc::new(Self { state: Mutex::new(state) });
        addresses.change(limits);
        addresses
    }

    /// Takes other limits; connections that are there stay.
    pub fn change(&self, limits: &Limits) {
        let mut state = self.state();
        state.most_connections = limits.connections_per_address;
        state.rate = limits.connection_rate_per_address;
    }

    /// Counts a connection of `address`.
    ///
    /// # Errors
    /// [`Outcome::AddressLimit`] or [`Outcome::RateLimited`]
    pub fn enter(self: &Arc<Self>, address: IpAddr, now: Instant) -> Result<Option<Guest>, Outcome> {
        let mut state = self.state();
        let (most, rate) = (state.most_connections, state.rate);
        if most == 0 && rate == 0 {
            return Ok(None);
        }
        if state.known.len() >= MOST_REMEMBERED {
            state.known.retain(|_, known| known.connections > 0 || known.due > now);
        }
        let network = client_network(address);
        let known = state.known.entry(network).or_insert(Known { connections: 0, due: now });
        if most > 0 && known.connections >= most {
            return Err(Outcome::AddressLimit);
        }
        if rate > 0 {
            // A second's worth may come at once; each connection then moves the next one by its share of a second.
            let due = known.due.max(now);
            if due > now + Duration::from_secs(1) - Duration::from_secs(1) / rate {
                return Err(Outcome::RateLimited);
            }
            known.due = due + Duration::from_secs(1) / rate;
        }
        known.connections += 1;
        Ok(Some(Guest { addresses: Arc::clone(self), network }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is whole before the guard goes.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut state = self.addresses.state();
        let rated = state.rate > 0;
        if let Some(known) = state.known.get_mut(&self.network) {
            known.connections -= 1;
            if known.connections == 0 && !rated {
                state.known.remove(&self.network);
                shrink_after_crowd(&mut state.known);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(connections: usize, rate: u32) -> Limits {
        Limits { connections_per_address: connections, connection_rate_per_address: rate, ..Limits::default() }
    }

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn connections_of_one_address_are_bounded() {
        let addresses = Addresses::new(&limits(2, 0));
        let now = Instant::now();
        let first = addresses.enter(address("10.0.0.1"), now).expect("room");
        let _second = addresses.enter(address("10.0.0.1"), now).expect("room");
        assert_eq!(addresses.enter(address("10.0.0.1"), now).err(), Some(Outcome::AddressLimit));
        let _other = addresses.enter(address("10.0.0.2"), now).expect("another address");
        drop(first);
        assert!(addresses.enter(address("10.0.0.1"), now).is_ok());
    }

    #[test]
    fn ipv6_counts_by_64() {
        let addresses = Addresses::new(&limits(1, 0));
        let now = Instant::now();
        let _first = addresses.enter(address("2001:db8::1"), now).expect("room");
        assert!(addresses.enter(address("2001:db8::2"), now).is_err());
        assert!(addresses.enter(address("2001:db8:0:1::2"), now).is_ok());
    }

    #[test]
    fn a_second_admits_its_rate_and_then_steadily() {
        let addresses = Addresses::new(&limits(0, 10));
        let mut now = Instant::now();
        let admitted = (0..30).filter(|_| addresses.enter(address("10.0.0.1"), now).is_ok()).count();
        assert_eq!(admitted, 10);
        now += Duration::from_millis(100);
        assert!(addresses.enter(address("10.0.0.1"), now).is_ok());
        assert_eq!(addresses.enter(address("10.0.0.1"), now).err(), Some(Outcome::RateLimited));
        now += Duration::from_secs(5);
        let admitted = (0..30).filter(|_| addresses.enter(address("10.0.0.1"), now).is_ok()).count();
        assert_eq!(admitted, 10, "patience saves no more than a second's worth");
    }

    #[test]
    fn off_remembers_nobody_and_memory_is_bounded() {
        let addresses = Addresses::new(&limits(0, 0));
        assert!(addresses.enter(address("10.0.0.1"), Instant::now()).is_ok_and(|guest| guest.is_none()));
        addresses.change(&limits(0, 5));
        let start = Instant::now();
        for n in 0..50_000_u32 {
            let now = start + Duration::from_millis(u64::from(n));
            drop(addresses.enter(IpAddr::V4((0x0A00_0000 + n).into()), now));
        }
        assert!(addresses.state().known.len() <= MOST_REMEMBERED);
    }
}
