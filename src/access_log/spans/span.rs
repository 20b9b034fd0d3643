//! A record as a span. Pure.
//!
//! An operation is a request served, so its span's kind is SERVER; its session, which holds them together, is INTERNAL.
//! Attributes have the names of OpenTelemetry's semantic conventions where there is one, else begin with `ldap.`.

use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceState};
use opentelemetry::{Array, InstrumentationScope, KeyValue, StringValue, Value};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};

use super::super::describe::{Field, Pen, describe};
use super::super::filter::Filter;
use super::super::record::{OperationRecord, SessionRecord, Who, microseconds};
use crate::ldap::Request;
use crate::metrics::{has_response, is_server_trouble};

pub(super) const SESSION: &str = "ldap session";
pub(super) const SESSION_KIND: SpanKind = SpanKind::Internal;

pub(super) fn session_span(record: &SessionRecord<'_>, session: &SpanContext) -> SpanData {
    let mut attributes = describe_who(&record.who);
    attributes.extend([
        KeyValue::new("ldap.tunnel", record.tunnel),
        count("ldap.operations", record.operations),
        count("ldap.failovers", record.failovers),
        KeyValue::new("ldap.end_reason", record.ended.as_str()),
    ]);
    attributes.extend(record.backend.map(|backend| text("ldap.backend", backend)));
    span(SESSION.into(), SESSION_KIND, session.clone(), SpanId::INVALID, (record.time, record.duration), attributes)
}

pub(super) fn operation_span(record: &OperationRecord<'_>, session: &SpanContext) -> SpanData {
    let mut attributes = describe_who(&record.who);
    attributes.extend([
        KeyValue::new("ldap.message_id", i64::from(record.message_id)),
        count("ldap.entries", record.entries),
        count("ldap.references", record.references),
        count("ldap.retries", record.retries.into()),
        count("ldap.request.size", record.bytes_in),
        count("ldap.response.size", record.bytes_out),
        count("ldap.queue_us", microseconds(record.timing.queue)),
        count("ldap.connect_us", microseconds(record.timing.connect)),
    ]);
    attributes.extend_from_slice(&record.request.attributes);
    let words: [(&'static str, Option<&str>); 4] = [
        ("ldap.backend", record.backend),
        ("ldap.result", record.result.map(|code| code.name())),
        ("ldap.bind.sub_code", record.sub_code.map(|code| code.as_str())),
        ("ldap.refusal", record.refusal.map(|refusal| refusal.as_str())),
    ];
    attributes.extend(words.into_iter().filter_map(|(name, word)| Some(text(name, word?))));
    attributes.extend(record.result.map(|code| KeyValue::new("ldap.result_code", i64::from(code.0))));
    let context = SpanContext::new(
        session.trace_id(),
        SpanId::from(fastrand::u64(1..)),
        TraceFlags::SAMPLED,
        false,
        TraceState::NONE,
    );
    let name = format!("ldap {}", record.operation);
    let time = (record.time, record.timing.total);
    let mut span = span(name.into(), SpanKind::Server, context, session.span_id(), time, attributes);
    let failure = match record.result {
        Some(code) if is_server_trouble(code.0) => Some(code.name()),
        None if has_response(record.operation) => Some("no_result"),
        _ => None,
    };
    if let Some(failure) = failure {
        span.attributes.push(text("error.type", failure));
        span.status = Status::error(failure);
    }
    span
}

/// What a request adds to the span of its operation.
pub(in super::super) fn request_attributes(request: &Request<'_>, redact: bool) -> Vec<KeyValue> {
    let mut attributes = Attributes(Vec::new());
    describe(request, redact, &mut attributes);
    attributes.0
}

struct Attributes(Vec<KeyValue>);

impl Attributes {
    fn add(&mut self, field: Field, value: impl Into<Value>) {
        self.0.extend(field.attribute.map(|name| KeyValue::new(name, value)));
    }
}

impl Pen for Attributes {
    fn text(&mut self, field: Field, text: &str) {
        self.add(field, text.to_owned());
    }

    fn word(&mut self, field: Field, word: &'static str) {
        self.add(field, word);
    }

    fn number(&mut self, field: Field, number: u32) {
        self.add(field, i64::from(number));
    }

    fn filter(&mut self, field: Field, filter: Filter<'_>) {
        self.add(field, filter.to_string());
    }

    fn list<'a>(&mut self, field: Field, texts: impl Iterator<Item = Cow<'a, str>>) {
        let texts = texts.map(|text| StringValue::from(text.into_owned())).collect();
        self.add(field, Value::Array(Array::String(texts)));
    }
}

fn span(
    name: Cow<'static, str>,
    span_kind: SpanKind,
    span_context: SpanContext,
    parent_span_id: SpanId,
    (end_time, duration): (SystemTime, Duration),
    attributes: Vec<KeyValue>,
) -> SpanData {
    SpanData {
        span_context,
        parent_span_id,
        parent_span_is_remote: false,
        span_kind,
        name,
        start_time: end_time - duration,
        end_time,
        attributes,
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: Status::Unset,
        instrumentation_scope: InstrumentationScope::builder(env!("CARGO_PKG_NAME"))
            .with_version(env!("CARGO_PKG_VERSION"))
            .build(),
    }
}

fn describe_who(who: &Who<'_>) -> Vec<KeyValue> {
    let mut attributes = vec![
        KeyValue::new("network.protocol.name", "ldap"),
        text("session.id", &who.session.to_string()),
        text("client.address", &who.client.ip().to_string()),
        KeyValue::new("client.port", i64::from(who.client.port())),
        text("ldap.listener", who.listener),
    ];
    if let Some(tls) = who.tls {
        attributes.extend([
            KeyValue::new("tls.protocol.name", "tls"),
            KeyValue::new("tls.protocol.version", tls.version),
            KeyValue::new("tls.cipher", tls.suite),
        ]);
        attributes.extend(tls.server_name.as_deref().map(|name| text("tls.client.server_name", name)));
        attributes.extend(tls.client_certificate.as_deref().map(|subject| text("tls.client.subject", subject)));
    }
    attributes.extend(who.bound_as.map(|name| text("user.name", name)));
    attributes
}

fn text(name: &'static str, value: &str) -> KeyValue {
    KeyValue::new(name, value.to_owned())
}

fn count(name: &'static str, value: u64) -> KeyValue {
    KeyValue::new(name, i64::try_from(value).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::super::super::samples::{ABANDON, BIND, EXTENDED, FULL_SEARCH, request};
    use super::*;

    #[test]
    fn what_a_request_adds() {
        let list = |text: &'static str| Value::Array(Array::String(vec![text.into()]));
        let search = vec![
            KeyValue::new("ldap.dn", "dc=x"),
            KeyValue::new("ldap.scope", "sub"),
            KeyValue::new("ldap.filter", "(cn=?)"),
            KeyValue::new("ldap.attributes", Value::Array(Array::String(vec!["a".into(), "b".into()]))),
            KeyValue::new("ldap.controls", list("!1.2.840.113556.1.4.319")),
        ];
        let bind = vec![KeyValue::new("ldap.bind.mechanism", "simple"), KeyValue::new("ldap.dn", "cn")];
        let extended = vec![KeyValue::new("ldap.extended.oid", "1.2")];
        for (pdu, expected) in [(FULL_SEARCH, search), (BIND, bind), (EXTENDED, extended), (ABANDON, vec![])] {
            assert_eq!(request_attributes(&request(pdu), true), expected);
        }
    }
}
