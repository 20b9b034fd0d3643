//! Turns at something scarce, shared fairly between addresses: nobody can take so many that others get none.
//!
//! An address may take another turn while it holds fewer than are free (the dynamic threshold of shared buffers, Choudhury
//! and Hahne 1998, with factor 1). So one address alone gets half of them, two get a third each, and whoever comes next
//! still finds some. Among those who wait, the address that holds least is next.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ipnet::IpNet;
use tokio::sync::oneshot;

/// Turns that tasks can wait for.
#[derive(Debug)]
pub(super) struct Turns {
    shares: Mutex<Shares<oneshot::Sender<Turn>>>,
}

/// One turn; giving it back is dropping it.
pub(super) struct Turn {
    turns: Arc<Turns>,
    address: IpNet,
}

impl Turns {
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { shares: Mutex::new(Shares::new(most)) })
    }

    /// Takes another number of turns; those given stay given.
    pub(super) fn resize(self: &Arc<Self>, most: usize) {
        self.shares().most = most;
        self.pass_on();
    }

    /// Waits for a turn of `address`. Put a timeout around it: it has none.
    pub(super) async fn take(self: &Arc<Self>, address: IpNet) -> Turn {
        let (place, given) = {
            let mut shares = self.shares();
            if shares.take(address) {
                return self.turn(address);
            }
            let (give, given) = oneshot::channel();
            let ticket = shares.wait(address, give);
            (Waiting { turns: self, address, ticket }, given)
        };
        let turn = given.await.expect("only giving up, or a turn, ends a wait");
        drop(place);
        turn
    }

    /// Gives the turns that are free to those who wait for one.
    fn pass_on(self: &Arc<Self>) {
        loop {
            let Some((address, waiter)) = self.shares().next() else { return };
            // If it gave up just now, the turn comes back, is dropped and so passed on.
            let _ = waiter.send(self.turn(address));
        }
    }

    fn turn(self: &Arc<Self>, address: IpNet) -> Turn {
        Turn { turns: Arc::clone(self), address }
    }

    fn shares(&self) -> MutexGuard<'_, Shares<oneshot::Sender<Turn>>> {
        // Every change is whole before the guard goes.
        self.shares.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.turns.shares().give_back(self.address);
        self.turns.pass_on();
    }
}

impl fmt::Debug for Turn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Turn").field("address", &self.address).finish_non_exhaustive()
    }
}

/// A place among those who wait; leaving is dropping it.
struct Waiting<'a> {
    turns: &'a Turns,
    address: IpNet,
    ticket: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.turns.shares().give_up(self.address, self.ticket);
    }
}

/// Who holds how many turns, and who waits. Between two calls nobody waits who may have a turn, but for those that
/// [`Shares::next`] has yet to name.
#[derive(Debug)]
struct Shares<W> {
    most: usize,
    taken: usize,
    addresses: HashMap<IpNet, Share<W>>,
    /// The addresses of those who wait, by turns held and then by the ticket of who waits longest.
    queue: BTreeSet<(usize, u64, IpNet)>,
    tickets: u64,
}

#[derive(Debug)]
struct Share<W> {
    held: usize,
    /// By ticket, so the longest waiting first.
    waiting: BTreeMap<u64, W>,
}

impl<W> Shares<W> {
    fn new(most: usize) -> Self {
        Self { most, taken: 0, addresses: HashMap::new(), queue: BTreeSet::new(), tickets: 0 }
    }

    /// Takes a turn at once, if `address` may have one.
    fn take(&mut self, address: IpNet) -> bool {
        let held = self.addresses.get(&address).map_or(0, |share| share.held);
        let may = held < self.free();
        if may {
            self.change(address, |share| share.held += 1);
            self.taken += 1;
        }
        may
    }

    /// Lines up; the ticket says where.
    fn wait(&mut self, address: IpNet, waiter: W) -> u64 {
        let ticket = self.tickets;
        self.tickets += 1;
        self.change(address, |share| share.waiting.insert(ticket, waiter));
        ticket
    }

    fn give_up(&mut self, address: IpNet, ticket: u64) {
        self.change(address, |share| share.waiting.remove(&ticket));
    }

