//! A record as a line of JSON or of text. Pure.

use std::fmt::{self, Display, Write};
use std::time::{Duration, SystemTime};

use time::OffsetDateTime;

use super::json::{Object, key};
use super::record::{Described, OperationRecord, SessionRecord, Who, microseconds};
use crate::config::LogFormat;
use crate::failure::{Refusal, SubCode};

/// The line of an operation, with its end.
pub(super) fn operation_line(record: &OperationRecord<'_>, format: LogFormat) -> Vec<u8> {
    match format {
        LogFormat::Json => operation_json(record),
        LogFormat::Text => text(|line| operation_text(line, record)),
    }
}

/// The line of a session, with its end.
pub(super) fn session_line(record: &SessionRecord<'_>, format: LogFormat) -> Vec<u8> {
    match format {
        LogFormat::Json => session_json(record),
        LogFormat::Text => text(|line| session_text(line, record)),
    }
}

/// RFC 3339 in UTC, with microseconds.
pub(super) struct Timestamp(pub(super) SystemTime);

impl Timestamp {
    fn text(&self) -> [u8; 27] {
        let time = OffsetDateTime::from(self.0);
        let (hour, minute, second, micro) = time.to_hms_micro();
        let mut text = *b"0000-00-00T00:00:00.000000Z";
        for (start, end, number) in [
            (0, 4, time.year().unsigned_abs()),
            (5, 7, u8::from(time.month()).into()),
            (8, 10, time.day().into()),
            (11, 13, hour.into()),
            (14, 16, minute.into()),
            (17, 19, second.into()),
            (20, 26, micro),
        ] {
            write_digits(&mut text[start..end], number);
        }
        text
    }
}

impl Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::str::from_utf8(&self.text()).expect("digits are ASCII"))
    }
}

