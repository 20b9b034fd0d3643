//! A record as a line of JSON or of text. Pure.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt::{self, Display};
use std::io::{self, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use time::OffsetDateTime;

use super::describe::{Field, Pen, describe, shown};
use super::filter::Filter;
use super::json::{Object, key};
use super::record::{OperationRecord, SessionRecord, Who, microseconds};
use crate::config::LogFormat;
use crate::failure::{Refusal, SubCode};
use crate::ldap::Request;

/// Writes the line of an operation, with its end.
pub(super) fn operation_line(line: &mut Vec<u8>, record: &OperationRecord<'_>, format: LogFormat) {
    match format {
        LogFormat::Json => operation_json(line, record),
        LogFormat::Text => text(line, |line| operation_text(line, record)),
    }
}

/// Writes the line of a session, with its end.
pub(super) fn session_line(line: &mut Vec<u8>, record: &SessionRecord<'_>, format: LogFormat) {
    match format {
        LogFormat::Json => session_json(line, record),
        LogFormat::Text => text(line, |line| session_text(line, record)),
    }
}

/// Writes what a request adds to the line of its operation.
pub(super) fn request_part(part: &mut Vec<u8>, request: &Request<'_>, redact: bool, format: LogFormat) {
    match format {
        LogFormat::Json => describe(request, redact, &mut Object::part(part)),
        LogFormat::Text => describe(request, redact, &mut Text(part)),
    }
}

const TAKES_ALL: &str = "a Vec takes every write";

/// RFC 3339 in UTC, with microseconds.
pub(super) struct Timestamp(pub(super) SystemTime);

thread_local! {
    /// The last time that was written, after the epoch, and its text.
    static LAST: Cell<(Duration, [u8; 27])> = const { Cell::new((Duration::MAX, [0; 27])) };
}

impl Timestamp {
    /// A clock before 1970 is shown as its first moment.
    fn text(&self) -> [u8; 27] {
        let since_epoch = self.0.duration_since(UNIX_EPOCH).unwrap_or_default();
        let (last, mut text) = LAST.get();
        if last == since_epoch {
            return text;
        }
        if last.as_secs() != since_epoch.as_secs() {
            text = Self::of_second(OffsetDateTime::from(UNIX_EPOCH + since_epoch));
        }
        write_digits(&mut text[20..26], since_epoch.subsec_micros());
        LAST.set((since_epoch, text));
        text
    }

    fn of_second(time: OffsetDateTime) -> [u8; 27] {
        let (hour, minute, second) = time.to_hms();
        let mut text = *b"0000-00-00T00:00:00.000000Z";
        for (start, end, number) in [
            (0, 4, time.year().unsigned_abs()),
            (5, 7, u8::from(time.month()).into()),
            (8, 10, time.day().into()),
            (11, 13, hour.into()),
            (14, 16, minute.into()),
            (17, 19, second.into()),
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

fn operation_json(line: &mut Vec<u8>, record: &OperationRecord<'_>) {
    let mut line = Object::begin(line);
    line.word(key!("event"), "operation");
    line.unescaped(key!("time"), &Timestamp(record.time).text());
    line.fields(written_once(&record.who, json_who));
    line.number(key!("message_id"), record.message_id);
    line.word(key!("operation"), record.operation.as_str());
    line.fields(&record.request.written);
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
    line.end_line();
}

fn session_json(line: &mut Vec<u8>, record: &SessionRecord<'_>) {
    let mut line = Object::begin(line);
    line.word(key!("event"), "session");
    line.unescaped(key!("time"), &Timestamp(record.time).text());
    line.fields(written_once(&record.who, json_who));
    line.optional_text(key!("backend"), record.backend);
    line.truth(key!("tunnel"), record.tunnel);
    line.number(key!("operations"), record.operations);
    line.number(key!("failovers"), record.failovers);
    line.number(key!("bytes_in"), record.bytes_in);
    line.number(key!("bytes_out"), record.bytes_out);
    line.number(key!("duration_us"), microseconds(record.duration));
    line.word(key!("ended"), record.ended.as_str());
    line.end_line();
}

/// Who, written at the first record that tells of it: a session's log doesn't change.
fn written_once<'a>(who: &Who<'a>, write: impl FnOnce(&mut Vec<u8>, &Who<'_>)) -> &'a [u8] {
    who.written.get_or_init(|| {
        let mut part = Vec::new();
        write(&mut part, who);
        part.into()
    })
}

fn json_who(part: &mut Vec<u8>, who: &Who<'_>) {
    let mut line = Object::part(part);
    line.number(key!("session"), who.session);
    line.address(key!("client"), who.client);
    line.text(key!("listener"), who.listener);
    if let Some(tls) = who.tls {
        line.object(key!("tls"), |line| {
            line.word(key!("version"), tls.version);
            line.word(key!("suite"), tls.suite);
            line.optional_text(key!("server_name"), tls.server_name.as_deref());
            line.optional_text(key!("client_certificate"), bounded(&tls.client_certificate).as_deref());
        });
    }
    line.optional_text(key!("bound_as"), bounded(&who.bound_as).as_deref());
}

/// A name as a client gave it, which may be as long as a request.
fn bounded(name: &Option<impl AsRef<str>>) -> Option<Cow<'_, str>> {
    name.as_ref().map(|name| shown(name.as_ref().as_bytes()))
}

impl Pen for Object<'_> {
    #[inline(always)]
    fn text(&mut self, field: Field, text: &str) {
        self.text(field.key, text);
    }

    #[inline(always)]
    fn word(&mut self, field: Field, word: &'static str) {
        self.word(field.key, word);
    }

    #[inline(always)]
    fn number(&mut self, field: Field, number: u32) {
        self.number(field.key, number);
    }

    #[inline(always)]
    fn filter(&mut self, field: Field, filter: Filter<'_>) {
        self.written(field.key, |line| filter.write(line));
    }

    #[inline(always)]
    fn list<'a>(&mut self, field: Field, texts: impl Iterator<Item = Cow<'a, str>>) {
        self.list(field.key, texts);
    }
}

/// Words of clients are written as Rust literals, so that none of them can end the line or look like another field.
fn text(line: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) {
    write(line).expect(TAKES_ALL);
    line.push(b'\n');
}

fn operation_text(line: &mut Vec<u8>, record: &OperationRecord<'_>) -> io::Result<()> {
    write!(line, "{} ", Timestamp(record.time))?;
    line.extend_from_slice(written_once(&record.who, text_who));
    write!(line, " #{} {}", record.message_id, record.operation)?;
    line.extend_from_slice(&record.request.written);
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

fn session_text(line: &mut Vec<u8>, record: &SessionRecord<'_>) -> io::Result<()> {
    write!(line, "{} ", Timestamp(record.time))?;
    line.extend_from_slice(written_once(&record.who, text_who));
    write!(line, " ended: {}, after {:.3} s", record.ended, record.duration.as_secs_f64())?;
    write!(line, ", {} operations, {} bytes in, {} out", record.operations, record.bytes_in, record.bytes_out)?;
    if record.tunnel {
        line.extend_from_slice(b", tunnel");
    }
    if record.failovers > 0 {
        write!(line, ", {} failovers", record.failovers)?;
    }
    if let Some(backend) = record.backend {
        write!(line, ", on {backend}")?;
    }
    Ok(())
}

fn text_who(part: &mut Vec<u8>, who: &Who<'_>) {
    write_who(part, who).expect(TAKES_ALL);
}

fn write_who(line: &mut Vec<u8>, who: &Who<'_>) -> io::Result<()> {
    write!(line, "session {} {} on {}", who.session, who.client, who.listener)?;
    if let Some(tls) = who.tls {
        write!(line, " TLS {} {}", tls.version, tls.suite)?;
        if let Some(name) = &tls.server_name {
            write!(line, " for {name:?}")?;
        }
        if let Some(subject) = bounded(&tls.client_certificate) {
            write!(line, " certificate {subject:?}")?;
        }
    }
    match bounded(&who.bound_as) {
        Some(name) => write!(line, " as {name:?}"),
        None => write!(line, " anonymous"),
    }
}

/// A line of text under construction.
struct Text<'a>(&'a mut Vec<u8>);

impl Text<'_> {
    fn add(&mut self, field: Field, what: fmt::Arguments<'_>) {
        write!(self.0, " {}{what}", field.before).expect(TAKES_ALL);
    }
}

impl Pen for Text<'_> {
    fn text(&mut self, field: Field, text: &str) {
        self.add(field, format_args!("{text:?}"));
    }

    fn word(&mut self, field: Field, word: &'static str) {
        self.add(field, format_args!("{word}"));
    }

    fn number(&mut self, field: Field, number: u32) {
        self.add(field, format_args!("{number}"));
    }

    fn filter(&mut self, field: Field, filter: Filter<'_>) {
        self.text(field, &filter.to_string());
    }

    fn list<'a>(&mut self, field: Field, texts: impl Iterator<Item = Cow<'a, str>>) {
        let texts: Vec<_> = texts.collect();
        self.add(field, format_args!("{texts:?}"));
    }
}

