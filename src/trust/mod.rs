//! May this address enter?
//!
//! [`Trust`] answers, purely. [`TrustSource`] keeps one listener's answer current with its list file, and
//! [`LogLimiter`] keeps a flood of refusals from flooding the log.

mod list;
mod log_limiter;
mod source;

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::joint::JointPrefixMap;

pub use list::{LineError, NetworkError, parse_list, parse_network};
pub use log_limiter::LogLimiter;
pub use source::{ListError, ListProblem, Reload, TrustSource};

/// Who may enter: nobody but the trusted networks. The longest matching prefix decides, on equal length the denial.
///
/// IPv4-mapped IPv6 addresses (RFC 4291 §2.5.5.2) are IPv4 addresses here, in the networks as in the addresses asked
/// about: `::/0` says nothing about them, `::ffff:10.0.0.0/104` is `10.0.0.0/8`.
#[derive(Debug, Clone)]
pub struct Trust {
    rules: JointPrefixMap<IpNet, Rule>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    Trust,
    Deny,
}

/// What [`Trust`] says about an address, and which network made it say so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It may enter.
    Trusted {
        /// The trusted network that matched.
        by: IpNet,
    },
    /// It may not.
    Denied {
        /// The denied network that matched; `None` where no network did.
        by: Option<IpNet>,
    },
}

impl Verdict {
    /// Whether the address may enter.
    pub const fn is_trusted(self) -> bool {
        matches!(self, Self::Trusted { .. })
    }
}

impl Trust {
    /// Trusts `trusted`, but for `denied`.
    pub fn new(trusted: impl IntoIterator<Item = IpNet>, denied: impl IntoIterator<Item = IpNet>) -> Self {
        let mut rules = JointPrefixMap::new();
        for network in trusted {
            rules.insert(canonical(network), Rule::Trust);
        }
        // After the trusted ones: of two equal networks the denial stays.
        for network in denied {
            rules.insert(canonical(network), Rule::Deny);
        }
        Self { rules }
    }

    /// Whether `address` may enter.
    pub fn verdict(&self, address: IpAddr) -> Verdict {
        match self.rules.get_lpm(&IpNet::from(address.to_canonical())) {
            Some((by, Rule::Trust)) => Verdict::Trusted { by },
            Some((by, Rule::Deny)) => Verdict::Denied { by: Some(by) },
            None => Verdict::Denied { by: None },
        }
    }

    /// Number of distinct networks, trusted and denied.
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Whether there is no network at all, so that nobody may enter.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The network that limits "per address" count by: the address itself for IPv4 (mapped or not), its /64 for IPv6, which is
/// what one customer or one host gets.
pub fn client_network(address: IpAddr) -> IpNet {
    match address.to_canonical() {
        address @ IpAddr::V4(_) => address.into(),
        IpAddr::V6(address) => Ipv6Net::new_assert(address, 64).trunc().into(),
    }
}

/// The network without host bits, as IPv4 where all of it is IPv4-mapped.
fn canonical(network: IpNet) -> IpNet {
    if let IpNet::V6(mapped) = network
        && let (Some(address), Some(length)) = (mapped.addr().to_ipv4_mapped(), mapped.prefix_len().checked_sub(96))
    {
        return Ipv4Net::new_assert(address, length).trunc().into();
    }
    network.trunc()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    fn networks(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn trust(trusted: &[&str], denied: &[&str]) -> Trust {
        Trust::new(networks(trusted), networks(denied))
    }

    #[test]
    fn verdicts() {
        let trust = trust(
            &["10.0.0.0/8", "10.1.2.0/24", "192.0.2.0/24", "::ffff:198.51.100.0/120", "2001:db8::/32", "10.9.9.9/32"],
            &["10.1.0.0/16", "192.0.2.0/24", "2001:db8:bad::/48", "10.9.9.9/32"],
        );
        for (address, trusted, by) in [
            ("10.2.3.4", true, Some("10.0.0.0/8")),
            ("10.1.3.4", false, Some("10.1.0.0/16")),
            ("10.1.2.3", true, Some("10.1.2.0/24")),
            ("192.0.2.1", false, Some("192.0.2.0/24")),
            ("::ffff:10.2.3.4", true, Some("10.0.0.0/8")),
            ("198.51.100.7", true, Some("198.51.100.0/24")),
            ("::ffff:198.51.100.7", true, Some("198.51.100.0/24")),
            ("2001:db8::1", true, Some("2001:db8::/32")),
            ("2001:db8:bad::1", false, Some("2001:db8:bad::/48")),
            ("10.9.9.9", false, Some("10.9.9.9/32")),
            ("11.0.0.1", false, None),
            ("2001:db9::1", false, None),
        ] {
            let by: Option<IpNet> = by.map(|text| text.parse().unwrap());
            let expected = if trusted { Verdict::Trusted { by: by.unwrap() } } else { Verdict::Denied { by } };
            assert_eq!(trust.verdict(address.parse().unwrap()), expected, "{address}");
        }
    }

    #[test]
    fn nobody_is_trusted_by_default() {
        let trust = trust(&[], &[]);
        assert!(trust.is_empty());
        assert_eq!(trust.verdict("127.0.0.1".parse().unwrap()), Verdict::Denied { by: None });
        assert_eq!(trust.verdict("::1".parse().unwrap()), Verdict::Denied { by: None });
    }

    #[test]
    fn everyone_in_ipv6_is_not_everyone_in_ipv4() {
        let trust = trust(&["::/0"], &[]);
        assert!(trust.verdict("2001:db8::1".parse().unwrap()).is_trusted());
        assert!(!trust.verdict("::ffff:10.0.0.1".parse().unwrap()).is_trusted());
        assert!(!trust.verdict("10.0.0.1".parse().unwrap()).is_trusted());
    }

    #[test]
    fn host_bits_do_not_matter() {
        assert!(trust(&["10.1.2.3/8"], &[]).verdict("10.200.0.1".parse().unwrap()).is_trusted());
    }

    #[test]
    fn limits_count_ipv6_by_64() {
        for (address, network) in [
            ("192.0.2.7", "192.0.2.7/32"),
            ("::ffff:192.0.2.7", "192.0.2.7/32"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ] {
            assert_eq!(client_network(address.parse().unwrap()), network.parse::<IpNet>().unwrap());
        }
    }

    /// Networks in a small corner of the address space, so that they nest and collide.
    fn network() -> impl Strategy<Value = IpNet> {
        prop_oneof![
            (0_u32..=0xFF, 20_u8..=32).prop_map(|(low, length)| Ipv4Net::new_assert(
                Ipv4Addr::from(0x0A00_0000 | low << 4),
                length
            )
            .into()),
            (0_u128..=0xFF, 112_u8..=128).prop_map(|(low, length)| Ipv6Net::new_assert(
                (0x20 << 120 | low << 4).into(),
                length
            )
            .into()),
        ]
    }

    proptest! {
        /// The rule, said the slow way: of all networks that contain the address the longest, a denial before a trust.
        #[test]
        fn longest_prefix_wins_and_deny_wins_ties(
            trusted in prop::collection::vec(network(), 0..12),
            denied in prop::collection::vec(network(), 0..12),
            address in network(),
        ) {
            let address = address.addr();
            let longest = |networks: &[IpNet]| {
                networks.iter().filter(|network| network.contains(&address)).map(IpNet::prefix_len).max()
            };
            let expected = longest(&trusted) > longest(&denied);
            prop_assert_eq!(Trust::new(trusted, denied).verdict(address).is_trusted(), expected);
        }
    }
}
