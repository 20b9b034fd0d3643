//! What the access log tells of an operation and of a session.

use std::cell::OnceCell;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use crate::buffer::Lent;
use crate::failure::{EndReason, Refusal, SubCode};
use crate::ldap::{OperationKind, ResultCode};

/// Who: the part that all records of a session share. Cheap to make anew for each record.
#[derive(Debug, Clone, Copy)]
pub struct Who<'a> {
    /// The session's number, unique in this process.
    pub session: u64,
    /// The client, as announced by PROXY protocol where that is believed.
    pub client: SocketAddr,
    /// The listener's name.
    pub listener: &'a str,
    /// What the handshake settled; `None` in cleartext.
    pub tls: Option<&'a TlsFacts>,
    /// The name the session is bound as; `None` when anonymous.
    pub bound_as: Option<&'a str>,
    /// All of this as the session's log writes it, once it has.
    pub written: &'a OnceCell<Box<[u8]>>,
}

/// What a handshake settled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFacts {
    /// "1.3", "1.2"
    pub version: &'static str,
    /// The suite's name.
    pub suite: &'static str,
    /// The name the client asked for.
    pub server_name: Option<Box<str>>,
    /// The subject of the client's certificate.
    pub client_certificate: Option<Box<str>>,
}

/// One operation, written when it has ended.
#[derive(Debug, Clone, Copy)]
pub struct OperationRecord<'a> {
    /// When it ended.
    pub time: SystemTime,
    /// Whose it was.
    pub who: Who<'a>,
    /// Its messageID.
    pub message_id: u32,
    /// What it was.
    pub operation: OperationKind,
    /// What it asked for.
    pub request: &'a RequestPart,
    /// Who answered; `None` if the proxy did.
    pub backend: Option<&'a str>,
    /// The result; `None` where the protocol has none (unbind, abandon, an abandoned operation).
    pub result: Option<ResultCode>,
    /// AD's reason for a failed bind.
    pub sub_code: Option<SubCode>,
    /// Why the proxy answered instead of a backend.
    pub refusal: Option<Refusal>,
    /// Entries delivered.
    pub entries: u64,
    /// References delivered.
    pub references: u64,
    /// Bytes of the request.
    pub bytes_in: u64,
    /// Bytes of all its responses.
    pub bytes_out: u64,
    /// Times it was sent again to another backend.
    pub retries: u32,
    /// Where its time went.
    pub timing: Timing,
}

/// Where an operation's time went; in microseconds when written.
#[derive(Debug, Clone, Copy, Default)]
pub struct Timing {
    /// Waiting for a backend below its `max_sessions`, and for a turn to connect to it.
    pub queue: Duration,
    /// Opening an upstream and replaying the bind.
    pub connect: Duration,
    /// The rest of `total`: what the backend took, and the proxy itself.
    pub backend: Duration,
    /// From when the whole request was taken up to when its final response was in, or answered by the proxy.
    pub total: Duration,
}

/// One session, written when it has ended.
#[derive(Debug, Clone, Copy)]
pub struct SessionRecord<'a> {
    /// When it ended.
    pub time: SystemTime,
    /// Whose it was, as bound at the end.
    pub who: Who<'a>,
    /// The last backend it used.
    pub backend: Option<&'a str>,
    /// Whether it ended as a tunnel.
    pub tunnel: bool,
    /// Operations.
    pub operations: u64,
    /// Times it went on with another backend.
    pub failovers: u64,
    /// Bytes from the client.
    pub bytes_in: u64,
    /// Bytes to the client.
    pub bytes_out: u64,
    /// How long it lasted.
    pub duration: Duration,
    /// Why it ended.
    pub ended: EndReason,
}

/// What its request adds to an operation's record; made by [`super::AccessLog::describe`] when it arrives.
#[derive(Debug)]
pub struct RequestPart {
    /// As it stands in the log's line.
    pub(super) written: Lent,
    /// For the span.
    #[cfg(feature = "otlp")]
    pub(super) attributes: Vec<opentelemetry::KeyValue>,
}

impl RequestPart {
    /// Octets it takes.
    pub fn octets(&self) -> usize {
        self.written.len()
    }
}

/// How durations are written.
pub(super) fn microseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
