//! What backends are called: `host:port`, or `pool/host:port` where another pool has the same address.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Which pool has which addresses. A name is given once, when a backend appears: that of another pool's backend at the same
/// address stays as it is until a reload.
#[derive(Debug, Default)]
pub struct AddressBook(Mutex<Pools>);

type Pools = BTreeMap<String, BTreeSet<SocketAddr>>;

impl AddressBook {
    /// A book of these pools.
    pub fn of(pools: Pools) -> Self {
        Self(Mutex::new(pools))
    }

    /// Makes it a book of these pools and no others.
    pub fn replace(&self, pools: Pools) {
        *self.pools() = pools;
    }

    /// Makes these the addresses of one pool.
    pub fn enter(&self, pool: &str, addresses: impl Iterator<Item = SocketAddr>) {
        self.pools().insert(pool.to_owned(), addresses.collect());
    }

    /// What a pool's backend at this address is called.
    pub fn name(&self, pool: &str, address: SocketAddr) -> String {
        let is_shared = self.pools().iter().any(|(other, addresses)| other != pool && addresses.contains(&address));
        if is_shared { format!("{pool}/{address}") } else { address.to_string() }
    }

    fn pools(&self) -> MutexGuard<'_, Pools> {
        // Every change is whole before the guard goes.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_two_pools_is_told_apart_by_their_names() {
        let address = |last| SocketAddr::from(([10, 0, 0, last], 389));
        let pools = [("a", vec![address(1), address(2)]), ("b", vec![address(2), address(3)])];
        let book = AddressBook::of(
            pools.into_iter().map(|(pool, addresses)| (pool.to_owned(), addresses.into_iter().collect())).collect(),
        );
        assert_eq!([book.name("a", address(1)), book.name("b", address(3))], ["10.0.0.1:389", "10.0.0.3:389"]);
        assert_eq!([book.name("a", address(2)), book.name("b", address(2))], ["a/10.0.0.2:389", "b/10.0.0.2:389"]);
        book.enter("b", [address(3)].into_iter());
        assert_eq!(book.name("a", address(2)), "10.0.0.2:389");
    }
}