struct Milliseconds(Duration);

impl Display for Milliseconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3} ms", self.0.as_secs_f64() * 1e3)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::OnceCell;
    use std::collections::BTreeSet;

    use serde_json::{Value, json};

    use super::super::journal;
    use super::super::record::{RequestPart, Timing, TlsFacts};
    use super::super::samples::{ABANDON, BIND, EXTENDED, FULL_SEARCH, SEARCH, delete, request};
    use super::*;
    use crate::buffer::Lent;
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

    /// What records borrow.
    struct Site {
        tls: TlsFacts,
        written: OnceCell<Box<[u8]>>,
        request: RequestPart,
    }

    impl Site {
        fn new(pdu: &[u8], format: LogFormat) -> Self {
            let request = RequestPart {
                written: Lent::filled(|part| request_part(part, &request(pdu), true, format)),
                #[cfg(feature = "otlp")]
                attributes: Vec::new(),
            };
            Self { tls: tls(), written: OnceCell::new(), request }
        }

        fn who(&self) -> Who<'_> {
            Who {
                session: 17,
                client: ([10, 0, 0, 5], 40123).into(),
                listener: "0.0.0.0:636",
                tls: Some(&self.tls),
                bound_as: Some("cn=app"),
                written: &self.written,
            }
        }

        fn operation(&self) -> OperationRecord<'_> {
            OperationRecord {
                time: SystemTime::UNIX_EPOCH + Duration::from_micros(1_795_508_345_000_042),
                who: self.who(),
                message_id: 3,
                operation: OperationKind::Search,
                request: &self.request,
                backend: Some("10.0.1.10:389"),
                result: Some(ResultCode(0)),
                sub_code: None,
                refusal: None,
                entries: 2,
                references: 0,
                bytes_in: 60,
                bytes_out: 900,
                retries: 1,
                timing: Timing { backend: 812 * MICROSECOND, total: 812 * MICROSECOND, ..Timing::default() },
            }
        }

        fn session(&self) -> SessionRecord<'_> {
            SessionRecord {
                time: SystemTime::UNIX_EPOCH,
                who: self.who(),
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
    }

    fn operation_line(record: &OperationRecord<'_>, format: LogFormat) -> Vec<u8> {
        let mut line = Vec::new();
        super::operation_line(&mut line, record, format);
        line
    }

    fn session_line(record: &SessionRecord<'_>, format: LogFormat) -> Vec<u8> {
        let mut line = Vec::new();
        super::session_line(&mut line, record, format);
        line
    }

    fn parsed(line: &[u8]) -> Value {
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1, "one record is one line");
        serde_json::from_slice(line).expect("JSON")
    }

    #[test]
    fn an_operation_in_json() {
        let site = Site::new(SEARCH, LogFormat::Json);
        let line = operation_line(&site.operation(), LogFormat::Json);
        let expected = json!({
            "event": "operation", "time": "2026-11-24T08:19:05.000042Z", "session": 17, "client": "10.0.0.5:40123",
            "listener": "0.0.0.0:636", "bound_as": "cn=app",
            "tls": {"version": "1.3", "suite": "TLS_AES_256_GCM_SHA384", "server_name": "ldap.example.com"},
            "message_id": 3, "operation": "search", "dn": "dc=x", "scope": "sub", "filter": "(cn=?)",
            "attributes": ["cn"], "backend": "10.0.1.10:389", "result_code": 0, "result": "success", "entries": 2,
            "references": 0, "bytes_in": 60, "bytes_out": 900, "retries": 1, "queue_us": 0, "connect_us": 0,
            "backend_us": 812, "total_us": 812,
        });
        assert_eq!(parsed(&line), expected);
    }

    #[test]
    fn an_operation_in_text() {
        let site = Site::new(SEARCH, LogFormat::Text);
        let line = operation_line(&site.operation(), LogFormat::Text);
        let expected = "2026-11-24T08:19:05.000042Z session 17 10.0.0.5:40123 on 0.0.0.0:636 TLS 1.3 \
            TLS_AES_256_GCM_SHA384 for \"ldap.example.com\" as \"cn=app\" #3 search \"dc=x\" sub \"(cn=?)\" \
            attributes [\"cn\"]: success (0) from 10.0.1.10:389, 0.812 ms backend 0.812 ms, 60 bytes in, 900 out, \
            2 entries, 1 retries\n";
        assert_eq!(String::from_utf8_lossy(&line), expected);
    }

    #[test]
    fn what_a_request_adds_in_text() {
        for (pdu, expected) in [
            (
                FULL_SEARCH,
                r#" "dc=x" sub "(cn=?)" attributes ["a", "b"] size limit 10 time limit 5 controls ["!1.2.840.113556.1.4.319"]"#,
            ),
            (BIND, r#" "simple" "cn""#),
            (EXTENDED, r#" "1.2""#),
            (ABANDON, " #2"),
        ] {
            assert_eq!(String::from_utf8_lossy(&Site::new(pdu, LogFormat::Text).request.written), expected);
        }
    }

    #[test]
    fn the_proxys_own_answer_says_why() {
        let line_in = |format| {
            let site = Site::new(SEARCH, format);
            let (result, refusal) = (Some(ResultCode(52)), Some(Refusal::NoBackend));
            operation_line(&OperationRecord { backend: None, result, refusal, ..site.operation() }, format)
        };
        let value = parsed(&line_in(LogFormat::Json));
        assert_eq!((&value["result"], &value["refusal"]), (&json!("unavailable"), &json!("no_backend")));
        assert_eq!(value.get("backend"), None);
        let line = String::from_utf8_lossy(&line_in(LogFormat::Text)).into_owned();
        assert!(line.contains(": unavailable (52) by the proxy, no_backend, "), "{line}");
    }

    #[test]
    fn an_abandon_has_no_result() {
        let site = Site::new(ABANDON, LogFormat::Json);
        let record = OperationRecord { operation: OperationKind::Abandon, result: None, ..site.operation() };
        let value = parsed(&operation_line(&record, LogFormat::Json));
        assert_eq!((value.get("result"), value.get("result_code"), &value["abandons"]), (None, None, &json!(2)));
    }

    #[test]
    fn a_session_says_why_it_ended() {
        let site = Site::new(SEARCH, LogFormat::Json);
        let value = parsed(&session_line(&site.session(), LogFormat::Json));
        assert_eq!((&value["event"], &value["ended"]), (&json!("session"), &json!("idle_timeout")));
        assert_eq!(value["duration_us"], json!(3_000_000));
        let site = Site::new(SEARCH, LogFormat::Text);
        let line = String::from_utf8_lossy(&session_line(&site.session(), LogFormat::Text)).into_owned();
        assert!(line.starts_with("1970-01-01T00:00:00.000000Z session 17 "), "{line}");
        assert!(line.contains(" ended: idle_timeout, after 3.000 s, 5 operations"), "{line}");
    }

    #[test]
    fn a_time_is_the_same_whichever_was_written_before() {
        let at = |microseconds| Timestamp(UNIX_EPOCH + microseconds * MICROSECOND).to_string();
        for (microseconds, expected) in [
            (999_999, "1970-01-01T00:00:00.999999Z"),
            (1_000_000, "1970-01-01T00:00:01.000000Z"),
            (5, "1970-01-01T00:00:00.000005Z"),
            (5, "1970-01-01T00:00:00.000005Z"),
            (1_000_001, "1970-01-01T00:00:01.000001Z"),
        ] {
            assert_eq!(at(microseconds), expected);
        }
        assert_eq!(Timestamp(UNIX_EPOCH - MICROSECOND).to_string(), at(0), "a clock that is wrong");
    }

    #[test]
    fn the_reference_has_every_field_and_no_other() {
        let (sub_code, refusal) = (Some(SubCode::WrongPassword), Some(Refusal::NoBackend));
        let operation = |pdu| {
            let site = Site::new(pdu, LogFormat::Json);
            parsed(&operation_line(&OperationRecord { sub_code, refusal, ..site.operation() }, LogFormat::Json))
        };
        let session = parsed(&session_line(&Site::new(SEARCH, LogFormat::Json).session(), LogFormat::Json));
        let told = [operation(FULL_SEARCH), operation(BIND), operation(EXTENDED), operation(ABANDON), session];
        let told: BTreeSet<_> =
            told.iter().filter_map(Value::as_object).flat_map(|line| line.keys()).cloned().collect();
        let reference = include_str!("../../docs/access-log.md");
        let rows = reference.lines().filter_map(|line| Some(line.strip_prefix("| `")?.split_once('`')?.0.to_owned()));
        assert_eq!(rows.collect::<BTreeSet<_>>(), told);
        let example = reference.lines().find(|line| line.starts_with("{\"event\"")).expect("an example");
        let site = Site::new(SEARCH, LogFormat::Json);
        let line = operation_line(&site.operation(), LogFormat::Json);
        assert_eq!(parsed(&[example.as_bytes(), b"\n"].concat()), parsed(&line));
    }

    /// A regression test: what was too long for a datagram was lost, so that a client could keep its own records out.
    #[test]
    fn the_longest_record_fits_into_a_datagram_of_the_journal() {
        /// What net.core.wmem_default, 212,992 everywhere, leaves room for.
        const DATAGRAM: usize = 212_960;
        let tlv = |tag: u8, parts: &[&[u8]]| {
            let content = parts.concat();
            let length = u32::try_from(content.len()).expect("not longer");
            [&[tag, 0x84], &length.to_be_bytes()[..], &content].concat()
        };
        for (worst, format) in [(b"\x01", LogFormat::Json), (b"\"", LogFormat::Json), (b"\x7f", LogFormat::Text)] {
            let text = tlv(4, &[&worst.repeat(5000)]);
            let [one, zero]: [&[u8]; 2] = [&[1, 1, 0xFF], &[2, 1, 0]];
            let filter = tlv(0xA3, &[&text, &text]);
            let attributes = tlv(0x30, &[&text.repeat(60)]);
            let search = tlv(0x63, &[&text, &[10, 1, 2, 10, 1, 0], zero, zero, one, &filter, &attributes]);
            let control = tlv(0x30, &[&text, one]);
            let controls = tlv(0xA0, &[&control.repeat(60)]);
            let pdu = tlv(0x30, &[&[2, 1, 1], &search, &controls]);
            let mut site = Site::new(&pdu, format);
            let name = String::from_utf8_lossy(worst).repeat(200 * 1024);
            site.tls.client_certificate = Some(name.clone().into());
            site.tls.server_name = Some("x".repeat(255).into());
            let record = OperationRecord { who: Who { bound_as: Some(&name), ..site.who() }, ..site.operation() };
            let line = operation_line(&record, format);
            let entry = journal::entry(&line);
            assert!(line.len() > 32 * 1024 && entry.len() < DATAGRAM, "{} {}", line.len(), entry.len());
        }
    }

    #[test]
    fn a_client_cannot_forge_a_line() {
        let request = delete(b"x\"\n2026-11-24T00:00:00Z session 1\r");
        for format in [LogFormat::Json, LogFormat::Text] {
            let line = operation_line(&Site::new(&request, format).operation(), format);
            assert_eq!(
                line.iter().filter(|byte| byte.is_ascii_control()).count(),
                1,
                "{}",
                String::from_utf8_lossy(&line)
            );
        }
    }
}
