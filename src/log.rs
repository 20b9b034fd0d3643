//! The log of the proxy itself: set-up, and a level and a form that can change while it runs.

use std::io::{self, IsTerminal};
use std::sync::Arc;

use tracing::level_filters::LevelFilter;
use tracing::{Metadata, Subscriber};
use tracing_subscriber::filter::FilterFn;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

use crate::config::{self, LogFormat};

/// Changes a running log.
#[derive(Clone)]
pub struct LogHandle {
    level: reload::Handle<EnvFilter, Registry>,
    set_format: Arc<dyn Fn(LogFormat) -> Result<(), reload::Error> + Send + Sync>,
}

/// Starts logging to standard error: standard output is for the access log and for what commands print. To be called
/// once; an error says what is wrong with the level.
pub fn start(settings: &config::Log) -> Result<LogHandle, String> {
    let (subscriber, handle) = subscriber(settings, io::stderr, io::stderr().is_terminal())?;
    tracing::subscriber::set_global_default(subscriber).map_err(|_| "logging has been started already".to_owned())?;
    Ok(handle)
}

impl LogHandle {
    /// Takes a filter as `[log] level`: "debug", "info,ldaps_proxy::health=trace". An error says what is wrong with it.
    pub fn set_level(&self, level: &str) -> Result<(), String> {
        let filter = parse(level)?;
        self.level.reload(filter).map_err(|error| error.to_string())
    }

    /// Writes from now on as `[log] format` says.
    pub fn set_format(&self, format: LogFormat) -> Result<(), String> {
        (self.set_format)(format).map_err(|error| error.to_string())
    }
}

/// Whether `level` is a filter; the configuration's check asks this.
pub fn parse(level: &str) -> Result<EnvFilter, String> {
    // EnvFilter takes a lone word that is no level for the name of a target, and then logs nothing else.
    let is_level = |word: &str| !word.is_empty() && word.parse::<LevelFilter>().is_ok();
    let lone = level.split(',').map(str::trim).find(|part| !part.contains(['=', '[']) && !is_level(part));
    if let Some(word) = lone {
        return Err(format!("{word:?} is no log level: use error, warn, info, debug, trace or off, or TARGET=LEVEL"));
    }
    // To EnvFilter a space after a comma is a mistake.
    let parts: Vec<_> = level.split(',').map(str::trim).collect();
    EnvFilter::builder().parse(parts.join(",")).map_err(|error| format!("{level:?} is no log level: {error}"))
}

fn subscriber<W>(settings: &config::Log, writer: W, colour: bool) -> Result<(impl Subscriber, LogHandle), String>
where
    W: for<'a> MakeWriter<'a> + Clone + Send + Sync + 'static,
{
    let (filter, level) = reload::Layer::new(parse(&settings.level)?);
    let layer = move |format| {
        let layer = fmt::layer().with_writer(writer.clone());
        match format {
            LogFormat::Text => layer.with_ansi(colour).boxed(),
            // Without spans: one that began in the other form would have no fields for this one.
            LogFormat::Json => layer.json().flatten_event(true).with_current_span(false).with_span_list(false).boxed(),
        }
    };
    let (format, handle) = reload::Layer::new(layer(settings.format));
    let subscriber = tracing_subscriber::registry().with(filter).with(FilterFn::new(is_safe)).with(format);
    let set_format = Arc::new(move |format| handle.reload(layer(format)));
    Ok((subscriber, LogHandle { level, set_format }))
}

/// `ldap3_proto` prints passwords below WARN, whatever the filter asks for.
fn is_safe(event: &Metadata<'_>) -> bool {
    let of_ldap3 = event.target().split("::").next() == Some("ldap3_proto");
    !of_ldap3 || *event.level() <= LevelFilter::WARN
}

#[cfg(test)]
impl LogHandle {
    /// The handle of a log that nobody reads.
    pub fn of_no_log() -> Self {
        subscriber(&config::Log::default(), io::sink, false).expect("the default level is one").1
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing::{debug, info, trace, warn};

    use super::*;

    /// Everything logged, as text.
    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no test panics while holding it").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What is logged at this level and in this format while `work` runs.
    fn logged(level: &str, format: LogFormat, work: impl FnOnce(&LogHandle)) -> String {
        let sink = Sink::default();
        let writer = sink.clone();
        let settings = config::Log { level: level.into(), format };
        let (subscriber, handle) = subscriber(&settings, move || writer.clone(), false).expect("a level");
        tracing::subscriber::with_default(subscriber, || work(&handle));
        let logged = sink.0.lock().expect("no test panics while holding it");
        String::from_utf8(logged.clone()).expect("text")
    }

    #[test]
    fn the_level_can_change() {
        let log = logged("info", LogFormat::Text, |log| {
            debug!("before");
            log.set_level("debug").expect("a level");
            debug!("after");
            log.set_level("nonsense=nonsense").expect_err("no level");
            debug!("still");
        });
        assert!(!log.contains("before") && log.contains("after") && log.contains("still"), "{log}");
    }

    #[test]
    fn the_form_can_change_in_the_middle_of_a_span() {
        let log = logged("info", LogFormat::Text, |log| {
            let _span = tracing::info_span!("a library's", field = 1).entered();
            info!("text");
            log.set_format(LogFormat::Json).expect("the log is there");
            info!("object");
            log.set_format(LogFormat::Text).expect("the log is there");
            info!("text again");
        });
        let lines: Vec<_> = log.lines().collect();
        assert!(lines.len() == 3 && lines[0].ends_with(": text") && lines[2].ends_with(": text again"), "{log}");
        let event: serde_json::Value = serde_json::from_str(lines[1]).expect("one object");
        assert_eq!(event["message"], "object");
    }

    #[test]
    fn fields_follow_the_message() {
        let log = logged("info", LogFormat::Text, |_| info!(address = %"127.0.0.1:9636", "admin listening"));
        assert!(log.ends_with("admin listening address=127.0.0.1:9636\n"), "{log}");
        let log = logged("info", LogFormat::Json, |_| info!(address = %"127.0.0.1:9636", "admin listening"));
        let event: serde_json::Value = serde_json::from_str(&log).expect("one object");
        assert_eq!((&event["message"], &event["address"]), (&"admin listening".into(), &"127.0.0.1:9636".into()));
    }

    #[test]
    fn no_filter_lets_ldap3_print_a_password() {
        for level in ["trace", "ldap3_proto=trace", "ldap3_proto::proto=trace", "info,[{secret}]=trace"] {
            let log = logged(level, LogFormat::Text, |_| {
                trace!(target: "ldap3_proto::proto", "secret");
                debug!(target: "ldap3_proto", "secret");
                info!(target: "ldap3_proto", "secret");
                warn!(target: "ldap3_proto", "harmless");
            });
            assert!(!log.contains("secret"), "{level}: {log}");
        }
        assert!(logged("trace", LogFormat::Text, |_| warn!(target: "ldap3_proto", "harmless")).contains("harmless"));
    }

    #[test]
    fn a_level_is_a_level_or_a_filter() {
        for good in ["info", "DEBUG", "off", "info,ldaps_proxy::health=debug", "info, ldaps_proxy=debug "] {
            assert!(parse(good).is_ok(), "{good}");
        }
        for bad in ["", " ", "warning", "info,ldaps_proxy=loud", "info,verbose"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
