//! What the access log tells of an operation and of a session.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use serde::{Serialize, Serializer};

use super::render::Timestamp;
use crate::failure::{EndReason, Refusal, SubCode};
use crate::ldap::{OperationKind, ResultCode};

/// Who: the part that all records of a session share. Cheap to make anew for each record.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Who<'a> {
    /// The session's number, unique in this process.
    pub session: u64,
    /// The client, as announced by PROXY protocol where that is believed.
    pub client: SocketAddr,
    /// The listener's name.
    pub listener: &'a str,
    /// What the handshake settled; `None` in cleartext.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<&'a TlsFacts>,
    /// The name the session is bound as; `None` when anonymous.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bound_as: Option<&'a str>,
}

/// What a handshake settled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TlsFacts {
    /// "1.3", "1.2"
    pub version: &'static str,
    /// The suite's name.
    pub suite: &'static str,
    /// The name the client asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_name: Option<Box<str>>,
    /// The subject of the client's certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_certificate: Option<Box<str>>,
}

/// One operation, written when it has ended.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct OperationRecord<'a> {
    /// When it ended.
    #[serde(serialize_with = "time")]
    pub time: SystemTime,
    /// Whose it was.
    #[serde(flatten)]
    pub who: Who<'a>,
    /// Its messageID.
    pub message_id: u32,
    /// What it was.
    #[serde(serialize_with = "kind")]
    pub operation: OperationKind,
    /// What it asked for.
    #[serde(flatten)]
    pub request: &'a Described,
    /// Who answered; `None` if the proxy did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<&'a str>,
    /// The result; `None` where the protocol has none (unbind, abandon, an abandoned operation).
    #[serde(flatten, serialize_with = "result")]
    pub result: Option<ResultCode>,
    /// AD's reason for a failed bind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sub_code: Option<SubCode>,
    /// Why the proxy answered instead of a backend.
    #[serde(skip_serializing_if = "Option::is_none")]
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
    #[serde(flatten)]
    pub timing: Timing,
}

/// Where an operation's time went; in microseconds when written.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Timing {
    /// Waiting for a backend below its `max_sessions`, and for a turn to connect to it.
    #[serde(rename = "queue_us", serialize_with = "microseconds")]
    pub queue: Duration,
    /// Opening an upstream and replaying the bind.
    #[serde(rename = "connect_us", serialize_with = "microseconds")]
    pub connect: Duration,
    /// From the request's last byte out to the final response's last byte in.
    #[serde(rename = "backend_us", serialize_with = "microseconds")]
    pub backend: Duration,
    /// From the request's last byte in to the final response's last byte out.
    #[serde(rename = "total_us", serialize_with = "microseconds")]
    pub total: Duration,
}

/// One session, written when it has ended.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct SessionRecord<'a> {
    /// When it ended.
    #[serde(serialize_with = "time")]
    pub time: SystemTime,
    /// Whose it was, as bound at the end.
    #[serde(flatten)]
    pub who: Who<'a>,
    /// The last backend it used.
    #[serde(skip_serializing_if = "Option::is_none")]
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
    #[serde(rename = "duration_us", serialize_with = "microseconds")]
    pub duration: Duration,
    /// Why it ended.
    pub ended: EndReason,
}

/// What a request asked for, without secrets and of bounded size; made by `AccessLog::describe` when it arrives.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Described {
    /// The base of a search, the entry of an update or compare, the name of a bind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dn: Option<String>,
    /// "base", "one" or "sub"
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope: Option<&'static str>,
    /// RFC 4515's text, with `?` for values where they are redacted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    /// The attributes asked for; none is all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub attributes: Vec<String>,
    /// Entries, 0 = none asked.
    #[serde(skip_serializing_if = "is_zero")]
    pub size_limit: u32,
    /// Seconds, 0 = none asked.
    #[serde(skip_serializing_if = "is_zero")]
    pub time_limit: u32,
    /// "simple", a SASL mechanism, or "other"
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mechanism: Option<String>,
    /// An extended operation's object identifier.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oid: Option<String>,
    /// The messageID an abandon names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub abandons: Option<u32>,
    /// Object identifiers of controls, `!` before critical ones.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub controls: Vec<String>,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

fn time<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&Timestamp(*time))
}

fn kind<S: Serializer>(kind: &OperationKind, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(kind.as_str())
}

fn microseconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX))
}

fn result<S: Serializer>(result: &Option<ResultCode>, serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Named {
        #[serde(skip_serializing_if = "Option::is_none")]
        result_code: Option<u32>,
        #[serde(skip_serializing_if = "Option::is_none")]
        result: Option<&'static str>,
    }
    Named { result_code: result.map(|code| code.0), result: result.map(ResultCode::name) }.serialize(serializer)
}
