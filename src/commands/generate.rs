//! `saddle generate`: prompts in, responses out.

use super::stream::say_notices;
use crate::cli::GenerateArgs;
use crate::failure::Failure;
use crate::run;
use crate::stages::stop_tokens;
use saddle_core::{Finish, PolicyVersion, Prompt, PromptOrdinal, Rollout};
use saddle_lm::{DecodeSettings, Sampling};
use saddle_training::{PolicyModel, encode_prompt};
use serde_json::{Map, Value, json};

/// Prompts that are read, answered and written together; the order of the output is that of the input.
const CHUNK_PROMPTS: usize = 1024;
/// More answers to one prompt than anybody reads; a larger number is a slip.
const SAMPLES_LIMIT: usize = 1024;

pub(super) fn generate(args: &GenerateArgs) -> Result<(), Failure> {
    let sampling = sampling(args)?;
    let device = run::device(&args.model.section())?;
    let PolicyModel { policy, tokenizer } = PolicyModel::load(&args.model.model, device)?;
    say_notices(&tokenizer);
    let settings = DecodeSettings {
        sampling,
        max_new_tokens: args.max_new_tokens,
        limits: vec![],
        stop_tokens: stop_tokens(&policy, &tokenizer)?,
        seed: args.seed,
        precision: args.precision.into(),
    };
    let longest = policy.config().max_position_embeddings;
    let (mut lines, mut output) = args.stream.open()?;
    let mut ordinal = 0;
    loop {
        let chunk = lines.take(CHUNK_PROMPTS.div_ceil(args.samples))?;
        if chunk.is_empty() {
            return output.finish();
        }
        let mut prompts = Vec::with_capacity(chunk.len());
        for (line, row) in &chunk {
            let tokens = encode_prompt(&tokenizer, &lines.prompt(*line, row)?)?;
            if tokens.len() >= longest {
                let length = tokens.len();
                return Err(Failure::usage(
                    lines.place(*line, format!("the prompt has {length} tokens, the model reads {longest}")),
                ));
            }
            for _ in 0..args.samples {
                prompts.push(Prompt { ordinal: PromptOrdinal(ordinal), tokens: tokens.clone(), kind: None });
                ordinal += 1;
            }
        }
        let rollouts = saddle_lm::generate(&policy, PolicyVersion(0), prompts, settings.clone(), args.rows)?;
        for ((line, row), samples) in chunk.into_iter().zip(rollouts.chunks_exact(args.samples)) {
            for rollout in samples {
                lines.number(line, "log_prob", log_prob(rollout))?;
                output.write(&answered(row.clone(), rollout, tokenizer.decode(&rollout.tokens, true)?))?;
            }
        }
    }
}

fn sampling(args: &GenerateArgs) -> Result<Sampling, Failure> {
    let temperature = if args.greedy { 0.0 } else { args.temperature };
    for (holds, message) in [
        (
            args.greedy || (temperature.is_finite() && temperature > 0.0),
            "--temperature: must be a positive number; --greedy takes the likeliest token",
        ),
        (args.top_p > 0.0 && args.top_p <= 1.0, "--top-p: must be above 0 and at most 1"),
        (args.max_new_tokens > 0, "--max-new-tokens: must be at least 1"),
        (args.rows > 0, "--rows: must be at least 1"),
        ((1..=SAMPLES_LIMIT).contains(&args.samples), "--samples: must be in 1..=1024"),
    ] {
        if !holds {
            return Err(Failure::usage(message));
        }
    }
    Ok(Sampling { temperature, top_k: args.top_k, top_p: args.top_p })
}

fn log_prob(rollout: &Rollout) -> f64 {
    rollout.log_probs.iter().map(|each| f64::from(*each)).sum()
}

/// The input's own fields with the response beside them.
fn answered(mut row: Map<String, Value>, rollout: &Rollout, response: String) -> Map<String, Value> {
    row.insert("response".to_owned(), json!(response));
    row.insert("finish".to_owned(), json!(rollout.finish));
    row.insert("ended".to_owned(), json!(rollout.finish == Finish::Stop));
    row.insert("tokens".to_owned(), json!(rollout.tokens.len()));
    row.insert("log_prob".to_owned(), json!(log_prob(rollout)));
    row
}
