//! `source-hash`: by the client's address, the same in every copy of the proxy.

use std::net::IpAddr;

use super::{Candidate, Draw, Policy, mix};

#[derive(Debug)]
pub(super) struct SourceHash;

impl Policy for SourceHash {
    /// Weighted rendezvous hashing: a backend that goes takes only its own clients along.
    fn choose(&self, candidates: &[Candidate], draw: Draw) -> usize {
        let client = match draw.client.to_canonical() {
            IpAddr::V4(address) => u64::from(address.to_bits()),
            IpAddr::V6(address) => mix((address.to_bits() >> 64) as u64) ^ address.to_bits() as u64,
        };
        let score = |candidate: &Candidate| {
            let uniform = (mix(mix(client) ^ candidate.identity) >> 11) as f64 / (1_u64 << 53) as f64;
            f64::from(candidate.weight) / -uniform.max(f64::MIN_POSITIVE).ln()
        };
        let best = candidates.iter().map(score).enumerate().max_by(|(_, a), (_, b)| a.total_cmp(b));
        best.map_or(0, |(index, _)| index)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{nth, weighted};
    use super::*;

    #[test]
    fn a_client_keeps_its_backend_when_another_goes() {
        let all = weighted(&[1, 1, 1]);
        for n in 0..500 {
            let chosen = SourceHash.choose(&all, nth(n));
            let gone = (chosen + 1) % 3;
            let left: Vec<_> = (0..3).filter(|&index| index != gone).collect();
            let candidates: Vec<_> = left.iter().map(|&index| all[index]).collect();
            assert_eq!(left[SourceHash.choose(&candidates, nth(n))], chosen);
        }
    }

    #[test]
    fn ipv4_mapped_is_ipv4() {
        let all = weighted(&[1, 1, 1, 1, 1]);
        for n in 0..100 {
            let plain = nth(n);
            let IpAddr::V4(address) = plain.client else { unreachable!() };
            let mapped = Draw { client: address.to_ipv6_mapped().into(), ..plain };
            assert_eq!(SourceHash.choose(&all, plain), SourceHash.choose(&all, mapped));
        }
    }
}
