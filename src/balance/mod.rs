//! Choosing a backend: one small pure file per policy.
//!
//! The pool has already narrowed the choice to the best that is left (health, lowest tier, not tried yet); a policy only
//! says which of those.

mod first_available;
mod least_connections;
mod power_of_two;
mod round_robin;
mod source_hash;

use std::net::IpAddr;

use crate::config::Balance;

/// What a policy may know of one backend.
#[derive(Debug, Clone, Copy)]
pub struct Candidate {
    /// 1 or more.
    pub weight: u32,
    /// Sessions it serves now.
    pub sessions: usize,
    /// A number that stays the same for the same backend in every copy of the proxy.
    pub identity: u64,
}

impl Candidate {
    /// Whether it has fewer sessions for its weight than `other`.
    fn is_less_busy_than(&self, other: &Self) -> bool {
        self.sessions as u128 * u128::from(other.weight) < other.sessions as u128 * u128::from(self.weight)
    }
}

/// What a choice may depend on besides the candidates.
#[derive(Debug, Clone, Copy)]
pub struct Draw {
    /// The client's address.
    pub client: IpAddr,
    /// A uniformly random number.
    pub random: u64,
}

/// A way to choose.
pub trait Policy: Send + Sync {
    /// The index of the chosen candidate. `candidates` is never empty and is in configuration order.
    fn choose(&self, candidates: &[Candidate], draw: Draw) -> usize;
}

/// The policy of this name.
pub fn policy(balance: Balance) -> Box<dyn Policy> {
    match balance {
        Balance::LeastConnections => Box::new(least_connections::LeastConnections),
        Balance::RoundRobin => Box::new(round_robin::RoundRobin::default()),
        Balance::FirstAvailable => Box::new(first_available::FirstAvailable),
        Balance::SourceHash => Box::new(source_hash::SourceHash),
        Balance::PowerOfTwo => Box::new(power_of_two::PowerOfTwo),
    }
}

/// Spreads the bits of `value` over all 64 (the finaliser of SplitMix64): the same in every build and every copy.
pub(crate) const fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

/// [`Candidate::identity`] of a backend by its name.
pub fn identity(name: &str) -> u64 {
    name.bytes().fold(0, |hash, octet| mix(hash ^ u64::from(octet)).wrapping_add(0x9E37_79B9_7F4A_7C15))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    /// Candidates of these weights, without sessions.
    pub(super) fn weighted(weights: &[u32]) -> Vec<Candidate> {
        let candidate =
            |(index, &weight)| Candidate { weight, sessions: 0, identity: identity(&format!("dc{index}:389")) };
        weights.iter().enumerate().map(candidate).collect()
    }

    /// A draw for the `n`th client.
    pub(super) fn nth(n: u32) -> Draw {
        Draw { client: Ipv4Addr::from_bits(0x0A00_0000 | n).into(), random: mix(u64::from(n) + 1) }
    }

    /// How often each candidate is chosen by `rounds` clients that stay.
    pub(super) fn shares(policy: &dyn Policy, candidates: &mut [Candidate], rounds: u32) -> Vec<usize> {
        let mut chosen = vec![0; candidates.len()];
        for n in 0..rounds {
            let index = policy.choose(candidates, nth(n));
            candidates[index].sessions += 1;
            chosen[index] += 1;
        }
        chosen
    }

    const ALL: [Balance; 5] = [
        Balance::LeastConnections,
        Balance::RoundRobin,
        Balance::FirstAvailable,
        Balance::SourceHash,
        Balance::PowerOfTwo,
    ];

    proptest! {
        /// Every policy chooses one of the candidates, whatever their number, weights and load.
        #[test]
        fn always_one_of_them(backends in prop::collection::vec((1_u32..10, 0_usize..1000), 1..8), random: u64, client: u32) {
            let candidates: Vec<_> = backends.iter().enumerate()
                .map(|(index, &(weight, sessions))| Candidate { weight, sessions, identity: identity(&index.to_string()) })
                .collect();
            let draw = Draw { client: Ipv4Addr::from_bits(client).into(), random };
            for balance in ALL {
                prop_assert!(policy(balance).choose(&candidates, draw) < candidates.len());
            }
        }

        /// Every policy but first-available comes near the weights when clients arrive and stay.
        #[test]
        fn weights_are_kept(weights in prop::collection::vec(1_u32..5, 2..5)) {
            for balance in [Balance::LeastConnections, Balance::RoundRobin, Balance::SourceHash] {
                let rounds = 4000;
                let shares = shares(&*policy(balance), &mut weighted(&weights), rounds);
                let total: u32 = weights.iter().sum();
                for (share, weight) in shares.iter().zip(&weights) {
                    let fair = rounds as f64 * f64::from(*weight) / f64::from(total);
                    prop_assert!((*share as f64 - fair).abs() < fair * 0.25 + 5.0, "{balance:?}: {shares:?} for {weights:?}");
                }
            }
        }
    }
}
