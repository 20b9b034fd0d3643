//! How much is done at once, in what order, and how it is counted.

use std::sync::atomic::Ordering;

use super::*;

/// A modify, where only reading is allowed.
const REFUSED: &[u8] = b"\x30\x0b\x02\x01\x03\x66\x06\x04\x02cn\x30\x00";

/// A client that floods the proxy with what it refuses had 512 refusals a turn, and 61 turns before the worker looked at other
/// sockets.
#[tokio::test]
async fn a_flood_of_refused_requests_gives_way_to_other_sockets() {
    let mut stage = Stage::set(1 << 20, |settings| settings.policy = read_only()).await;
    let handle = Arc::clone(&stage.registry.sessions()[0]);
    let octets_said = || handle.sent.load(Ordering::Relaxed);
    stage.client.writer.write_all(REFUSED).await.expect("a pipe");
    stage.client.read_some().await;
    let one_answer = octets_said();

    let (mut near, mut far) = tokio::net::UnixStream::pair().expect("a pair of sockets");
    tokio::spawn(async move {
        let (mut said, mut echo) = far.split();
        tokio::io::copy(&mut said, &mut echo).await
    });
    stage.client.writer.write_all(&REFUSED.repeat(4000)).await.expect("a pipe");
    while octets_said() == one_answer {
        tokio::task::yield_now().await;
    }
    for _ in 0..10 {
        let before = octets_said();
        near.write_u8(1).await.expect("a socket");
        near.read_u8().await.expect("an echo");
        let meanwhile = (octets_said() - before) / one_answer;
        assert!((1..64).contains(&meanwhile), "{meanwhile} refusals while an octet went there and back");
    }
}

/// Commands were looked at when nothing else was to be done, and a long result from a quick backend always left something.
#[tokio::test]
async fn a_long_result_is_ended_at_once() {
    let mut stage = Stage::set(1 << 20, |_| {}).await;
    stage.client.send(SEARCH).await;
    let mut upstream = stage.asked().await;
    let mut part = BytesMut::new();
    LdapCodec::default()
        .encode(LdapMsg { msgid: 1, op: entry("1", 0, 2000), ctrl: Vec::new() }, &mut part)
        .expect("memory");
    tokio::spawn(async move { while upstream.write_all(&part.repeat(500)).await.is_ok() {} });
    let Client { mut reader, writer: _open, .. } = stage.client;
    tokio::spawn(async move { tokio::io::copy(&mut reader, &mut tokio::io::sink()).await });
    let handle = Arc::clone(&stage.registry.sessions()[0]);
    while handle.sent.load(Ordering::Relaxed) < 10_000_000 {
        tokio::task::yield_now().await;
    }
    handle.command(registry::Command::Kill);
    let served = timeout(Duration::from_secs(60), &mut stage.session).await.expect("it ends");
    assert_eq!(served.expect("no panic").reason(), EndReason::Killed);
}

/// More than a turn's worth at once, and nothing after it.
#[tokio::test]
async fn what_is_left_for_the_next_turn_is_answered_after_a_half_close() {
    let mut stage = Stage::set(1 << 16, |settings| settings.policy = read_only()).await;
    stage.client.writer.write_all(&REFUSED.repeat(500)).await.expect("a pipe");
    stage.client.writer.shutdown().await.expect("a pipe");
    let mut answers = BytesMut::new();
    while stage.client.reader.read_buf(&mut answers).await.expect("a pipe") > 0 {}
    let mut codec = LdapCodec::default();
    let count = std::iter::from_fn(|| codec.decode(&mut answers).expect("whole responses")).count();
    assert_eq!(count, 500);
    assert_eq!(stage.session.await.expect("no panic").reason(), EndReason::ClientClosed);
}

/// Operations that are answered in one read are counted together where they are alike, and only there.
#[tokio::test]
async fn unlike_results_in_one_read_are_counted_apart() {
    let mut metrics = None;
    let mut stage = Stage::set(1 << 16, |settings| metrics = Some(Arc::clone(&settings.metrics))).await;
    let metrics = metrics.expect("the settings have some");
    let kinds = [Kind::Search, Kind::Search, Kind::Search, Kind::Modify, Kind::Search];
    // All in one write: what began at another time is counted apart anyway.
    let requests: Vec<u8> = kinds.into_iter().filter_map(|kind| stage.client.request(kind)).flatten().collect();
    stage.client.writer.write_all(&requests).await.expect("a pipe");
    let mut upstream = stage.asked().await;
    let results = [
        (0, OperationKind::Search),
        (0, OperationKind::Search),
        (51, OperationKind::Search),
        (50, OperationKind::Modify),
        (0, OperationKind::Search),
    ];
    let result = |((code, kind), id)| ldap::reply::result(kind, id, ldap::ResultCode(code), "");
    let answers: Vec<u8> = results.into_iter().zip(1..).flat_map(result).collect();
    upstream.write_all(&answers).await.expect("a socket");
    stage.client.read_answers().await;
    let counted = |kind, code| metrics.operations.total(kind, code);
    assert_eq!([counted(OperationKind::Search, 0), counted(OperationKind::Search, 51)], [3, 1]);
    assert_eq!([counted(OperationKind::Modify, 50), counted(OperationKind::Modify, 0)], [1, 0]);
}
