//! Whether a policy in training is well: how far it is from its reference, whether it still varies, and whether its answers
//! are of a kind that the score models know.

use saddle_core::ScoredRollout;
use saddle_lm::ScoreRange;
use saddle_training::config::{AlarmsSection, TrainConfig};
use saddle_training::{Alarm, Turn, UpdateMetrics};

/// Watches one run.
pub(super) struct Health {
    reference_kl_bound: f64,
    section: AlarmsSection,
    first_entropy: Option<f64>,
    divergence: Alarm,
    entropy: Alarm,
    /// Of the reward and then of each cost: the range that its model was trained on, where that is known.
    streams: Vec<Stream>,
}

struct Stream {
    name: String,
    range: Option<ScoreRange>,
    alarm: Alarm,
    /// Share of the last batch outside.
    ratio: f64,
}

impl Health {
    /// Of a run whose score models have the ranges `ranges`: the reward's, then each cost's.
    pub(super) fn new(config: &TrainConfig, ranges: Vec<Option<ScoreRange>>) -> Self {
        let names = std::iter::once("reward").chain(config.constraints.keys().map(String::as_str));
        let streams = names.zip(ranges).map(|(name, range)| Stream {
            name: name.to_owned(),
            range,
            alarm: Alarm::default(),
            ratio: 0.0,
        });
        Self {
            reference_kl_bound: config.alarms.reference_kl_bound(&config.shaping),
            section: config.alarms.clone(),
            first_entropy: None,
            divergence: Alarm::default(),
            entropy: Alarm::default(),
            streams: streams.collect(),
        }
    }

    /// Share of the scores of a batch that are outside the range of their model, by stream.
    pub(super) fn out_of_range(&mut self, rollouts: &[ScoredRollout]) -> Vec<(String, f64)> {
        let mut ratios = Vec::new();
        for (index, stream) in self.streams.iter_mut().enumerate() {
            let Some(range) = &stream.range else { continue };
            let score = |each: &ScoredRollout| match index.checked_sub(1) {
                None => f64::from(each.reward),
                Some(constraint) => each.costs.get(constraint).copied().map_or(f64::NAN, f64::from),
            };
            stream.ratio = range.excess_ratio(rollouts.iter().map(score));
            ratios.push((stream.name.clone(), stream.ratio));
        }
        ratios
    }

    /// Takes in what `update` came to. Returns what there is to tell.
    pub(super) fn observe(&mut self, update: u64, metrics: &UpdateMetrics) -> Vec<String> {
        let mut told = Vec::new();
        let remedy = "set shaping.reference_kl.target, or raise shaping.kl_coefficient";
        let (divergence, bound) = (metrics.kl.current_reference, self.reference_kl_bound);
        let within = divergence <= bound;
        let turn = self.divergence.observe(update, !within);
        let text = format!("divergence from the reference is {divergence:.1} nats a response, the bound is {bound:.1}");
        told.extend(turn.and_then(|turn| tell(turn, &text, remedy)));
        let entropy = metrics.entropy;
        let bound = self.section.entropy_ratio * *self.first_entropy.get_or_insert(entropy);
        let varies = entropy >= bound;
        let turn = self.entropy.observe(update, !varies);
        let text = format!("entropy is {entropy:.2} nats a token, the bound is {bound:.2}: the policy hardly varies");
        told.extend(turn.and_then(|turn| tell(turn, &text, remedy)));
        for Stream { name, range, alarm, ratio } in &mut self.streams {
            let Some(ScoreRange { low, high }) = range else { continue };
            let turn = alarm.observe(update, *ratio > self.section.score_range_ratio);
            let text = format!(
                "{:.0} % of the {name} scores are outside {low:.2}..{high:.2}, which their model was trained on",
                100.0 * *ratio
            );
            let remedy = "the model may be talked round: keep the policy nearer by shaping.reference_kl.target, or label such answers and train the model again";
            told.extend(turn.and_then(|turn| tell(turn, &text, remedy)));
        }
        told
    }
}

/// What to say of a turn; the end of a condition needs no remedy.
fn tell(turn: Turn, text: &str, remedy: &str) -> Option<String> {
    match turn {
        Turn::Begun => Some(format!("ALARM {text}; {remedy}")),
        Turn::Lasts(updates) => Some(format!("ALARM for {updates} updates: {text}; {remedy}")),
        Turn::Ended(updates) => Some(format!("no alarm any more, after {updates} updates: {text}")),
    }
}
