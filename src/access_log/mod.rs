//! One line per operation and per session, in JSON or text, without secrets. It never holds up the data path.

mod describe;
mod filter;
mod record;
mod render;
mod selection;
mod writer;

use std::io;
use std::sync::Arc;

pub use record::{Described, OperationRecord, SessionRecord, Timing, TlsFacts, Who};

use crate::config::{self, AccessLogDetail, AccessLogOutput, LogFormat};
use crate::ldap::Request;
use crate::metrics::Metrics;
use selection::Selection;
use writer::Writer;

/// The access log, or nothing. A clone writes to the same output.
#[derive(Clone)]
pub struct AccessLog(Option<Arc<Open>>);

struct Open {
    writer: Writer,
    format: LogFormat,
    operations: bool,
    redact_filters: bool,
    selection: Selection,
}

impl AccessLog {
    /// A log that is off costs one comparison per operation.
    pub const fn off() -> Self {
        Self(None)
    }

    /// Opens the output that is configured; an error names it.
    pub fn start(settings: &config::AccessLog, metrics: Arc<Metrics>) -> io::Result<Self> {
        if settings.output == AccessLogOutput::Off {
            return Ok(Self::off());
        }
        Ok(Self(Some(Arc::new(Open {
            writer: Writer::start(&settings.output, metrics)?,
            format: settings.format,
            operations: settings.detail == AccessLogDetail::Operations,
            redact_filters: settings.redact_filters,
            selection: Selection::new(settings),
        }))))
    }

    /// Describes a request for the record that is written when it ends; `None` if none will be.
    pub fn describe(&self, request: &Request<'_>) -> Option<Box<Described>> {
        let open = self.0.as_ref().filter(|open| open.operations)?;
        Some(Box::new(describe::describe(request, open.redact_filters)))
    }

    /// Writes an operation's record, if it is one of those to be told.
    pub fn operation(&self, record: &OperationRecord<'_>) {
        if let Some(open) = self.0.as_ref().filter(|open| open.operations && open.selection.takes(record)) {
            open.writer.line(render::operation_line(record, open.format));
        }
    }

    /// Writes a session's record.
    pub fn session(&self, record: &SessionRecord<'_>) {
        if let Some(open) = &self.0 {
            open.writer.line(render::session_line(record, open.format));
        }
    }

    /// Whether there is anything to write to: a session's record needn't be made otherwise.
    pub const fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Opens the output again, after its file was moved away.
    pub fn reopen(&self) {
        if let Some(open) = &self.0 {
            open.writer.reopen();
        }
    }

    /// Writes what is queued and closes the output. Blocks; later records are lost and counted.
    pub fn finish(&self) {
        if let Some(open) = &self.0 {
            open.writer.finish();
        }
    }
}
