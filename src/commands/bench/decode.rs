//! `saddle bench decode`: tokens a second of greedy decoding, beside the floor that the machine sets.
//!
//! A step has to read every weight of its products once, and to make two operations for each weight and sequence; the
//! floor of a step is the longer of the two times, at the memory bandwidth and the product rate measured in the same run.
//! Responses are as long as asked for: no token ends them.

use crate::cli::DecodeArgs;
use crate::failure::Failure;
use crate::run;
use crate::table::{print, table};
use saddle_core::{PolicyVersion, Prompt, PromptOrdinal};
use saddle_libtorch::peaks;
use saddle_lm::{DecodeSettings, DecodingBatch, DecodingWeights, Policy, Precision, Sampling};
use saddle_training::PolicyModel;
use serde::Serialize;
use std::time::Instant;

/// One line of the table; times are medians.
#[derive(Serialize)]
struct Measured {
    batch: usize,
    /// Of a whole run: prompts read, responses made.
    tokens_per_second: f64,
    prefill_milliseconds: f64,
    step_milliseconds: f64,
    floor_milliseconds: f64,
    /// step / floor.
    times_floor: f64,
}

#[derive(Serialize)]
struct Report {
    precision: Precision,
    threads: usize,
    read_gigabytes_per_second: f64,
    product_gigaflops: f64,
    /// What a step reads.
    weight_megabytes: f64,
    rows: Vec<Measured>,
}

pub(in crate::commands) fn decode(args: &DecodeArgs) -> Result<(), Failure> {
    for (option, holds) in [
        ("--batch", !args.batch.is_empty() && args.batch.iter().all(|rows| (1..=4096).contains(rows))),
        ("--prompt-tokens", args.prompt_tokens > 0),
        ("--new-tokens", args.new_tokens > 1),
        ("--repeats", (1..=1000).contains(&args.repeats)),
    ] {
        if !holds {
            return Err(Failure::usage(format!("{option}: out of range; --help says what it is")));
        }
    }
    let device = run::device(&args.model.section())?;
    let PolicyModel { policy, .. } = PolicyModel::load(&args.model.model, device)?;
    let (read, longest) = (args.prompt_tokens + args.new_tokens, policy.config().max_position_embeddings);
    if read > longest {
        return Err(Failure::usage(format!(
            "--prompt-tokens and --new-tokens make {read} tokens, the model reads {longest}"
        )));
    }
    let precision = args.precision.into();
    let weights = DecodingWeights::new(&policy, precision)?;
    let bandwidth = peaks::read_bytes_per_second(device)?;
    let rate = peaks::product_flops_per_second(device, precision.kind())?;
    let numbers = product_weights(&policy);
    let bytes = (numbers * precision.kind().elt_size_in_bytes()) as f64;
    let mut rows = Vec::new();
    for &batch in &args.batch {
        let mut runs = Vec::with_capacity(args.repeats);
        for _ in 0..args.repeats {
            runs.push(once(args, &policy, &weights, batch)?);
        }
        let floor = (bytes / bandwidth).max(2.0 * (numbers * batch) as f64 / rate);
        let prefill = super::median(runs.iter().map(|(prefill, _)| *prefill).collect());
        let step = super::median(runs.iter().flat_map(|(_, steps)| steps).copied().collect());
        let whole = super::median(runs.iter().map(|(prefill, steps)| prefill + steps.iter().sum::<f64>()).collect());
        rows.push(Measured {
            batch,
            tokens_per_second: (batch * args.new_tokens) as f64 / whole,
            prefill_milliseconds: 1e3 * prefill,
            step_milliseconds: 1e3 * step,
            floor_milliseconds: 1e3 * floor,
            times_floor: step / floor,
        });
    }
    show(
        args.json,
        &Report {
            precision,
            threads: saddle_libtorch::threads()?,
            read_gigabytes_per_second: bandwidth / 1e9,
            product_gigaflops: rate / 1e9,
            weight_megabytes: bytes / 1e6,
            rows,
        },
    )
}

/// Seconds of reading `batch` prompts with the first token of each response, and of each further step.
fn once(
    args: &DecodeArgs,
    policy: &Policy,
    weights: &DecodingWeights,
    batch: usize,
) -> Result<(f64, Vec<f64>), Failure> {
    let settings = DecodeSettings {
        sampling: Sampling { temperature: 0.0, top_k: 0, top_p: 1.0 },
        max_new_tokens: args.new_tokens,
        limits: vec![],
        stop_tokens: vec![],
        seed: 0,
        precision: args.precision.into(),
    };
    let version = PolicyVersion(0);
    let mut running = DecodingBatch::new(weights, settings, batch, args.prompt_tokens + args.new_tokens)?;
    let start = Instant::now();
    running.admit(weights, version, prompts(batch, args.prompt_tokens, policy.config().vocab_size))?;
    let prefill = start.elapsed().as_secs_f64();
    let mut steps = Vec::with_capacity(args.new_tokens);
    while running.running() > 0 {
        let start = Instant::now();
        running.step(weights, version)?;
        steps.push(start.elapsed().as_secs_f64());
    }
    Ok((prefill, steps))
}

/// `count` prompts, each different from the others.
fn prompts(count: usize, length: usize, vocabulary: usize) -> Vec<Prompt> {
    let token = |row: usize, place: usize| ((row * 7919 + place * 104_729 + row * place * 31) % vocabulary) as i64;
    (0..count)
        .map(|row| Prompt {
            ordinal: PromptOrdinal(row as u64),
            tokens: (0..length).map(|place| token(row, place)).collect(),
            kind: None,
        })
        .collect()
}

/// Numbers in the matrices that every token is multiplied with: all but an embedding that is not the head too, and learned
/// positions.
pub(super) fn product_weights(policy: &Policy) -> usize {
    let config = policy.config();
    let looked_up = |name: &str| name.contains("wpe") || (name.contains("embed_tokens") && !config.tie_word_embeddings);
    let matrices = policy.parameters().iter().filter(|(name, tensor)| tensor.dim() == 2 && !looked_up(name));
    matrices.map(|(_, tensor)| tensor.numel()).sum()
}

fn show(json: bool, report: &Report) -> Result<(), Failure> {
    if json {
        print(serde_json::to_string(report).map_err(Failure::run)?);
        return Ok(());
    }
    let heading = ["batch", "tokens/s", "prefill, ms", "step, ms", "floor, ms", "times the floor"];
    let cells = report.rows.iter().map(|row| {
        vec![
            row.batch.to_string(),
            format!("{:.1}", row.tokens_per_second),
            format!("{:.1}", row.prefill_milliseconds),
            format!("{:.2}", row.step_milliseconds),
            format!("{:.2}", row.floor_milliseconds),
            format!("{:.2}", row.times_floor),
        ]
    });
    print(table(&heading, &cells.collect::<Vec<_>>()));
    print(format!(
        "{:.0} MB of weights a step; memory {:.1} GB/s, products {:.0} GFLOP/s, {} threads",
        report.weight_megabytes, report.read_gigabytes_per_second, report.product_gigaflops, report.threads
    ));
    Ok(())
}
