//! What the process itself uses, under the names every Prometheus client library gives these figures.

use std::time::{SystemTime, UNIX_EPOCH};

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage};
use prometheus::core::{AtomicF64, GenericCounter};
use prometheus::{Counter, Gauge, Registry};

use super::families::{float_counter, float_gauge};
use super::names;

/// Figures read from the kernel when they are asked for. One that can't be read keeps its last value.
#[derive(Debug)]
pub(super) struct ProcessMetrics {
    resident_memory: Gauge,
    open_fds: Gauge,
    max_fds: Gauge,
    cpu: Counter,
}

impl ProcessMetrics {
    pub(super) fn new(registry: &Registry) -> Self {
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        float_gauge(registry, names::PROCESS_START_TIME).set(started.as_secs_f64());
        let process = Self {
            resident_memory: float_gauge(registry, names::PROCESS_RESIDENT_MEMORY),
            open_fds: float_gauge(registry, names::PROCESS_OPEN_FDS),
            max_fds: float_gauge(registry, names::PROCESS_MAX_FDS),
            cpu: float_counter(registry, names::PROCESS_CPU),
        };
        process.read();
        process
    }

    pub(super) fn read(&self) {
        if let Some(bytes) = resident_memory() {
            self.resident_memory.set(bytes as f64);
        }
        if let Ok(descriptors) = std::fs::read_dir("/proc/self/fd") {
            // The listing holds a descriptor of its own.
            self.open_fds.set(descriptors.count().saturating_sub(1) as f64);
        }
        if let Ok((soft, _)) = getrlimit(Resource::RLIMIT_NOFILE) {
            self.max_fds.set(soft as f64);
        }
        if let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) {
            raise_to(&self.cpu, seconds(usage.user_time()) + seconds(usage.system_time()));
        }
    }
}

fn resident_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kilobytes = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.trim().strip_suffix(" kB")?;
    Some(kilobytes.trim().parse::<u64>().ok()? * 1024)
}

fn seconds(time: nix::sys::time::TimeVal) -> f64 {
    time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6
}

/// Two scrapes at once may read the figure in either order, and a counter never falls.
fn raise_to(counter: &GenericCounter<AtomicF64>, value: f64) {
    let rise = value - counter.get();
    if rise > 0.0 {
        counter.inc_by(rise);
    }
}
