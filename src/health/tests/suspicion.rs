//! What a probe that real traffic has asked for finds out.

use super::*;

/// A regression test: where only new connections failed (a rule of a firewall taken away, an accept loop that is stuck), the probe
/// passed on the connection it had kept, and the backend stayed up for ever, the favourite of `least-connections`.
#[tokio::test]
async fn a_backend_that_takes_no_new_connections_is_down_though_old_ones_work() {
    let dc = Dc::start().await;
    let mut watched = Watched::start(cheap(once(ProbeKind::RootDse)), &[dc.address]);
    assert_eq!(watched.change().await.verdict.health, Health::Up);
    dc.tell(|script| script.closed_to_new = true);
    watched.pool.backends()[0].report(client(1), EventKind::ConnectFailed);
    watched.probes(|probes| probes.len() == 2).await;
    assert!(watched.pool.backends()[0].account().probes[0].failure.is_some(), "it went over the old connection");
    assert_eq!(watched.change().await.verdict.health, Health::Down);
}

/// What the probe learned on a new connection is kept, so that the next ones make no noise.
#[tokio::test]
async fn the_connection_of_a_suspicious_probe_is_kept() {
    let dc = Dc::start().await;
    let mut watched = Watched::start(cheap(often(ProbeKind::RootDse)), &[dc.address]);
    assert_eq!(watched.change().await.verdict.health, Health::Up);
    watched.pool.backends()[0].report(client(1), EventKind::ConnectFailed);
    dc.until(|script| script.on(2).len() >= 10).await;
    assert_eq!((dc.seen().connections, watched.pool.backends()[0].health()), (2, Health::Up));
}
