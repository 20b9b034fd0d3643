//! One line per operation and per session, in JSON or text, without secrets. It never holds up the data path.

mod describe;
mod filter;
mod journal;
mod json;
mod record;
mod render;
#[cfg(test)]
mod samples;
mod selection;
#[cfg(feature = "otlp")]
mod spans;
mod writer;

use std::io;
use std::sync::{Arc, Weak};

pub use record::{OperationRecord, RequestPart, SessionRecord, Timing, TlsFacts, Who};

use crate::buffer::{Lent, Spares};
use crate::config::{self, AccessLogDetail, AccessLogOutput, LogFormat};
use crate::ldap::Request;
use crate::metrics::Metrics;
use selection::Selection;
pub use writer::try_file;
use writer::{Ended, Writer};

/// Where records go, if anywhere. A clone writes to the same outputs.
#[derive(Clone, Default)]
pub struct AccessLog {
    log: Option<Arc<Open>>,
    #[cfg(feature = "otlp")]
    spans: Option<(Arc<spans::Spans>, Redaction)>,
}

/// A log that another has replaced: sessions that began with it still write to it, and with the last of them it ends.
pub struct Retired {
    log: Weak<Open>,
    ended: Arc<Ended>,
}

/// Room that most lines fit in.
const USUAL_LINE: usize = 1000;

thread_local! {
    /// The buffer in which this worker writes each line.
    static SPARE_LINE: Spares<Vec<u8>> = const { Spares::new(1) };
}

/// Whether values of filters are left out.
#[cfg(feature = "otlp")]
type Redaction = bool;

struct Open {
    writer: Writer,
    format: LogFormat,
    operations: bool,
    redact_filters: bool,
    selection: Selection,
}

impl AccessLog {
    /// A log that is off costs one comparison per operation.
    pub fn off() -> Self {
        Self::default()
    }

    /// Opens the output that is configured; an error names it.
    pub fn start(settings: &config::AccessLog, metrics: Arc<Metrics>) -> io::Result<Self> {
        let log = match settings.output {
            AccessLogOutput::Off => None,
            _ => Some(Arc::new(Open {
                writer: Writer::start(&settings.output, metrics)?,
                format: settings.format,
                operations: settings.detail == AccessLogDetail::Operations,
                redact_filters: settings.redact_filters,
                selection: Selection::new(settings),
            })),
        };
        #[cfg(feature = "otlp")]
        let spans = spans::Spans::of_process().map_err(io::Error::other)?.map(|spans| (spans, settings.redact_filters));
        Ok(Self {
            log,
            #[cfg(feature = "otlp")]
            spans,
        })
    }

    /// Describes a request for the record that is written when it ends; `None` if none will be.
    pub fn describe(&self, request: &Request<'_>) -> Option<RequestPart> {
        let log = self.log.as_ref().filter(|log| log.operations);
        let written =
            log.map(|log| Lent::filled(|part| render::request_part(part, request, log.redact_filters, log.format)));
        #[cfg(feature = "otlp")]
        if let Some((_, redact)) = &self.spans {
            let attributes = spans::request_attributes(request, *redact);
            return Some(RequestPart { written: written.unwrap_or_default(), attributes });
        }
        Some(RequestPart {
            written: written?,
            #[cfg(feature = "otlp")]
            attributes: Vec::new(),
        })
    }

    /// Writes an operation's record, if it is one of those to be told.
    pub fn operation(&self, record: &OperationRecord<'_>) {
        if let Some(log) = self.log.as_ref().filter(|log| log.operations && log.selection.takes(record)) {
            log.write(|line| render::operation_line(line, record, log.format));
        }
        #[cfg(feature = "otlp")]
        if let Some((spans, _)) = &self.spans {
            spans.operation(record);
        }
    }

    /// Writes a session's record.
    pub fn session(&self, record: &SessionRecord<'_>) {
        if let Some(log) = &self.log {
            log.write(|line| render::session_line(line, record, log.format));
        }
        #[cfg(feature = "otlp")]
        if let Some((spans, _)) = &self.spans {
            spans.session(record);
        }
    }

    /// Whether there is anything to write to: a session's record needn't be made otherwise.
    pub fn is_on(&self) -> bool {
        #[cfg(feature = "otlp")]
        if self.spans.is_some() {
            return true;
        }
        self.log.is_some()
    }

    /// Opens the output again, after its file was moved away.
    pub fn reopen(&self) {
        if let Some(log) = &self.log {
            log.writer.reopen();
        }
    }

    /// Writes what is queued and closes the outputs. Blocks; later records are lost and counted.
    pub fn finish(&self) {
        if let Some(log) = &self.log {
            log.writer.finish();
        }
        #[cfg(feature = "otlp")]
        if let Some((spans, _)) = &self.spans {
            spans.finish();
        }
    }

    /// What is left to know of it once another log has replaced it; none if it was off.
    pub fn retire(&self) -> Option<Retired> {
        let log = self.log.as_ref()?;
        Some(Retired { log: Arc::downgrade(log), ended: Arc::clone(log.writer.ended()) })
    }
}

impl Open {
    fn write(&self, render: impl FnOnce(&mut Vec<u8>)) {
        let mut line = SPARE_LINE.with(Spares::lend).unwrap_or_else(|| Vec::with_capacity(USUAL_LINE));
        render(&mut line);
        self.writer.line(&line);
        line.clear();
        line.shrink_to(USUAL_LINE);
        SPARE_LINE.with(|spare| spare.take_back(line));
    }
}

impl Retired {
    /// Opens the output again, if somebody still writes to it.
    pub fn reopen(&self) {
        if let Some(log) = self.log.upgrade() {
            log.writer.reopen();
        }
    }

    /// Whether nothing will be written any more.
    pub fn is_over(&self) -> bool {
        self.ended.is_so()
    }

    /// As [`AccessLog::finish`].
    pub fn finish(&self) {
        match self.log.upgrade() {
            Some(log) => log.writer.finish(),
            // The last session has just gone; what it has said may still be queued.
            None => self.ended.wait(),
        }
    }
}
