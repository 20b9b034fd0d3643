use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use hickory_resolver::proto::op::Message;
use hickory_resolver::proto::rr::rdata::A;
use hickory_resolver::proto::rr::{RData, Record, RecordType};
use hickory_resolver::proto::serialize::binary::BinDecodable as _;
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::*;
use crate::log::LogHandle;

/// A name server that answers nobody until it has been asked for so many names.
async fn name_server(names: usize) -> (SocketAddr, JoinHandle<()>) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a free port");
    let address = socket.local_addr().expect("it is bound");
    let answering = async move {
        let (mut asked, mut waiting, mut datagram) = (HashSet::new(), Vec::new(), [0; 2048]);
        loop {
            let (length, client) = socket.recv_from(&mut datagram).await.expect("loopback works");
            let query = Message::from_bytes(&datagram[..length]).expect("a query");
            let question = query.queries[0].clone();
            asked.insert(question.name().to_utf8());
            let mut answer = Message::response(query.metadata.id, query.metadata.op_code);
            if question.query_type() == RecordType::A {
                answer.add_answer(Record::from_rdata(question.name().clone(), 60, RData::A(A(Ipv4Addr::LOCALHOST))));
            }
            answer.add_query(question);
            waiting.push((answer.to_vec().expect("it can be encoded"), client));
            if asked.len() == names {
                for (answer, client) in waiting.drain(..) {
                    socket.send_to(&answer, client).await.expect("loopback works");
                }
            }
        }
    };
    (address, tokio::spawn(answering))
}

/// A regression test: each pool waited for the names of the one before it, which takes seconds where DNS is out, and no listener
/// opened before the last was done.
#[tokio::test]
async fn pools_ask_for_their_names_at_the_same_time() {
    let (name_server, answering) = name_server(3).await;
    let pool = |name| {
        format!(
            "[pools.{name}]\nbackends = [\"{name}.example.com:1\"]\n[pools.{name}.discovery]\nname_servers = [\"{name_server}\"]\n"
        )
    };
    let listener = "[[listener]]\nname = \"corp\"\naddress = \"127.0.0.1:0\"\nprotocol = \"ldap\"\n\
        trusted_networks = [\"127.0.0.1/32\"]\npool = \"a\"\n";
    let text = [listener.to_owned(), pool("a"), pool("b"), pool("c")].concat();
    let config = config::parse(&text, Path::new("test.toml")).expect("the file is right").config;
    let proxy = Proxy::start_without_file(config, LogHandle::of_no_log()).await.expect("it starts");
    for (name, running) in &proxy.state().parts.pools {
        assert_eq!(running.pool.backends().len(), 1, "{name} has asked before the others");
    }
    proxy.drain(std::future::ready(())).await;
    answering.abort();
}

/// A regression test: the warm connections of a pool that a reload had taken away or made anew stayed open, at both ends, for as
/// long as a session held one of its backends.
#[tokio::test]
async fn a_pool_that_goes_leaves_no_warm_connection() {
    let backend = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let text = format!(
        "[[listener]]\nname = \"corp\"\naddress = \"127.0.0.1:0\"\nprotocol = \"ldap\"\n\
        trusted_networks = [\"127.0.0.1/32\"]\npool = \"p\"\n\
        [pools.p]\nbackends = [\"{}\"]\nwarm = 2\n[pools.p.health]\nprobe = \"tcp\"\ninterval = \"1h\"\n",
        backend.local_addr().expect("it is bound")
    );
    let config = config::parse(&text, Path::new("test.toml")).expect("the file is right").config;
    let proxy = Proxy::start_without_file(config, LogHandle::of_no_log()).await.expect("it starts");
    // The probe's, and one after the other the warm ones: the first of them is in stock once the second is there.
    let mut connections = Vec::new();
    for _ in 0..3 {
        connections.push(in_time(backend.accept()).await.expect("loopback works").0);
    }
    let before = proxy.state().parts.pools.clone();
    let held = before["p"].pool.backends();
    proxy.carry_out_pools(BTreeMap::new(), &before);
    for mut connection in connections {
        assert_eq!(in_time(connection.read(&mut [0])).await.expect("it ends in order"), 0);
    }
    drop(held);
    proxy.drain(std::future::ready(())).await;
}

/// Long enough for any machine; a test that waits this long has failed.
async fn in_time<T>(future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(60), future).await.expect("nothing happened for a minute")
}
