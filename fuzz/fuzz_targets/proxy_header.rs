//! PROXY headers, v1 and v2: cut anywhere they read the same, not one octet too many is taken, and what was read is
//! written and read again.

#![no_main]

use std::net::SocketAddr;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use ldaps_proxy::proxy_protocol::{Error, Header, read_header, write_v2};
use ldaps_proxy_fuzz::clock;
use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncWriteExt as _, duplex};

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

fuzz_target!(|input: &[u8]| {
    let Some((&cut, octets)) = input.split_first() else { return };
    let (whole, rest) = read(octets);
    let taken = octets.len() - rest.len();
    assert!(taken <= 4096, "{taken} octets of header");
    match &whole {
        Ok(header) => {
            assert_eq!(taken, announced(octets), "the octets after a header belong to TLS");
            again(header);
        }
        Err(Error::Io(_)) => assert!(rest.is_empty(), "nothing else ends in memory"),
        Err(Error::Timeout) => panic!("it had everything at once"),
        Err(_) => {}
    }

    let cut = usize::from(cut).min(octets.len());
    let (first, second) = octets.split_at(cut);
    match (&whole, in_two(first, second)) {
        (Ok(whole), Ok(parts)) => assert_eq!(*whole, parts),
        (Err(_), Err(_)) => {}
        (whole, parts) => panic!("{whole:?} in one piece, {parts:?} cut at {cut}"),
    }
});

fn read(mut octets: &[u8]) -> (Result<Header, Error>, &[u8]) {
    let header = clock::block_on(read_header(&mut octets, Duration::from_secs(1)));
    (header, octets)
}

/// The same when the second part comes late.
fn in_two(first: &[u8], second: &[u8]) -> Result<Header, Error> {
    clock::block_on(async {
        let (mut near, mut far) = duplex(first.len().max(second.len()).max(1));
        near.write_all(first).await.expect("there is room");
        let mut reading = pin!(read_header(&mut far, Duration::from_secs(1)));
        if let Poll::Ready(header) = reading.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return header;
        }
        near.write_all(second).await.expect("the first part was taken");
        near.shutdown().await.expect("a pipe");
        reading.await
    })
}

/// How long the header says it is, by the shortest reading of the specification.
fn announced(octets: &[u8]) -> usize {
    if octets.starts_with(SIGNATURE) {
        return 16 + usize::from(u16::from_be_bytes([octets[14], octets[15]]));
    }
    let end = octets.windows(2).position(|pair| pair == b"\r\n").expect("a v1 header ends");
    assert!(octets.starts_with(b"PROXY ") && end + 2 <= 107);
    end + 2
}

fn again(header: &Header) {
    let canonical = |address: SocketAddr| address.ip().to_canonical() == address.ip();
    assert_eq!(header.source.is_some(), header.destination.is_some());
    if let (Some(source), Some(destination)) = (header.source, header.destination) {
        assert!(canonical(source) && canonical(destination));
        let mut octets = Vec::new();
        write_v2(source, destination, &mut octets);
        octets.extend(b"\x16\x03\x01");
        let (read, rest) = read(&octets);
        let read = read.expect("what we write can be read");
        assert_eq!((read.source, read.destination, rest), (header.source, header.destination, &b"\x16\x03\x01"[..]));
    }
    if let Some(endpoint) = &header.vpc_endpoint {
        assert!(endpoint.len() <= 64 && endpoint.bytes().all(|octet| octet.is_ascii_alphanumeric() || octet == b'-'));
    }
}
