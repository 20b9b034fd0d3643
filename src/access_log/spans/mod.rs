//! Sessions and operations as OpenTelemetry spans: the records of the access log, exported by OTLP over HTTP.
//!
//! Where to, how many and under which name is said by OpenTelemetry's own environment variables (docs/tracing.md).
//! A record holds all that its span needs, and a session's trace and span follow from its number: no session carries
//! anything for this.

mod client;
mod span;

use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, OnceLock};

use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};
use opentelemetry_otlp::{SpanExporter, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{BatchSpanProcessor, Config, SamplingDecision, ShouldSample, SpanData, SpanProcessor};
use tracing::{info, warn};

use super::record::{OperationRecord, SessionRecord};
pub(super) use span::request_attributes;
use span::{operation_span, session_span};

/// The way to the collector.
pub(super) struct Spans {
    /// Queues, bounded, and exports from a thread of its own.
    processor: BatchSpanProcessor,
    sampler: Box<dyn ShouldSample>,
    /// The secret by which sessions get their traces.
    identities: RandomState,
}

impl Spans {
    /// The one of this process; `None` where the environment names no collector. To be called within a tokio runtime.
    ///
    /// # Errors
    /// What is wrong with the environment.
    pub(super) fn of_process() -> Result<Option<Arc<Self>>, String> {
        static SPANS: OnceLock<Result<Option<Arc<Spans>>, String>> = OnceLock::new();
        SPANS.get_or_init(Self::from_environment).clone()
    }

    fn from_environment() -> Result<Option<Arc<Self>>, String> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let endpoint =
            ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"].into_iter().find_map(variable);
        let disabled = variable("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"));
        let Some(endpoint) = endpoint.filter(|_| !disabled) else { return Ok(None) };
        let exporter = SpanExporter::builder().with_http().with_http_client(client::Client::new(&endpoint)?).build();
        let exporter = exporter.map_err(|error| format!("can't export spans to {endpoint}: {error}"))?;
        let mut processor = BatchSpanProcessor::builder(exporter).build();
        processor.set_resource(&resource());
        info!(endpoint, "exporting spans");
        Ok(Some(Arc::new(Self { processor, sampler: Config::default().sampler, identities: RandomState::new() })))
    }

    /// Exports an operation's span, if its session is sampled.
    pub(super) fn operation(&self, record: &OperationRecord<'_>) {
        self.export(record.who.session, |session| operation_span(record, session));
    }

    /// Exports a session's span, if it is sampled.
    pub(super) fn session(&self, record: &SessionRecord<'_>) {
        self.export(record.who.session, |session| session_span(record, session));
    }

    /// Exports what is queued. Blocks.
    pub(super) fn finish(&self) {
        if let Err(error) = self.processor.shutdown() {
            warn!(%error, "spans are lost");
        }
    }

    fn export(&self, session: u64, span: impl FnOnce(&SpanContext) -> SpanData) {
        let session = context(&self.identities, session);
        let name = span::SESSION;
        let sampled = self.sampler.should_sample(None, session.trace_id(), name, &span::SESSION_KIND, &[], &[]);
        if sampled.decision == SamplingDecision::RecordAndSample {
            self.processor.on_end(span(&session));
        }
    }
}

/// The trace and span of a session: the same each time, and unlike those of any other process.
fn context(identities: &RandomState, session: u64) -> SpanContext {
    let part = |number: u8| identities.hash_one((session, number));
    let trace = TraceId::from((u128::from(part(0)) << 64) | u128::from(part(1)));
    SpanContext::new(trace, SpanId::from(part(2).max(1)), TraceFlags::SAMPLED, false, TraceState::NONE)
}

/// Who exports: what the environment says, else this program's name.
fn resource() -> Resource {
    let said = Resource::builder().build();
    let name = said.get(&"service.name".into()).map(|name| name.to_string());
    if name.is_some_and(|name| !name.starts_with("unknown_service")) {
        return said;
    }
    Resource::builder().with_service_name(env!("CARGO_PKG_NAME")).build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_has_one_trace_and_shares_it_with_no_other() {
        let identities = RandomState::new();
        assert_eq!(context(&identities, 7), context(&identities, 7));
        let (one, other) = (context(&identities, 7), context(&identities, 8));
        assert!(one.is_valid() && one.trace_id() != other.trace_id() && one.span_id() != other.span_id());
        assert_ne!(one.trace_id(), context(&RandomState::new(), 7).trace_id(), "another process");
    }
}
