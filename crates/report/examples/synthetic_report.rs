//! Writes a report of made-up but plausible numbers, to look at its design:
//! `cargo run -p saddle-report --example synthetic_report -- report.html`

use std::collections::BTreeMap;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use saddle_report::{ReportInput, Stage, SummaryRow, render};
use saddle_store::{Decoding, Machine, MetricsRow, ResponseRecord};

fn main() -> std::io::Result<()> {
    let path = std::env::args().nth(1).unwrap_or_else(|| "report.html".to_owned());
    std::fs::write(path, render(&input()))
}

fn input() -> ReportInput {
    let mut random = ChaCha8Rng::seed_from_u64(7);
    let row = |label: &str, before: &str, after: &str, note: &str| SummaryRow {
        label: label.into(),
        before: before.into(),
        after: after.into(),
        note: note.into(),
    };
    let stage = |name: &str, table: &[(&str, &str)]| Stage {
        name: name.into(),
        table: table.iter().map(|&(what, figure)| (what.into(), figure.into())).collect(),
    };
    ReportInput {
        title: "Safe RLHF on the embedded world".into(),
        subtitle: "Made-up numbers. A policy is trained to be as helpful as it can be while its \
                   mean cost stays below a limit; λ weighs the two."
            .into(),
        before: "sft".into(),
        after: "trained".into(),
        summary: vec![
            row("Reward", "0.86", "2.44", "reward model, mean over sampled answers"),
            row("Cost", "0.71", "−0.06", "cost model, mean; the limit is 0"),
            row("Unsafe answers", "43.0 %", "11.5 %", "cost above 0"),
            row("Gold helpfulness", "0.91", "2.20", "5.0 is the best reachable under the limit"),
        ],
        stages: vec![
            stage("Supervised fine-tuning", &[("Held-out loss", "0.93 nats per token"), ("Time", "11.2 s")]),
            stage(
                "Reward model",
                &[("Held-out pair accuracy", "81.4 %"), ("The annotators' own", "84.0 %"), ("Time", "9.8 s")],
            ),
            stage(
                "Cost model",
                &[
                    ("Held-out pair accuracy", "79.9 %"),
                    ("The annotators' own", "83.1 %"),
                    ("Sign accuracy", "90.2 %"),
                    ("Time", "10.4 s"),
                ],
            ),
        ],
        updates: updates(&mut random),
        evaluations: Vec::new(),
        constraint: "cost".into(),
        cost_limit: 0.0,
        responses: responses(&mut random),
        config_toml: "seed = 7\n\n[policy]\nbatch_responses = 128\nlearning_rate = 3e-4\n\
                      kl_coefficient = 0.05\nmax_staleness = 1\n\n[constraint.harm]\nlimit = 0.0\n"
            .into(),
        machine: Machine::read("2.11.0"),
        command: "saddle demo --run runs/demo --seed 7".into(),
    }
}

fn noise(random: &mut ChaCha8Rng) -> f64 {
    (0..6).map(|_| random.random_range(-1.0..1.0)).sum::<f64>() / 1.4
}

fn updates(random: &mut ChaCha8Rng) -> Vec<MetricsRow> {
    let update = |step: u32| {
        let t = f64::from(step) / 150.0;
        let rise = 1.0 - (-3.0 * t).exp();
        let hazardous = 1.9 * (-4.0 * t).exp() + 0.35 * (-2.0 * t).exp() * (9.0 * t).sin() - 0.05;
        let metrics = [
            ("reward_mean", 0.86 + 1.75 * rise + 0.12 * noise(random)),
            ("gold_helpfulness_mean", 0.91 + 1.45 * rise + 0.12 * noise(random)),
            ("cost_mean", 0.5 * hazardous - 0.12 + 0.08 * noise(random)),
            ("gold_harm_mean", 0.5 * hazardous - 0.05 + 0.09 * noise(random)),
            ("cost_mean_benign", -0.55 + 0.05 * noise(random)),
            ("cost_mean_hazardous", hazardous + 0.3 + 0.12 * noise(random)),
            ("unsafe_ratio", (0.12 + 0.32 * (-4.0 * t).exp() + 0.03 * noise(random)).max(0.0)),
            ("lambda", 1.0 + 0.9 * (5.0 * t).sin() * (-1.5 * t).exp() + 0.4 * t),
            ("kl_current_reference", 0.9 * rise + 0.04 * noise(random)),
            ("response_length_mean", 6.1 + 0.9 * rise + 0.2 * noise(random)),
            ("policy_loss", -0.01 + 0.01 * noise(random)),
            ("reward_critic_loss", 0.9 * (-4.0 * t).exp() + 0.25 + 0.04 * noise(random)),
            ("cost_critic_loss", 0.6 * (-4.0 * t).exp() + 0.18 + 0.03 * noise(random)),
        ];
        let values: BTreeMap<String, Option<f64>> =
            metrics.into_iter().map(|(name, value)| (name.to_owned(), Some(value))).collect();
        MetricsRow { step: u64::from(step), seconds: 0.33 * f64::from(step), values }
    };
    (1..=150).map(update).collect()
}

fn responses(random: &mut ChaCha8Rng) -> Vec<ResponseRecord> {
    let tasks = ["bake bread", "plant a tree", "pick a lock", "sharpen a knife", "mix cleaners"];
    let steps = ["first", "measure", "mix", "wait", "open", "check", "carefully", "then", "stop"];
    let mut responses = Vec::new();
    for decoding in [Decoding::Sampled, Decoding::Greedy] {
        for index in 0..200 {
            let hazardous = index % 5 >= 2;
            let prompt = format!("how do I {} at home, attempt {index} ?", tasks[index % 5]);
            for (model, reward, cost) in [("sft", 0.86, 1.1), ("trained", 2.4, 0.1)] {
                let reward = reward + 0.9 * noise(random);
                let cost = if hazardous { cost + 0.8 * noise(random) } else { -0.6 + 0.3 * noise(random) };
                let length = random.random_range(3..9);
                let words = (0..length).map(|_| steps[random.random_range(0..steps.len())]);
                responses.push(ResponseRecord {
                    model: model.into(),
                    decoding,
                    kind: Some(if hazardous { "hazardous" } else { "benign" }.into()),
                    prompt: prompt.clone(),
                    response: words.collect::<Vec<_>>().join(" "),
                    reward,
                    cost,
                    gold_helpfulness: Some((2.0 * reward).round() / 2.0),
                    gold_harm: Some((cost + 0.2 * noise(random)).round() - 0.5),
                });
            }
        }
    }
    responses
}
