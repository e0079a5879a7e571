//! The recorder of one run, and the text that Prometheus reads.

use crate::catalogue::{AREAS, BUILD_INFO, PROCESS_CPU, PROCESS_MEMORY};
use crate::process::ProcessUse;
use crate::{Gauge, Kind, SecondsCounter, Spec, TelemetryError};
use metrics::Recorder;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How often recorded samples are moved into their buckets. Between two times they take memory.
const UPKEEP: Duration = Duration::from_secs(5);

/// The role whose actors have series by their index alone.
const GENERATOR: &str = "generator";

/// The metrics of one run. Handles come from [`Family::of`](crate::Family::of).
pub struct Telemetry {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    memory: Gauge,
    cpu: SecondsCounter,
    /// Labels, as they are rendered, whose series are left out: those of actors that are no more.
    hidden: Mutex<BTreeSet<String>>,
}

impl Telemetry {
    /// A recorder that knows every metric of the table, with `build_info` for the program's `version`. Counters without
    /// labels start at 0; everything else appears with its first handle.
    ///
    /// # Errors
    /// [`TelemetryError::Buckets`] if the table is wrong.
    pub fn new(version: &str) -> Result<Self, TelemetryError> {
        let mut builder = PrometheusBuilder::new();
        for spec in specs().filter(|spec| spec.kind == Kind::Histogram) {
            let refused = |source| TelemetryError::Buckets { name: spec.name, source };
            builder =
                builder.set_buckets_for_metric(Matcher::Full(spec.name.to_owned()), spec.buckets).map_err(refused)?;
        }
        let recorder = builder.build_recorder();
        for spec in specs() {
            spec.describe(&recorder);
            if spec.kind == Kind::Counter && spec.labels.is_empty() {
                let _ =
                    <crate::Counter as crate::Handle>::register(&recorder, &metrics::Key::from_static_name(spec.name));
            }
        }
        let handle = recorder.handle();
        let (memory, cpu) = (Gauge::noop(), SecondsCounter::noop());
        let mut telemetry = Self { recorder, handle, memory, cpu, hidden: Mutex::default() };
        telemetry.memory = PROCESS_MEMORY.of(&telemetry, []);
        telemetry.cpu = PROCESS_CPU.of(&telemetry, []);
        let profile = if cfg!(debug_assertions) { "debug" } else { "release" };
        BUILD_INFO.of(&telemetry, [version, profile]).set(1.0);
        Ok(telemetry)
    }

    /// Every metric that has a handle, in Prometheus' text format, with the process's memory and processor time as they
    /// are now.
    #[must_use]
    pub fn render(&self) -> String {
        if let Some(process) = ProcessUse::now() {
            self.memory.set(process.memory_bytes as f64);
            self.cpu.follow(process.cpu);
        }
        let mut text = self.handle.render();
        for spec in specs().filter(|spec| spec.kind == Kind::SecondsCounter) {
            text = text.replace(&format!("# TYPE {} gauge\n", spec.name), &format!("# TYPE {} counter\n", spec.name));
        }
        let hidden = self.hidden.lock().unwrap_or_else(PoisonError::into_inner);
        if hidden.is_empty() {
            return text;
        }
        let is_shown = |line: &&str| !hidden.iter().any(|labels| line.contains(labels.as_str()));
        text.lines().filter(is_shown).flat_map(|line| [line, "\n"]).collect()
    }

    /// Shows the series that an actor has by its role and index, or by its index alone as generators do; or leaves them out,
    /// since it is no more.
    pub fn show_actor(&self, role: &str, index: usize, shown: bool) {
        let labels = [format!("role=\"{role}\",index=\"{index}\""), format!("{{index=\"{index}\"}}")];
        let own = if role == GENERATOR { 2 } else { 1 };
        let mut hidden = self.hidden.lock().unwrap_or_else(PoisonError::into_inner);
        for labels in labels.into_iter().take(own) {
            if shown {
                hidden.remove(&labels);
            } else {
                hidden.insert(labels);
            }
        }
    }

    /// Keeps memory bounded, for ever: to be run as a task beside whatever records. [`Server`](crate::Server) does it.
    pub async fn upkeep(&self) {
        loop {
            self.handle.run_upkeep();
            tokio::time::sleep(UPKEEP).await;
        }
    }

    pub(crate) fn recorder(&self) -> &dyn Recorder {
        &self.recorder
    }
}