/// The last digits of a number, as many as there is room for. `{:02}` takes ten times as long.
fn write_digits(room: &mut [u8], mut number: u32) {
    for digit in room.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

fn operation_json(record: &OperationRecord<'_>) -> Vec<u8> {
    let mut line = Object::new();
    line.word(key!("event"), "operation");
    line.unescaped(key!("time"), &Timestamp(record.time).text());
    json_who(&mut line, &record.who);
    line.number(key!("message_id"), record.message_id);
    line.word(key!("operation"), record.operation.as_str());
    json_request(&mut line, record.request);
    line.optional_text(key!("backend"), record.backend);
    if let Some(code) = record.result {
        line.number(key!("result_code"), code.0);
        line.word(key!("result"), code.name());
    }
    line.optional_word(key!("sub_code"), record.sub_code.map(SubCode::as_str));
    line.optional_word(key!("refusal"), record.refusal.map(Refusal::as_str));
    line.number(key!("entries"), record.entries);
    line.number(key!("references"), record.references);
    line.number(key!("bytes_in"), record.bytes_in);
    line.number(key!("bytes_out"), record.bytes_out);
    line.number(key!("retries"), record.retries);
    line.number(key!("queue_us"), microseconds(record.timing.queue));
    line.number(key!("connect_us"), microseconds(record.timing.connect));
    line.number(key!("backend_us"), microseconds(record.timing.backend));
    line.number(key!("total_us"), microseconds(record.timing.total));
    line.into_line()
}

fn session_json(record: &SessionRecord<'_>) -> Vec<u8> {
    let mut line = Object::new();
    line.word(key!("event"), "session");
    line.unescaped(key!("time"), &Timestamp(record.time).text());
    json_who(&mut line, &record.who);
    line.optional_text(key!("backend"), record.backend);
    line.truth(key!("tunnel"), record.tunnel);
    line.number(key!("operations"), record.operations);
    line.number(key!("failovers"), record.failovers);
    line.number(key!("bytes_in"), record.bytes_in);
    line.number(key!("bytes_out"), record.bytes_out);
    line.number(key!("duration_us"), microseconds(record.duration));
    line.word(key!("ended"), record.ended.as_str());
    line.into_line()
}

fn json_who(line: &mut Object, who: &Who<'_>) {
    line.number(key!("session"), who.session);
    line.address(key!("client"), who.client);
    line.text(key!("listener"), who.listener);
    if let Some(tls) = who.tls {
        line.object(key!("tls"), |line| {
            line.word(key!("version"), tls.version);
            line.word(key!("suite"), tls.suite);
            line.optional_text(key!("server_name"), tls.server_name.as_deref());
            line.optional_text(key!("client_certificate"), tls.client_certificate.as_deref());
        });
    }
    line.optional_text(key!("bound_as"), who.bound_as);
}

fn json_request(line: &mut Object, request: &Described) {
    line.optional_text(key!("dn"), request.dn.as_deref());
    line.optional_word(key!("scope"), request.scope);
    line.optional_text(key!("filter"), request.filter.as_deref());
    for (key, values) in [(key!("attributes"), &request.attributes), (key!("controls"), &request.controls)] {
        if !values.is_empty() {
            line.list(key, values);
        }
    }
    for (key, limit) in [(key!("size_limit"), request.size_limit), (key!("time_limit"), request.time_limit)] {
        if limit > 0 {
            line.number(key, limit);
        }
    }
    line.optional_text(key!("mechanism"), request.mechanism.as_deref());
    line.optional_text(key!("oid"), request.oid.as_deref());
    if let Some(id) = request.abandons {
        line.number(key!("abandons"), id);
    }
}

/// Words of clients are written as Rust literals, so that none of them can end the line or look like another field.
fn text(write: impl FnOnce(&mut String) -> fmt::Result) -> Vec<u8> {
    let mut line = String::with_capacity(256);
    write(&mut line).expect("a String takes every write");
    line.push('\n');
    line.into_bytes()
}

fn operation_text(line: &mut String, record: &OperationRecord<'_>) -> fmt::Result {
    write!(line, "{} ", Timestamp(record.time))?;
    write_who(line, &record.who)?;
    write!(line, " #{} {}", record.message_id, record.operation)?;
    write_request(line, record.request)?;
    match record.result {
        Some(code) => write!(line, ": {code}")?,
        None => write!(line, ": no result")?,
    }
    if let Some(sub_code) = record.sub_code {
        write!(line, " {sub_code}")?;
    }
    if let Some(refusal) = record.refusal {
        write!(line, " by the proxy, {refusal}")?;
    }
    if let Some(backend) = record.backend {
        write!(line, " from {backend}")?;
    }
    write!(line, ", {}", Milliseconds(record.timing.total))?;
    for (what, duration) in
        [("queue", record.timing.queue), ("connect", record.timing.connect), ("backend", record.timing.backend)]
    {
        if !duration.is_zero() {
            write!(line, " {what} {}", Milliseconds(duration))?;
        }
    }
    write!(line, ", {} bytes in, {} out", record.bytes_in, record.bytes_out)?;
    for (count, what) in
        [(record.entries, "entries"), (record.references, "references"), (record.retries.into(), "retries")]
    {
        if count > 0 {
            write!(line, ", {count} {what}")?;
        }
    }
    Ok(())
}

fn session_text(line: &mut String, record: &SessionRecord<'_>) -> fmt::Result {
    write!(line, "{} ", Timestamp(record.time))?;
    write_who(line, &record.who)?;
    write!(line, " ended: {}, after {:.3} s", record.ended, record.duration.as_secs_f64())?;
    write!(line, ", {} operations, {} bytes in, {} out", record.operations, record.bytes_in, record.bytes_out)?;
    if record.tunnel {
        line.push_str(", tunnel");
    }
    if record.failovers > 0 {
        write!(line, ", {} failovers", record.failovers)?;
    }
    if let Some(backend) = record.backend {
        write!(line, ", on {backend}")?;
    }
    Ok(())
}

fn write_who(line: &mut String, who: &Who<'_>) -> fmt::Result {
    write!(line, "session {} {} on {}", who.session, who.client, who.listener)?;
    if let Some(tls) = who.tls {
        write!(line, " TLS {} {}", tls.version, tls.suite)?;
        if let Some(name) = &tls.server_name {
            write!(line, " for {name:?}")?;
        }
        if let Some(subject) = &tls.client_certificate {
            write!(line, " certificate {subject:?}")?;
        }
    }
    match who.bound_as {
        Some(name) => write!(line, " as {name:?}"),
        None => write!(line, " anonymous"),
    }
}

fn write_request(line: &mut String, request: &Described) -> fmt::Result {
    let texts = [&request.oid, &request.mechanism, &request.dn];
    for text in texts.into_iter().flatten() {
        write!(line, " {text:?}")?;
    }
    if let Some(scope) = request.scope {
        write!(line, " {scope}")?;
    }
    if let Some(filter) = &request.filter {
        write!(line, " {filter:?}")?;
    }
    if !request.attributes.is_empty() {
        write!(line, " attributes {:?}", request.attributes)?;
    }
    for (limit, what) in [(request.size_limit, "size limit"), (request.time_limit, "time limit")] {
        if limit > 0 {
            write!(line, " {what} {limit}")?;
        }
    }
    if let Some(id) = request.abandons {
        write!(line, " #{id}")?;
    }
    if !request.controls.is_empty() {
        write!(line, " controls {:?}", request.controls)?;
    }
    Ok(())
}

struct Milliseconds(Duration);

impl Display for Milliseconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3} ms", self.0.as_secs_f64() * 1e3)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::{Value, json};

    use super::super::record::{Timing, TlsFacts};
    use super::*;
    use crate::failure::{EndReason, Refusal, SubCode};
    use crate::ldap::{OperationKind, ResultCode};

    const MICROSECOND: Duration = Duration::from_micros(1);

    fn tls() -> TlsFacts {
        TlsFacts {
            version: "1.3",
            suite: "TLS_AES_256_GCM_SHA384",
            server_name: Some("ldap.example.com".into()),
            client_certificate: None,
        }
    }

    fn who(tls: &TlsFacts) -> Who<'_> {
        Who {
            session: 17,
            client: ([10, 0, 0, 5], 40123).into(),
            listener: "0.0.0.0:636",
            tls: Some(tls),
            bound_as: Some("cn=app"),
        }
    }

    fn operation<'a>(tls: &'a TlsFacts, request: &'a Described) -> OperationRecord<'a> {
        OperationRecord {
            time: SystemTime::UNIX_EPOCH + Duration::from_micros(1_795_508_345_000_042),
            who: who(tls),
            message_id: 3,
            operation: OperationKind::Search,
            request,
            backend: Some("10.0.1.10:389"),
            result: Some(ResultCode(0)),
            sub_code: None,
            refusal: None,
            entries: 2,
            references: 0,
            bytes_in: 60,
            bytes_out: 900,
            retries: 1,
            timing: Timing { backend: 700 * MICROSECOND, total: 812 * MICROSECOND, ..Timing::default() },
        }
    }

    fn session(tls: &TlsFacts) -> SessionRecord<'_> {
        SessionRecord {
            time: SystemTime::UNIX_EPOCH,
            who: who(tls),
            backend: None,
            tunnel: false,
            operations: 5,
            failovers: 1,
            bytes_in: 1,
            bytes_out: 2,
            duration: Duration::from_secs(3),
            ended: EndReason::IdleTimeout,
        }
    }

    fn search() -> Described {
        Described {
            dn: Some("dc=x".into()),
            scope: Some("sub"),
            filter: Some("(cn=?)".into()),
            attributes: vec!["cn".into()],
            ..Described::default()
        }
    }

    fn parsed(line: &[u8]) -> Value {
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1, "one record is one line");
        serde_json::from_slice(line).expect("JSON")
    }

    #[test]
    fn an_operation_in_json() {
        let (tls, search) = (tls(), search());
        let line = operation_line(&operation(&tls, &search), LogFormat::Json);
        let expected = json!({
            "event": "operation", "time": "2026-11-24T08:19:05.000042Z", "session": 17, "client": "10.0.0.5:40123",
            "listener": "0.0.0.0:636", "bound_as": "cn=app",
            "tls": {"version": "1.3", "suite": "TLS_AES_256_GCM_SHA384", "server_name": "ldap.example.com"},
            "message_id": 3, "operation": "search", "dn": "dc=x", "scope": "sub", "filter": "(cn=?)",
            "attributes": ["cn"], "backend": "10.0.1.10:389", "result_code": 0, "result": "success", "entries": 2,
            "references": 0, "bytes_in": 60, "bytes_out": 900, "retries": 1, "queue_us": 0, "connect_us": 0,
            "backend_us": 700, "total_us": 812,
        });
        assert_eq!(parsed(&line), expected);
    }

    #[test]
    fn an_operation_in_text() {
        let (tls, search) = (tls(), search());
        let line = operation_line(&operation(&tls, &search), LogFormat::Text);
        let expected = "2026-11-24T08:19:05.000042Z session 17 10.0.0.5:40123 on 0.0.0.0:636 TLS 1.3 \
            TLS_AES_256_GCM_SHA384 for \"ldap.example.com\" as \"cn=app\" #3 search \"dc=x\" sub \"(cn=?)\" \
            attributes [\"cn\"]: success (0) from 10.0.1.10:389, 0.812 ms backend 0.700 ms, 60 bytes in, 900 out, \
            2 entries, 1 retries\n";
        assert_eq!(String::from_utf8_lossy(&line), expected);
    }

    #[test]
    fn the_proxys_own_answer_says_why() {
        let (tls, search) = (tls(), search());
        let record = OperationRecord {
            backend: None,
            result: Some(ResultCode(52)),
            refusal: Some(Refusal::NoBackend),
            ..operation(&tls, &search)
        };
        let value = parsed(&operation_line(&record, LogFormat::Json));
        assert_eq!((&value["result"], &value["refusal"]), (&json!("unavailable"), &json!("no_backend")));
        assert_eq!(value.get("backend"), None);
        let line = String::from_utf8_lossy(&operation_line(&record, LogFormat::Text)).into_owned();
        assert!(line.contains(": unavailable (52) by the proxy, no_backend, "), "{line}");
    }

    #[test]
    fn an_abandon_has_no_result() {
        let (tls, abandon) = (tls(), Described { abandons: Some(2), ..Described::default() });
        let record = OperationRecord { operation: OperationKind::Abandon, result: None, ..operation(&tls, &abandon) };
        let value = parsed(&operation_line(&record, LogFormat::Json));
        assert_eq!((value.get("result"), value.get("result_code"), &value["abandons"]), (None, None, &json!(2)));
    }

    #[test]
    fn a_session_says_why_it_ended() {
        let tls = tls();
        let record = session(&tls);
        let value = parsed(&session_line(&record, LogFormat::Json));
        assert_eq!((&value["event"], &value["ended"]), (&json!("session"), &json!("idle_timeout")));
        assert_eq!(value["duration_us"], json!(3_000_000));
        let line = String::from_utf8_lossy(&session_line(&record, LogFormat::Text)).into_owned();
        assert!(line.starts_with("1970-01-01T00:00:00.000000Z session 17 "), "{line}");
        assert!(line.contains(" ended: idle_timeout, after 3.000 s, 5 operations"), "{line}");
    }

    #[test]
    fn the_reference_has_every_field_and_no_other() {
        let full = Described {
            dn: Some(String::new()),
            scope: Some("sub"),
            filter: Some(String::new()),
            attributes: vec![String::new()],
            size_limit: 1,
            time_limit: 1,
            mechanism: Some(String::new()),
            oid: Some(String::new()),
            abandons: Some(1),
            controls: vec![String::new()],
        };
        let tls = tls();
        let record = OperationRecord {
            sub_code: Some(SubCode::WrongPassword),
            refusal: Some(Refusal::NoBackend),
            ..operation(&tls, &full)
        };
        let told =
            [parsed(&operation_line(&record, LogFormat::Json)), parsed(&session_line(&session(&tls), LogFormat::Json))];
        let told: BTreeSet<_> =
            told.iter().filter_map(Value::as_object).flat_map(|line| line.keys()).cloned().collect();
        let reference = include_str!("../../docs/access-log.md");
        let rows = reference.lines().filter_map(|line| Some(line.strip_prefix("| `")?.split_once('`')?.0.to_owned()));
        assert_eq!(rows.collect::<BTreeSet<_>>(), told);
        let example = reference.lines().find(|line| line.starts_with("{\"event\"")).expect("an example");
        let search = search();
        assert_eq!(
            parsed(&[example.as_bytes(), b"\n"].concat()),
            parsed(&operation_line(&operation(&tls, &search), LogFormat::Json))
        );
    }

    #[test]
    fn a_client_cannot_forge_a_line() {
        let tls = tls();
        let request = Described { dn: Some("x\"\n2026-11-24T00:00:00Z session 1\r".into()), ..Described::default() };
        for format in [LogFormat::Json, LogFormat::Text] {
            let line = operation_line(&operation(&tls, &request), format);
            assert_eq!(
                line.iter().filter(|byte| byte.is_ascii_control()).count(),
                1,
                "{}",
                String::from_utf8_lossy(&line)
            );
        }
    }
}
