//! What a watcher takes over from the one before a reload.

use super::*;

/// The pool that a reload makes of `before`, with these probes.
fn renewed(before: &Pool, health: config::Health) -> Arc<Pool> {
    let settings = config::Pool { health, ..(**before.settings()).clone() };
    let connector = Connector::new(&settings).unwrap();
    let pool = Pool::new(Arc::new(settings), connector, Metrics::new(), mpsc::channel(64).0);
    let endpoint = |backend: &Arc<Backend>| Endpoint {
        address: backend.address(),
        host: backend.host().to_owned(),
        weight: 1,
        tier: 0,
        max_sessions: 0,
    };
    pool.succeed(before, &before.backends().iter().map(endpoint).collect::<Vec<_>>());
    Arc::new(pool)
}

/// A regression test: a reload that changed anything of a pool made its watcher forget all it knew. One probe without an answer
/// took a backend down and its sessions off it, an ejected one was back at once, and none that came back had ever been away.
#[tokio::test]
async fn a_watcher_goes_on_where_the_one_before_a_reload_was() {
    const PASS: Outcome = Ok(Duration::from_millis(1));
    let silent = || Err(Failure::Silent(Duration::from_secs(2)));
    let addresses = [1, 2].map(|last| SocketAddr::from(([10, 0, 0, last], 389)));
    let health = cheap(once(ProbeKind::RootDse));
    let now = Instant::now();
    for (case, before, changed, after, expected, returns) in [
        ("a good name", vec![PASS], false, vec![silent(), silent()], Health::Up, false),
        ("failures", vec![PASS, silent(), silent()], false, vec![silent()], Health::Down, false),
        ("a fall", vec![silent()], false, vec![PASS], Health::Down, false),
        ("a fall", vec![silent()], false, vec![PASS, PASS], Health::Up, true),
        // Another probe has to fail as often, and may pass at once.
        ("a good name", vec![PASS, silent(), silent()], true, vec![silent(), silent()], Health::Up, false),
        ("a fall", vec![silent()], true, vec![PASS], Health::Up, true),
    ] {
        // Only what is awaited lets checkers run, and nothing is.
        let mut pool = Arc::clone(&Watched::start(health.clone(), &addresses).pool);
        let memory = Memory::default();
        let returned = Mutex::new(false);
        for (round, outcomes) in [before, after].into_iter().enumerate() {
            if round == 1 {
                let mut health = health.clone();
                health.cheap.timeout += Duration::from_secs(u64::from(changed));
                pool = renewed(&pool, health);
            }
            let on_change = |change: &Change| *returned.lock().unwrap() = change.is_return();
            let mut watcher = Watcher::new(Arc::clone(&pool), mpsc::channel(1).0, on_change).after(memory.clone());
            watcher.follow(&pool.backends());
            for outcome in outcomes {
                let backend = Arc::clone(&pool.backends()[0]);
                watcher.take_report(&Report { backend, depth: Depth::Cheap, outcome }, now);
            }
        }
        assert_eq!((pool.backends()[0].health(), *returned.lock().unwrap()), (expected, returns), "{case}");
    }
}

/// Its sessions that are there again, since there is no better one, must not be sent away once more.
#[tokio::test]
async fn a_backend_that_was_silent_before_a_reload_is_not_lost_again() {
    let addresses = [SocketAddr::from(([10, 0, 0, 1], 389))];
    let health = cheap(once(ProbeKind::RootDse));
    let mut pool = Arc::clone(&Watched::start(health.clone(), &addresses).pool);
    let (memory, losses) = (Memory::default(), Mutex::new(0));
    for losses_so_far in [1, 1] {
        let on_change = |change: &Change| *losses.lock().unwrap() += usize::from(change.is_loss());
        let mut watcher = Watcher::new(Arc::clone(&pool), mpsc::channel(1).0, on_change).after(memory.clone());
        watcher.follow(&pool.backends());
        let backend = Arc::clone(&pool.backends()[0]);
        let outcome = Err(Failure::Silent(Duration::from_secs(2)));
        watcher.take_report(&Report { backend, depth: Depth::Cheap, outcome }, Instant::now());
        assert_eq!(*losses.lock().unwrap(), losses_so_far);
        pool = renewed(&pool, health.clone());
    }
}

/// A regression test, as above: five minutes outside were over with the first probe after a reload.
#[tokio::test]
async fn an_ejection_outlasts_a_reload() {
    let addresses = [1, 2].map(|last| SocketAddr::from(([10, 0, 0, last], 389)));
    let health = cheap(once(ProbeKind::RootDse));
    let before = Arc::clone(&Watched::start(health.clone(), &addresses).pool);
    let memory = Memory::default();
    let watch = |pool: &Arc<Pool>| {
        let mut watcher = Watcher::new(Arc::clone(pool), mpsc::channel(1).0, |_: &Change| {}).after(memory.clone());
        watcher.follow(&pool.backends());
        watcher
    };
    let pass = |pool: &Pool| Report {
        backend: Arc::clone(&pool.backends()[0]),
        depth: Depth::Cheap,
        outcome: Ok(Duration::from_millis(1)),
    };
    let now = Instant::now();
    let mut watcher = watch(&before);
    watcher.take_report(&pass(&before), now);
    for last in 1..=3 {
        let backend = Arc::clone(&before.backends()[0]);
        let client = IpAddr::from([192, 0, 2, last]);
        watcher.take_event(&Event { backend, client, kind: EventKind::ConnectFailed }, now);
    }
    assert_eq!(before.backends()[0].health(), Health::Down);

    let after = renewed(&before, health);
    let mut watcher = watch(&after);
    watcher.take_report(&pass(&after), now);
    assert_eq!(after.backends()[0].health(), Health::Down, "it lasts 5 s");
    watcher.take_report(&pass(&after), now + Duration::from_secs(5));
    assert_eq!(after.backends()[0].health(), Health::Up);
}
