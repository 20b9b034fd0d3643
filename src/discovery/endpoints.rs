//! From configured sources and the answers of DNS to backends. Pure.

use std::net::{IpAddr, SocketAddr};

use super::answers::{Answer, Answers, Question, Service};
use crate::config::{BackendAddress, BackendSource};
use crate::pool::Endpoint;

/// Backends a pool may have: DNS is not ours, so what it says is bounded.
pub(super) const MOST_ENDPOINTS: usize = 256;
/// The weight of the heaviest SRV record where weights have to be scaled.
const MOST_WEIGHT: u32 = 100;

/// Everything DNS has to be asked for these sources: their names, and the targets of the services known so far.
pub(super) fn questions(sources: &[BackendSource], answers: &Answers) -> Vec<Question> {
    let mut questions = Vec::new();
    let mut ask = |question| {
        if !questions.contains(&question) && questions.len() < MOST_ENDPOINTS {
            questions.push(question);
        }
    };
    for source in sources {
        match &source.address {
            BackendAddress::Socket(_) => {}
            BackendAddress::Host { name, .. } => ask(Question::Host(name.clone())),
            BackendAddress::Service(name) => {
                ask(Question::Service(name.clone()));
                answers.services(name).into_iter().for_each(|service| ask(Question::Host(service.target)));
            }
        }
    }
    questions
}

/// The backends behind these sources, in their order, as far as DNS has answered. Each address appears once.
pub(super) fn endpoints(sources: &[BackendSource], answers: &Answers) -> Vec<Endpoint> {
    let mut endpoints: Vec<Endpoint> = Vec::new();
    let mut add = |endpoint: Endpoint| {
        let is_known = endpoints.iter().any(|known| known.address == endpoint.address);
        if !is_known && endpoints.len() < MOST_ENDPOINTS {
            endpoints.push(endpoint);
        }
    };
    for source in sources {
        let plain = |address: SocketAddr, host: String| Endpoint {
            address,
            host,
            weight: source.weight,
            tier: source.tier,
            max_sessions: source.max_sessions,
        };
        match &source.address {
            BackendAddress::Socket(address) => add(plain(*address, address.ip().to_string())),
            BackendAddress::Host { name, port } => {
                addresses(name, answers).for_each(|ip| add(plain(SocketAddr::new(ip, *port), name.clone())));
            }
            BackendAddress::Service(name) => {
                for (service, weight, tier) in ranked(&answers.services(name)) {
                    for ip in addresses(&service.target, answers) {
                        let endpoint = plain(SocketAddr::new(ip, service.port), service.target.clone());
                        let weight = weight.saturating_mul(source.weight.max(1));
                        add(Endpoint { weight, tier: source.tier.saturating_add(tier), ..endpoint });
                    }
                }
            }
        }
    }
    endpoints
}

/// RFC 2782: the services with their weights and tiers, best first. Each distinct priority is a tier.
fn ranked<'a>(services: &'a [Service]) -> Vec<(&'a Service, u32, u32)> {
    let mut priorities: Vec<_> = services.iter().map(|service| service.priority).collect();
    priorities.sort_unstable();
    priorities.dedup();
    let mut sorted: Vec<_> = services.iter().collect();
    // DNS rotates its answers; our order must not change with them.
    sorted.sort_by_key(|service| {
        (service.priority, std::cmp::Reverse(service.weight), service.target.as_str(), service.port)
    });
    let rank = |service: &'a Service| {
        let tier = priorities.partition_point(|priority| *priority < service.priority);
        (service, weight(service, services), tier as u32)
    };
    sorted.into_iter().map(rank).collect()
}

/// A service's weight of 1 or more among those of its priority. Weight 0 means "seldom" beside others that have one, and
/// nothing where none has. Weights above [`MOST_WEIGHT`] are scaled down.
fn weight(service: &Service, all: &[Service]) -> u32 {
    let equals = || all.iter().filter(|other| other.priority == service.priority).map(|other| other.weight);
    let (most, least) = (equals().max().unwrap_or_default(), equals().min().unwrap_or_default());
    let (weight, most) = (u32::from(service.weight), u32::from(most));
    if most == 0 {
        1
    } else if least == 0 || most > MOST_WEIGHT {
        (weight * MOST_WEIGHT / most).max(1)
    } else {
        weight
    }
}

