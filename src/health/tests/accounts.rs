//! What the backends are held to while the account of their probes can't log in.

use super::*;

/// A regression test: the rootDSE that is read instead was held to `expect`, which a `bind` probe doesn't look at. A password that
/// had expired took the whole pool down.
#[tokio::test]
async fn an_account_that_cannot_log_in_changes_no_state_whatever_is_expected() {
    let secrets = tempfile::tempdir().unwrap();
    let account = as_account(often(ProbeKind::Bind), &secrets);
    let expect = [("isSynchronized".to_owned(), "FALSE".to_owned())].into();
    let refused = config::Probe { expect, ..account };
    let unreadable = config::Probe { password_file: Some(secrets.path().join("nowhere")), ..refused.clone() };
    for probe in [refused, unreadable] {
        let dc = Dc::start().await;
        dc.tell(|script| script.bind = ResultCode::INVALID_CREDENTIALS);
        let mut watched = Watched::start(cheap(probe), &[dc.address]);
        let change = watched.change().await;
        assert_eq!((change.before, change.verdict.health), (Health::Unknown, Health::Up), "{change:?}");
        watched.probes(|probes| probes.len() == 10 && probes.iter().all(|probe| probe.failure.is_none())).await;
        assert!(watched.metrics.render().contains("ldaps_proxy_probe_account_refused{pool=\"p\"} 1"));
    }
}
