//! From a [`Metric`] to a registered Prometheus family.

use std::collections::{BTreeMap, HashMap};
use std::marker::PhantomData;
use std::time::Duration;

use prometheus::core::{Collector, MetricVec, MetricVecBuilder};
use prometheus::{
    Counter, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry,
};

use super::names::{Metric, MetricType};
use crate::failure::ClosedList;

/// Upper bounds in seconds: a cached rootDSE read takes some 50 µs, a client gives up after 30 s.
pub(super) const DURATION_BUCKETS: [f64; 18] = [
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
    10.0, 30.0,
];

const NAMES_ARE_VALID: &str = "names.rs holds valid, distinct names, and a test registers them all";
const AS_MANY_VALUES: &str = "as many values as names.rs has labels";

pub(super) fn counters(registry: &Registry, metric: Metric) -> IntCounterVec {
    assert_eq!(metric.kind, MetricType::Counter);
    register(registry, IntCounterVec::new(Opts::new(metric.name, help(metric)), metric.labels))
}

pub(super) fn gauges(registry: &Registry, metric: Metric) -> IntGaugeVec {
    assert_eq!(metric.kind, MetricType::Gauge);
    register(registry, IntGaugeVec::new(Opts::new(metric.name, help(metric)), metric.labels))
}

pub(super) fn histograms(registry: &Registry, metric: Metric) -> HistogramVec {
    assert_eq!(metric.kind, MetricType::Histogram);
    let options = HistogramOpts::new(metric.name, help(metric)).buckets(DURATION_BUCKETS.to_vec());
    register(registry, HistogramVec::new(options, metric.labels))
}

pub(super) fn counter(registry: &Registry, metric: Metric) -> IntCounter {
    counter_of(&counters(registry, metric), &[])
}

pub(super) fn gauge(registry: &Registry, metric: Metric) -> IntGauge {
    gauge_of(&gauges(registry, metric), &[])
}

pub(super) fn float_gauge(registry: &Registry, metric: Metric) -> Gauge {
    assert_eq!(metric.kind, MetricType::Gauge);
    register(registry, Gauge::new(metric.name, help(metric)))
}

pub(super) fn float_counter(registry: &Registry, metric: Metric) -> Counter {
    assert_eq!(metric.kind, MetricType::Counter);
    register(registry, Counter::new(metric.name, help(metric)))
}

pub(super) fn counter_of(family: &IntCounterVec, values: &[&str]) -> IntCounter {
    family.get_metric_with_label_values(values).expect(AS_MANY_VALUES)
}

pub(super) fn gauge_of(family: &IntGaugeVec, values: &[&str]) -> IntGauge {
    family.get_metric_with_label_values(values).expect(AS_MANY_VALUES)
}

pub(super) fn histogram_of(family: &HistogramVec, values: &[&str]) -> Histogram {
    family.get_metric_with_label_values(values).expect(AS_MANY_VALUES)
}

/// Built with `RUSTFLAGS="--cfg no_metrics"` nothing is counted: only to measure what counting costs.
const COUNTS: bool = !cfg!(no_metrics);

pub(super) fn add(counter: &IntCounter, count: u64) {
    if COUNTS {
        counter.inc_by(count);
    }
}

pub(super) fn observe(histogram: &Histogram, duration: Duration) {
    if COUNTS {
        histogram.observe(duration.as_secs_f64());
    }
}

/// Records `count` samples of the same duration.
pub(super) fn observe_each(histogram: &Histogram, duration: Duration, count: usize) {
    /// From so many on, adding them up here first costs less than the locked additions of each.
    const MANY: usize = 4;
    if count < MANY {
        return (0..count).for_each(|_| observe(histogram, duration));
    }
    if COUNTS {
        let (local, seconds) = (histogram.local(), duration.as_secs_f64());
        (0..count).for_each(|_| local.observe(seconds));
        local.flush();
    }
}

/// All samples of a family now.
pub(super) fn samples(family: &impl Collector) -> Vec<prometheus::proto::Metric> {
    family.collect().iter_mut().flat_map(|family| family.take_metric()).collect()
}

/// Removes every series of a family whose `label` has this value, whatever its others are.
pub(super) fn forget<B: MetricVecBuilder>(family: &MetricVec<B>, label: &str, value: &str) {
    for sample in samples(family) {
        let labels: HashMap<_, _> = sample.get_label().iter().map(|pair| (pair.name(), pair.value())).collect();
        if labels.get(label) == Some(&value) {
            // One that has gone meanwhile is no error.
            let _ = family.remove(&labels);
        }
    }
}

/// One counter per value of a closed list: counting is an index and an atomic add.
#[derive(Debug, Clone)]
pub struct Counters<L> {
    counters: Box<[IntCounter]>,
    list: PhantomData<L>,
}

impl<L: ClosedList> Counters<L> {
    /// The counters of `family` whose last label is the list's value and whose other labels are `first`.
    pub(super) fn new(family: &IntCounterVec, first: &[&str]) -> Self {
        let counters = L::ALL.iter().map(|value| counter_of(family, &[first, &[value.as_str()]].concat())).collect();
        Self { counters, list: PhantomData }
    }

    /// Counts one.
    pub fn count(&self, value: L) {
        add(&self.counters[value.index()], 1);
    }

    /// What was counted at all, by the label's text.
    pub fn nonzero(&self) -> BTreeMap<String, u64> {
        let counted = L::ALL.iter().map(|value| (value.as_str().to_owned(), self.total(*value)));
        counted.filter(|(_, count)| *count > 0).collect()
    }

    /// How many were counted.
    pub fn total(&self, value: L) -> u64 {
        self.counters[value.index()].get()
    }
}

/// Holds a gauge one higher while it lives.
#[derive(Debug)]
pub struct Held(IntGauge);

impl Held {
    pub(super) fn new(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// This holder's part of a gauge that many holders share; gone from it when dropped.
#[derive(Debug)]
pub struct Share {
    gauge: IntGauge,
    part: i64,
}

impl Share {
    pub(super) fn new(gauge: &IntGauge) -> Self {
        Self { gauge: gauge.clone(), part: 0 }
    }

    /// Makes this holder's part `now`.
    pub fn set(&mut self, now: usize) {
        let now = i64::try_from(now).unwrap_or(i64::MAX);
        if COUNTS && now != self.part {
            self.gauge.add(now - self.part);
            self.part = now;
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.gauge.sub(self.part);
    }
}

fn register<F: Collector + Clone + 'static>(registry: &Registry, family: prometheus::Result<F>) -> F {
    let family = family.expect(NAMES_ARE_VALID);
    registry.register(Box::new(family.clone())).expect(NAMES_ARE_VALID);
    family
}

fn help(metric: Metric) -> &'static str {
    metric.help.trim()
}
