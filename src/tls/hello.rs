//! A client's hello as it arrives: nothing is computed for one that isn't whole.

use std::io;
use std::task::{Context, Poll, ready};

use crate::buffer::{Inbox, Source};

/// Octets of the longest message that rustls takes.
const MOST: usize = 0xFFFF;
/// Octets that may be received for it: somebody might put each of its octets into a record of its own.
pub(super) const MOST_RECEIVED: usize = 2 * MOST;

/// How much of a ClientHello has arrived. Each record is looked at once, since there may be thousands.
#[derive(Debug, Default)]
pub(super) struct Hello {
    /// Whether a HelloRetryRequest has asked for it.
    second: bool,
    /// Octets that were there before it was waited for.
    known: usize,
    /// Where the first record begins that hasn't been looked at.
    next: usize,
    /// Octets of the message before that.
    length: usize,
    /// The first of them: its type and its length.
    header: [u8; 4],
}

impl Hello {
    /// A further one. It needs more than these octets: with them, nothing was to be done.
    pub(super) fn after(known: &[u8]) -> Self {
        Self { second: true, known: known.len(), ..Self::default() }
    }

    /// Reads until the hello is whole, or something else has come.
    pub(super) fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        inbox: &mut Inbox,
        io: &mut (impl Source + Unpin),
    ) -> Poll<io::Result<()>> {
        while !self.is_whole(inbox.unread()) {
            if inbox.unread().len() > MOST_RECEIVED {
                let error = "the client's hello comes in too many pieces";
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, error)));
            }
            let filled = inbox.poll_fill(cx, io);
            if filled.is_pending() {
                inbox.shrink();
            }
            if ready!(filled)? == 0 {
                let error = "the client closed the connection";
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::UnexpectedEof, error)));
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Whether `octets`, in which only more may have come since the last time, hold all of it. What isn't a hello is a failed
    /// handshake's to tell, and so is a record that mustn't be there.
    fn is_whole(&mut self, octets: &[u8]) -> bool {
        const CHANGE_CIPHER_SPEC: u8 = 20;
        const HANDSHAKE: u8 = 22;
        const CLIENT_HELLO: u8 = 1;

        if octets.len() <= self.known {
            return false;
        }
        loop {
            let (kind, length, record) = match &octets[self.next..] {
                [kind @ (HANDSHAKE | CHANGE_CIPHER_SPEC), _, _, high, low, record @ ..] => {
                    (*kind, usize::from(u16::from_be_bytes([*high, *low])), record)
                }
                [HANDSHAKE | CHANGE_CIPHER_SPEC, ..] | [] => return false,
                _ => return true,
            };
            let Some(content) = record.get(..length) else { return false };
            self.next += 5 + length;
            match kind {
                // One of these may come before a second hello (RFC 8446 appendix D.4).
                CHANGE_CIPHER_SPEC if self.second && length == 1 => continue,
                HANDSHAKE if length > 0 => {}
                _ => return true,
            }
            for (place, octet) in self.header.iter_mut().skip(self.length).zip(content) {
                *place = *octet;
            }
            self.length += length;
            let [kind, high, middle, low] = self.header;
            let whole = 4 + u32::from_be_bytes([0, high, middle, low]) as usize;
            if kind != CLIENT_HELLO || (self.length >= 4 && (whole > MOST || self.length >= whole)) {
                return true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHANGE_CIPHER_SPEC: &[u8] = b"\x14\x03\x03\x00\x01\x01";

    /// A message in records of so many octets.
    fn records(message: &[u8], octets: usize) -> Vec<u8> {
        let record =
            |piece: &[u8]| [b"\x16\x03\x01", &u16::try_from(piece.len()).unwrap().to_be_bytes()[..], piece].concat();
        message.chunks(octets).flat_map(record).collect()
    }

    fn message(kind: u8, length: usize) -> Vec<u8> {
        let header = u32::try_from(length).unwrap().to_be_bytes();
        [&[kind], &header[1..], &vec![7; length]].concat()
    }

    /// How many of `octets`, which come one by one, it waits for.
    fn waits_for(mut hello: Hello, octets: &[u8]) -> Option<usize> {
        (0..=octets.len()).find(|count| hello.is_whole(&octets[..*count]))
    }

    #[test]
    fn a_hello_is_awaited_whole_in_however_many_records() {
        for length in [0, 1, 300, 0xFFFF - 4] {
            let hello = message(1, length);
            for octets in [1, 3, 5, 250, 16 * 1024] {
                let records = records(&hello, octets);
                assert_eq!(waits_for(Hello::default(), &[&records, b"more".as_slice()].concat()), Some(records.len()));
                let second = [CHANGE_CIPHER_SPEC, &records].concat();
                assert_eq!(waits_for(Hello::after(b""), &second), Some(second.len()));
            }
        }
    }

    #[test]
    fn what_is_no_hello_is_not_awaited() {
        for (octets, expected) in [
            (b"\x30\x0c\x02\x01".to_vec(), 1),
            (CHANGE_CIPHER_SPEC.to_vec(), 6),
            (b"\x16\x03\x01\x00\x00".to_vec(), 5),
            // Not a ClientHello, and one that is too long.
            (records(&message(2, 300), 100), 105),
            (records(&message(1, 0x10000), 100), 105),
            // Something else in the middle of it.
            ([&records(&message(1, 300), 100)[..105], b"\x15\x03\x03"].concat(), 106),
        ] {
            assert_eq!(waits_for(Hello::default(), &octets), Some(expected), "{:02x?}", &octets[..4]);
        }
        // With what was there, rustls had nothing to do.
        assert_eq!(waits_for(Hello::after(b"\x17"), b"\x17\x03\x03"), Some(2));
    }

    #[tokio::test]
    async fn a_hello_in_too_many_records_is_refused() {
        let mut octets = records(&message(1, 0xFFFF - 4), 1);
        octets.pop();
        let (mut io, mut inbox, mut hello) = (octets.as_slice(), Inbox::default(), Hello::default());
        let received = std::future::poll_fn(|cx| hello.poll_receive(cx, &mut inbox, &mut io)).await;
        assert_eq!(received.unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert!(inbox.unread().len() < 3 * MOST);
    }
}
