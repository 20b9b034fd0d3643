//! Black-box tests with an independent client.

use super::*;
use crate::embedded::{ADMINISTRATOR_PASSWORD, Entry};
use ldap3::adapters::{Adapter, EntriesOnly, PagedResults};
use ldap3::exop::{WhoAmI, WhoAmIResp};
use ldap3::{Ldap, LdapConnAsync, Scope, SearchEntry, SearchOptions};

const BASE: &str = "dc=corp,dc=example,dc=com";

fn any_port() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

fn corp() -> Server {
    Server::bind(any_port(), Arc::new(Directory::corp()), "dc1").expect("a free port")
}

async fn connect(server: &Server) -> Ldap {
    let (connection, ldap) =
        LdapConnAsync::new(&format!("ldap://{}", server.local_addr())).await.expect("the server listens");
    tokio::spawn(connection.drive());
    ldap
}

async fn connect_as_administrator(server: &Server) -> Ldap {
    let mut ldap = connect(server).await;
    let bound = ldap.simple_bind("administrator@corp.example.com", ADMINISTRATOR_PASSWORD).await;
    bound.and_then(ldap3::LdapResult::success).expect("the password is right");
    ldap
}

#[tokio::test]
async fn the_root_dse_is_open_to_all() {
    let server = corp();
    let mut ldap = connect(&server).await;
    let (entries, _) = ldap
        .search("", Scope::Base, "(objectClass=*)", vec!["*"])
        .await
        .expect("an answer")
        .success()
        .expect("success");
    let root = SearchEntry::construct(entries.into_iter().next().expect("one entry"));
    assert_eq!(root.attrs["dnsHostName"], ["dc1.corp.example.com"]);
    assert_eq!(root.attrs["isSynchronized"], ["TRUE"]);
}

#[tokio::test]
async fn administrator_finds_their_entry() {
    let server = corp();
    let mut ldap = connect_as_administrator(&server).await;
    let (mut entries, done) = ldap
        .search(BASE, Scope::Subtree, "(sAMAccountName=administrator)", vec!["*", "+"])
        .await
        .expect("an answer")
        .success()
        .expect("success");
    assert_eq!(entries.len(), 1);
    assert_eq!(done.refs, ["ldap://corp.example.com/CN=Configuration,DC=corp,DC=example,DC=com"]);
    let entry = SearchEntry::construct(entries.remove(0));
    assert_eq!(entry.dn, "CN=Administrator,CN=Users,DC=corp,DC=example,DC=com");
    assert_eq!(entry.attrs["memberOf"], ["CN=Domain Admins,CN=Users,DC=corp,DC=example,DC=com"]);
    assert_eq!(entry.bin_attrs["objectGUID"][0].len(), 16);
    assert!(entry.attrs.contains_key("createTimeStamp"));

    let ldap3::result::ExopResult(answer, _) = ldap.extended(WhoAmI).await.expect("an answer");
    assert_eq!(answer.parse::<WhoAmIResp>().authzid, r"u:CORP\Administrator");
    assert!(ldap.compare(&entry.dn, "cn", "ADMINISTRATOR").await.expect("an answer").equal().expect("a verdict"));
}

#[tokio::test]
async fn paged_and_size_limited_searches() {
    let server = corp();
    let mut ldap = connect_as_administrator(&server).await;
    let adapters: Vec<Box<dyn Adapter<_, _>>> = vec![Box::new(EntriesOnly::new()), Box::new(PagedResults::new(4))];
    let filter = "(objectClass=user)";
    let mut pages =
        ldap.streaming_search_with(adapters, BASE, Scope::Subtree, filter, vec!["cn"]).await.expect("it begins");
    let mut names = Vec::new();
    while let Some(entry) = pages.next().await.expect("an entry or the end") {
        names.push(SearchEntry::construct(entry).dn);
    }
    pages.finish().await.success().expect("success");
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 21);

    let limited = ldap.with_search_options(SearchOptions::new().sizelimit(3));
    let ldap3::SearchResult(entries, result) =
        limited.search(BASE, Scope::Subtree, filter, vec!["1.1"]).await.expect("an answer");
    assert_eq!((entries.len(), result.rc), (3, 4));
}

#[tokio::test]
async fn large_results_arrive_whole() {
    let mut directory = Directory::corp();
    for number in 0..2_000 {
        let entry = Entry::new(&format!("CN=device {number},CN=Computers,{BASE}")).expect("a DN");
        directory.insert(entry.with("objectClass", ["device"]).with("description", ["x".repeat(500)]));
    }
    let server = Server::bind(any_port(), Arc::new(directory), "dc1").expect("a free port");
    let mut ldap = connect_as_administrator(&server).await;
    let found = ldap.search(BASE, Scope::Subtree, "(objectClass=device)", vec!["*"]).await.expect("an answer");
    assert_eq!(found.success().expect("success").0.len(), 2_000);
}

#[tokio::test]
async fn stop_closes_everything_and_the_address_is_free_again() {
    let directory = Arc::new(Directory::corp());
    let server = Server::bind(any_port(), Arc::clone(&directory), "dc1").expect("a free port");
    let address = server.local_addr();
    let mut idle = TcpStream::connect(address).await.expect("the server listens");
    let mut bound = connect_as_administrator(&server).await;
    // The deadline is for a stop that hangs, not for a slow one.
    tokio::time::timeout(Duration::from_secs(30), server.stop()).await.expect("it stops");
    assert_eq!(idle.read(&mut [0]).await.ok(), Some(0), "closed");
    assert!(bound.search("", Scope::Base, "(objectClass=*)", vec!["1.1"]).await.is_err(), "closed");
    assert!(TcpStream::connect(address).await.is_err(), "nobody listens");

    let again = Server::bind(address, directory, "dc1").expect("the address is free");
    connect_as_administrator(&again).await;
}

#[tokio::test]
async fn what_is_no_ldap_gets_a_notice_of_disconnection() {
    let server = corp();
    let mut stream = TcpStream::connect(server.local_addr()).await.expect("the server listens");
    // A SEQUENCE that holds one NULL.
    stream.write_all(&[0x30, 0x02, 0x05, 0x00]).await.expect("written");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("closed in order");
    let oid = b"1.3.6.1.4.1.1466.20036";
    assert!(answer.windows(oid.len()).any(|window| window == oid), "{answer:02X?}");
}

#[tokio::test]
async fn a_request_that_is_too_large_ends_the_connection() {
    let server = corp();
    let mut stream = TcpStream::connect(server.local_addr()).await.expect("the server listens");
    // A SEQUENCE that announces 2 GiB.
    stream.write_all(&[0x30, 0x84, 0x80, 0x00, 0x00, 0x00]).await.expect("written");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("closed in order");
    assert!(!answer.is_empty(), "the notice");
}

#[tokio::test]
async fn a_request_that_cannot_be_decoded_is_answered() {
    let server = corp();
    let mut ldap = connect_as_administrator(&server).await;
    let ldap3::SearchResult(entries, result) =
        ldap.search(BASE, Scope::Subtree, r"(objectGUID=\ff\00)", vec!["1.1"]).await.expect("an answer");
    assert_eq!((entries.len(), result.rc), (0, 2));
    let ldap3::SearchResult(entries, _) =
        ldap.search(BASE, Scope::Base, "(objectClass=*)", vec!["1.1"]).await.expect("the connection goes on");
    assert_eq!(entries.len(), 1);
}