    fn give_back(&mut self, address: IpNet) {
        self.taken -= 1;
        self.change(address, |share| share.held -= 1);
    }

    /// Takes a turn for who is next in line, if there is one for it.
    fn next(&mut self) -> Option<(IpNet, W)> {
        let &(held, ticket, address) = self.queue.first()?;
        if held >= self.free() {
            return None;
        }
        self.taken += 1;
        let waiter = self.change(address, |share| {
            share.held += 1;
            share.waiting.remove(&ticket)
        });
        Some((address, waiter.expect("who stands in the queue waits")))
    }

    fn free(&self) -> usize {
        self.most.saturating_sub(self.taken)
    }

    /// Changes the share of an address, and its place in the queue with it. Nothing is kept of one that has nothing.
    fn change<R>(&mut self, address: IpNet, change: impl FnOnce(&mut Share<W>) -> R) -> R {
        let share = self.addresses.entry(address).or_insert(Share { held: 0, waiting: BTreeMap::new() });
        let place = |share: &Share<W>| share.waiting.keys().next().map(|ticket| (share.held, *ticket, address));
        if let Some(before) = place(share) {
            self.queue.remove(&before);
        }
        let result = change(share);
        self.queue.extend(place(share));
        if share.held == 0 && share.waiting.is_empty() {
            self.addresses.remove(&address);
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use tokio::time::timeout;

    use super::*;
    use crate::trust::client_network;

    fn address(number: u8) -> IpNet {
        client_network([10, 0, 0, number].into())
    }

    /// As many turns as one address gets.
    fn fill<W>(shares: &mut Shares<W>, address: IpNet) -> usize {
        std::iter::from_fn(|| shares.take(address).then_some(())).count()
    }

    #[test]
    fn one_address_gets_half_and_each_further_one_its_share_of_the_rest() {
        let mut shares = Shares::<()>::new(256);
        let got: Vec<_> = (0..9).map(|number| fill(&mut shares, address(number))).collect();
        assert_eq!(got, [128, 64, 32, 16, 8, 4, 2, 1, 1]);
    }

    #[test]
    fn a_single_turn_is_for_whoever_comes_first() {
        let mut shares = Shares::<()>::new(1);
        assert!(shares.take(address(1)));
        assert!(!shares.take(address(1)) && !shares.take(address(2)));
        shares.give_back(address(1));
        assert!(shares.take(address(2)));
    }

    #[test]
    fn who_holds_least_is_next_and_then_who_waited_longest() {
        let mut shares = Shares::new(4);
        assert_eq!(
            (fill(&mut shares, address(1)), fill(&mut shares, address(2)), fill(&mut shares, address(3))),
            (2, 1, 1)
        );
        for (name, number) in [("b", 2), ("d", 4), ("a", 1), ("e", 5), ("d again", 4)] {
            shares.wait(address(number), name);
        }
        let mut served = Vec::new();
        // Each turn that is passed on is over at once.
        shares.give_back(address(1));
        while let Some((address, name)) = shares.next() {
            served.push(name);
            shares.give_back(address);
        }
        assert_eq!(served, ["d", "e", "d again"], "one is free: those who hold one or more wait on");
        shares.give_back(address(1));
        assert_eq!(shares.next().map(|(_, name)| name), Some("a"), "it holds none any more");
    }

    #[test]
    fn who_gave_up_is_passed_over_and_leaves_nothing() {
        let mut shares = Shares::new(1);
        assert!(shares.take(address(1)));
        let ticket = shares.wait(address(2), "left");
        shares.wait(address(3), "stayed");
        shares.give_up(address(2), ticket);
        shares.give_back(address(1));
        assert_eq!(shares.next().map(|(_, name)| name), Some("stayed"));
        shares.give_back(address(3));
        assert!(shares.addresses.is_empty() && shares.queue.is_empty());
    }

    #[derive(Debug, Clone)]
    enum Step {
        Arrive(u8),
        /// The nth of those at it, or in line, ends or gives up.
        End(usize),
        GiveUp(usize),
        Resize(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0_u8..5).prop_map(Step::Arrive),
            3 => any::<usize>().prop_map(Step::End),
            1 => any::<usize>().prop_map(Step::GiveUp),
            1 => (1_usize..12).prop_map(Step::Resize),
        ]
    }

    proptest! {
        /// Against a list of who holds and who waits, whatever happens: an address gets a turn if and only if it holds fewer
        /// than are free, at once or as soon as that is so, and nothing is kept once all have left.
        #[test]
        fn turns_are_shared_as_promised(steps in proptest::collection::vec(step(), 0..200), mut most in 1_usize..12) {
            let mut shares = Shares::new(most);
            let (mut holding, mut waiting) = (Vec::<IpNet>::new(), Vec::<(IpNet, u64)>::new());
            let may = |holding: &[IpNet], most: usize, address: IpNet| {
                holding.iter().filter(|holder| **holder == address).count() < most.saturating_sub(holding.len())
            };
            for step in steps {
                match step {
                    Step::Arrive(number) if shares.take(address(number)) => {
                        prop_assert!(may(&holding, most, address(number)));
                        holding.push(address(number));
                    }
                    Step::Arrive(number) => {
                        let ticket = shares.wait(address(number), ());
                        waiting.push((address(number), ticket));
                    }
                    Step::End(nth) if !holding.is_empty() => {
                        shares.give_back(holding.swap_remove(nth % holding.len()));
                    }
                    Step::GiveUp(nth) if !waiting.is_empty() => {
                        let (address, ticket) = waiting.remove(nth % waiting.len());
                        shares.give_up(address, ticket);
                    }
                    Step::Resize(other) => {
                        most = other;
                        shares.most = other;
                    }
                    Step::End(_) | Step::GiveUp(_) => {}
                }
                while let Some((address, ())) = shares.next() {
                    let first = waiting.iter().position(|(who, _)| *who == address).expect("it waits");
                    waiting.remove(first);
                    prop_assert!(may(&holding, most, address));
                    holding.push(address);
                }
                prop_assert!(!waiting.iter().any(|(address, _)| may(&holding, most, *address)));
            }
            holding.into_iter().for_each(|address| shares.give_back(address));
            waiting.into_iter().for_each(|(address, ticket)| shares.give_up(address, ticket));
            prop_assert!(shares.addresses.is_empty() && shares.queue.is_empty() && shares.taken == 0);
        }
    }

    const LONG: Duration = Duration::from_secs(3600);

    #[tokio::test(start_paused = true)]
    async fn a_turn_given_back_goes_to_who_waits() {
        let turns = Turns::new(1);
        let first = turns.take(address(1)).await;
        let waiting = tokio::spawn({
            let turns = Arc::clone(&turns);
            async move { turns.take(address(2)).await }
        });
        assert!(timeout(LONG, turns.take(address(1))).await.is_err(), "a wait that is given up takes nothing");
        drop(first);
        let second = waiting.await.unwrap();
        assert!(timeout(LONG, turns.take(address(3))).await.is_err());
        turns.resize(2);
        let third = timeout(LONG, turns.take(address(3))).await.expect("there is one more now");
        drop((second, third));
        assert_eq!(turns.shares().taken, 0);
    }

    /// The turn was on its way when the wait was given up: it isn't lost.
    #[tokio::test(start_paused = true)]
    async fn a_turn_for_someone_who_just_left_goes_to_the_next() {
        let turns = Turns::new(1);
        let first = turns.take(address(1)).await;
        let mut leaving = Box::pin(turns.take(address(2)));
        assert!(poll_once(leaving.as_mut()).is_none());
        let mut staying = Box::pin(turns.take(address(3)));
        assert!(poll_once(staying.as_mut()).is_none());
        drop(first);
        drop(leaving);
        timeout(LONG, staying).await.expect("it is next");
    }

    fn poll_once<F: Future>(future: std::pin::Pin<&mut F>) -> Option<F::Output> {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        match future.poll(&mut context) {
            std::task::Poll::Ready(output) => Some(output),
            std::task::Poll::Pending => None,
        }
    }
}