/// A host's addresses, IPv4 first, in an order that DNS doesn't rotate.
fn addresses(name: &str, answers: &Answers) -> impl Iterator<Item = IpAddr> + use<> {
    let mut addresses = match answers.get(&Question::Host(name.to_owned())) {
        Some(Answer::Addresses(addresses)) => addresses.clone(),
        _ => Vec::new(),
    };
    addresses.sort_unstable();
    addresses.into_iter()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use tokio::time::Instant;

    use super::*;
    use crate::config::Discovery;

    fn source(address: BackendAddress) -> BackendSource {
        BackendSource { address, weight: 1, tier: 0, max_sessions: 0 }
    }

    fn service(priority: u16, weight: u16, port: u16, target: &str) -> Service {
        Service { priority, weight, port, target: target.to_owned() }
    }

    fn answers(known: Vec<(Question, Answer)>) -> Answers {
        let mut answers = Answers::new(&Discovery::default());
        for (question, answer) in known {
            answers.learn(question, answer, Duration::ZERO, Instant::now());
        }
        answers
    }

    fn host(name: &str, addresses: &[&str]) -> (Question, Answer) {
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        (Question::Host(name.to_owned()), Answer::Addresses(addresses))
    }

    fn srv(name: &str, services: Vec<Service>) -> (Question, Answer) {
        (Question::Service(name.to_owned()), Answer::Services(services))
    }

    /// `address host weight tier` of each.
    fn show(endpoints: &[Endpoint]) -> Vec<String> {
        let one = |e: &Endpoint| format!("{} {} {} {}", e.address, e.host, e.weight, e.tier);
        endpoints.iter().map(one).collect()
    }

    #[test]
    fn addresses_and_hosts() {
        let sources = [
            source(BackendAddress::Socket("10.0.1.10:389".parse().unwrap())),
            BackendSource {
                tier: 1,
                weight: 3,
                ..source(BackendAddress::Host { name: "dc.example.com".into(), port: 3389 })
            },
            source(BackendAddress::Host { name: "unknown.example.com".into(), port: 389 }),
        ];
        let answers = answers(vec![host("dc.example.com", &["2001:db8::1", "10.0.1.12", "10.0.1.11"])]);
        assert_eq!(
            show(&endpoints(&sources, &answers)),
            [
                "10.0.1.10:389 10.0.1.10 1 0",
                "10.0.1.11:3389 dc.example.com 3 1",
                "10.0.1.12:3389 dc.example.com 3 1",
                "[2001:db8::1]:3389 dc.example.com 3 1"
            ]
        );
        assert_eq!(questions(&sources, &answers).len(), 2);
    }

    /// RFC 2782, as Active Directory fills it: all 0 100 389.
    #[test]
    fn services_become_tiers_and_weights() {
        const NAME: &str = "_ldap._tcp.corp.example.com";
        let sources = [source(BackendAddress::Service(NAME.into()))];
        let hosts = || ["a", "b", "c"].iter().zip(1..).map(|(name, n)| host(name, &[&format!("10.0.0.{n}")]));
        for (services, expected) in [
            (
                vec![service(0, 100, 389, "b"), service(0, 100, 389, "a")],
                vec!["10.0.0.1:389 a 100 0", "10.0.0.2:389 b 100 0"],
            ),
            (
                vec![service(20, 0, 389, "a"), service(10, 0, 390, "b"), service(30, 5, 389, "c")],
                vec!["10.0.0.2:390 b 1 0", "10.0.0.1:389 a 1 1", "10.0.0.3:389 c 5 2"],
            ),
            // Weight 0 beside others is seldom; large weights are scaled.
            (
                vec![service(0, 0, 389, "a"), service(0, 1, 389, "b")],
                vec!["10.0.0.2:389 b 100 0", "10.0.0.1:389 a 1 0"],
            ),
            (
                vec![service(0, 60000, 389, "a"), service(0, 30000, 389, "b"), service(0, 1, 389, "c")],
                vec!["10.0.0.1:389 a 100 0", "10.0.0.2:389 b 50 0", "10.0.0.3:389 c 1 0"],
            ),
            // Two records for one address: the better one counts.
            (vec![service(0, 1, 389, "a"), service(9, 1, 389, "a")], vec!["10.0.0.1:389 a 1 0"]),
            (vec![service(0, 1, 389, "unresolved")], vec![]),
            // The target "." leaves no service.
            (vec![], vec![]),
        ] {
            let mut known: Vec<_> = hosts().collect();
            known.push(srv(NAME, services));
            assert_eq!(show(&endpoints(&sources, &answers(known))), expected);
        }
    }

    #[test]
    fn the_targets_of_a_service_are_asked_for_once_it_is_known() {
        let sources = [source(BackendAddress::Service("_ldap._tcp.x".into()))];
        let first = Question::Service("_ldap._tcp.x".into());
        assert_eq!(questions(&sources, &answers(vec![])), std::slice::from_ref(&first));
        let known = answers(vec![srv("_ldap._tcp.x", vec![service(0, 0, 389, "a"), service(1, 0, 389, "a")])]);
        assert_eq!(questions(&sources, &known), [first, Question::Host("a".into())]);
    }

    proptest! {
        /// Whatever order DNS answers in, the backends are the same in the same order; a better priority is a lower tier;
        /// among equals a heavier record never weighs less.
        #[test]
        fn order_and_ranks(records in prop::collection::vec((0_u16..3, any::<u16>(), 1_u8..20), 1..12), turn in 0_usize..12) {
            let names: Vec<_> = (1..20).map(|n| (format!("dc{n}"), format!("10.0.0.{n}"))).collect();
            let mut services: Vec<_> =
                records.iter().map(|(priority, weight, n)| service(*priority, *weight, 389, &format!("dc{n}"))).collect();
            let sources = [source(BackendAddress::Service("s".into()))];
            let resolve = |services: Vec<Service>| {
                let mut known: Vec<_> = names.iter().map(|(name, ip)| host(name, &[ip])).collect();
                known.push(srv("s", services));
                endpoints(&sources, &answers(known))
            };
            let before = resolve(services.clone());
            let len = services.len();
            services.rotate_left(turn % len);
            prop_assert_eq!(&resolve(services.clone()), &before);
            let ranked = ranked(&services);
            for (a, weight_a, tier_a) in &ranked {
                for (b, weight_b, tier_b) in &ranked {
                    prop_assert_eq!(a.priority < b.priority, tier_a < tier_b);
                    if a.priority == b.priority && a.weight <= b.weight {
                        prop_assert!(weight_a <= weight_b);
                    }
                }
                prop_assert!(*weight_a >= 1);
            }
        }

        #[test]
        fn bounded(count in 1_usize..600) {
            let many: Vec<_> = (0..count).map(|n| format!("10.1.{}.{}", n / 250, n % 250)).collect();
            let many: Vec<_> = many.iter().map(String::as_str).collect();
            let sources = [source(BackendAddress::Host { name: "dc".into(), port: 389 })];
            prop_assert_eq!(endpoints(&sources, &answers(vec![host("dc", &many)])).len(), count.min(MOST_ENDPOINTS));
        }
    }
}