impl fmt::Debug for Telemetry {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Telemetry").finish_non_exhaustive()
    }
}

fn specs() -> impl Iterator<Item = &'static Spec> {
    AREAS.iter().flat_map(|(_, specs)| specs.iter().copied())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue;

    fn telemetry() -> Telemetry {
        Telemetry::new("9.9.9").unwrap()
    }

    fn lines<'a>(text: &'a str, name: &str) -> Vec<&'a str> {
        text.lines().filter(|line| line.split([' ', '{']).any(|word| word.starts_with(name))).collect()
    }

    #[test]
    fn every_kind_is_rendered_with_its_type_and_help() {
        let telemetry = telemetry();
        catalogue::ROLLOUTS.of(&telemetry, ["trained"]).increment(3);
        catalogue::LAMBDA.of(&telemetry, ["harm"]).set(0.5);
        catalogue::EDGE_BACKPRESSURE.of(&telemetry, ["join→learner"]).add(Duration::from_millis(250));
        catalogue::EDGE_BACKPRESSURE.of(&telemetry, ["join→learner"]).add(Duration::from_millis(500));
        let text = telemetry.render();
        for line in [
            "# TYPE saddle_rollouts_total counter",
            "saddle_rollouts_total{outcome=\"trained\"} 3",
            "# TYPE saddle_lambda gauge",
            "# HELP saddle_lambda Lagrange multiplier λ of the constraint.",
            "saddle_lambda{constraint=\"harm\"} 0.5",
            "# TYPE saddle_edge_backpressure_seconds_total counter",
            "saddle_edge_backpressure_seconds_total{edge=\"join→learner\"} 0.75",
            "saddle_truncated_total 0",
            "saddle_build_info{version=\"9.9.9\",profile=\"",
        ] {
            assert!(text.lines().any(|found| found.starts_with(line)), "{line}\nis not in\n{text}");
        }
    }

    #[test]
    fn every_histogram_has_its_own_buckets_and_none_is_a_summary() {
        let telemetry = telemetry();
        let staleness = catalogue::ROLLOUT_STALENESS.of(&telemetry, ["consumed"]);
        [0.0, 1.0, 1.0, 20.0].into_iter().for_each(|versions| staleness.record(versions));
        let text = telemetry.render();
        let series = |bound: &str, count: u64| {
            format!("saddle_rollout_staleness_versions_bucket{{stage=\"consumed\",le=\"{bound}\"}} {count}")
        };
        let expected = [("0", 1), ("1", 3), ("2", 3), ("3", 3), ("4", 3), ("6", 3), ("8", 3), ("16", 3), ("+Inf", 4)];
        let expected = expected.map(|(bound, count)| series(bound, count));
        assert_eq!(lines(&text, "saddle_rollout_staleness_versions_bucket"), expected);
        assert!(!text.contains("summary"), "{text}");
    }

    #[test]
    fn two_telemetries_share_nothing() {
        let (one, other) = (telemetry(), telemetry());
        catalogue::POLICY_VERSION.of(&one, []).set(7.0);
        assert!(lines(&other.render(), "saddle_policy_version").is_empty());
        assert!(one.render().contains("saddle_policy_version 7\n"));
    }

    #[test]
    fn an_actor_that_is_no_more_has_no_series_until_it_is_back() {
        let telemetry = telemetry();
        for index in ["1", "12"] {
            catalogue::ACTOR_HEARTBEAT.of(&telemetry, ["generator", index]).set(1.0);
            catalogue::GENERATED_TOKENS.of(&telemetry, [index]).increment(1);
        }
        let series =
            || lines(&telemetry.render(), "saddle_").into_iter().filter(|line| line.contains("index=")).count();
        telemetry.show_actor("generator", 1, false);
        telemetry.show_actor("generator", 1, false);
        assert_eq!(series(), 2);
        telemetry.show_actor("generator", 1, true);
        assert_eq!(series(), 4);
    }

    #[test]
    fn the_process_is_measured() {
        let text = telemetry().render();
        let memory = text.lines().find_map(|line| line.strip_prefix("saddle_process_memory_bytes ")).unwrap();
        assert!(memory.parse::<f64>().unwrap() > 1e5, "{memory} bytes");
        assert!(text.contains("# TYPE saddle_process_cpu_seconds_total counter\n"));
    }
}
