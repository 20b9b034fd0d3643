//! How sessions end.

use super::*;

/// A client that dies looks like one that has only nothing more to ask, and while a bind is under way it isn't looked at. A
/// backend that never answered, as one does to a change notification, kept its session for ever.
#[tokio::test]
async fn a_client_that_is_gone_is_not_waited_for_without_end() {
    for asked in [&[Kind::Search][..], &[Kind::Bind, Kind::Search]] {
        let mut stage = Stage::set(512, |_| {}).await;
        for kind in asked {
            stage.client.send(Send { kind: *kind, ..SEARCH }).await;
        }
        let _silent = stage.asked().await;
        drop(stage.client);
        // Only now: a clock that runs ahead of real sockets would end the connect.
        tokio::time::pause();
        let served = timeout(Duration::from_secs(24 * 3600), stage.session).await.expect("it ends within the day");
        assert_eq!(served.expect("no panic").reason(), EndReason::IdleTimeout);
        tokio::time::resume();
    }
}

/// Half a request and a search without an answer, both overdue at the same moment: the search's answer followed the notice.
#[tokio::test]
async fn nothing_follows_the_notice_of_disconnection() {
    let mut stage = Stage::set(512, |settings| {
        settings.limits.operation_timeout = Some(settings.limits.request_timeout);
    })
    .await;
    stage.client.send(SEARCH).await;
    stage.client.writer.write_all(b"\x30").await.expect("a pipe");
    let _silent = stage.asked().await;
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(60)).await;
    stage.client.read_answers().await;
    assert!(stage.client.told, "it is the last word");
    drop(stage.client);
    stage.session.await.expect("no panic");
}

/// A client that left with a request half sent to its backend: the other half began the stream of a new connection.
#[tokio::test]
async fn what_is_left_of_a_request_goes_nowhere_when_the_session_ends() {
    let mut stage = Stage::set(512, admit_larger_than_sockets).await;
    stage.client.send(SEARCH).await;
    let mut upstream = stage.asked().await;

    // The client doesn't read what comes, so that its end is noticed by writing, at the beginning of a turn.
    let mut response = BytesMut::new();
    let message = LdapMsg { msgid: 1, op: entry("1", 0, 2000), ctrl: Vec::new() };
    LdapCodec::default().encode(message, &mut response).expect("memory");
    upstream.write_all(&response).await.expect("a socket");
    const DELETE_REQUEST: u8 = 0x4A;
    stage.client.writer.write_all(&larger_than_sockets(2, DELETE_REQUEST)).await.expect("a pipe");
    arrives(&mut upstream).await;
    drop(stage.client);
    assert_eq!(stage.session.await.expect("no panic").reason(), EndReason::ClientLost);
    let another = stage.listener.into_std().expect("a socket").accept();
    assert_eq!(another.expect_err("nothing more to send").kind(), std::io::ErrorKind::WouldBlock);
}

/// A backend was found lost while sending to it, which ended the session; the same turn went on to a request that had been held
/// behind a bind, and answered it after the notice.
#[tokio::test]
async fn a_held_request_is_not_answered_after_the_notice() {
    let mut stage = Stage::set(64 * 1024, |settings| {
        admit_larger_than_sockets(settings);
        settings.policy = read_only();
    })
    .await;
    stage.client.open.extend([(1, Kind::Compare), (2, Kind::Bind), (3, Kind::Modify)]);
    const COMPARE_REQUEST: u8 = 0x6E;
    stage.client.writer.write_all(&larger_than_sockets(1, COMPARE_REQUEST)).await.expect("a pipe");
    let sasl_bind = b"\x30\x12\x02\x01\x02\x60\x0d\x02\x01\x03\x04\x00\xa3\x06\x04\x04NTLM";
    let modify = b"\x30\x0b\x02\x01\x03\x66\x06\x04\x02cn\x30\x00";
    stage.client.writer.write_all(&[&sasl_bind[..], modify].concat()).await.expect("a pipe");
    // With octets unread, so that the next write fails.
    drop(stage.asked().await);
    while !stage.client.ended {
        stage.client.read_some().await;
    }
    assert!(stage.client.told, "its bind was the backend's");
    drop(stage.client);
    stage.session.await.expect("no panic");
}
