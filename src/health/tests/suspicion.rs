//! What a probe that real traffic has asked for finds out.

use super::*;

/// A regression test: where only new connections failed (a rule of a firewall taken away, an accept loop that is stuck), the probe
/// passed on the connection it had kept, and the backend stayed up for ever, the favourite of `least-connections`.
#[tokio::test]
async fn a_backend_that_takes_no_new_connections_is_down_though_old_ones_work() {
    let dc = Dc::start().await;
    let mut watched = Watched::start(cheap(often(ProbeKind::RootDse)), &[dc.address]);
    assert_eq!(watched.change().await.verdict.health, Health::Up);
    dc.tell(|script| script.closed_to_new = true);
    watched.pool.backends()[0].report(client(1), EventKind::ConnectFailed);
    let change = watched.change().await;
    assert!(change.verdict.health == Health::Down && !change.is_loss(), "its sessions may finish: {change:?}");
    assert!(change.verdict.reason.starts_with("it answers on an old connection, but takes no new one: "), "{change:?}");
    // For as long as that is so.
    let asked = dc.seen().on(1).len();
    dc.until(|script| script.on(1).len() > asked + 10).await;
    assert_eq!(watched.pool.backends()[0].health(), Health::Down);
    dc.tell(|script| script.closed_to_new = false);
    assert!(watched.change().await.is_return());
}

/// Nobody answers on either, which needs no second probe.
#[tokio::test]
async fn a_suspect_that_answers_on_no_connection_is_lost_at_once() {
    let dc = Dc::start().await;
    let probe = config::Probe { timeout: Duration::from_secs(1), ..once(ProbeKind::RootDse) };
    let mut watched = Watched::start(cheap(probe), &[dc.address]);
    assert_eq!(watched.change().await.verdict.health, Health::Up);
    dc.tell(|script| script.silent = true);
    watched.pool.backends()[0].report(client(1), EventKind::TimedOut);
    let change = watched.change().await;
    assert!(change.is_loss(), "{change:?}");
    assert_eq!(change.verdict.reason, "no answer within 1s");
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
