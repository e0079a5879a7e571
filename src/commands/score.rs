//! `saddle score`: prompts with their responses in; scores, or the log-probabilities of the responses, out.

use super::stream::{Lines, NumberedRow, say_notices};
use crate::cli::ScoreArgs;
use crate::failure::Failure;
use crate::run;
use saddle_lm::{ModelKind, Tokenizer};
use saddle_training::{PolicyModel, Scorer, Sequence, encode_pair, token_log_probs};
use serde_json::json;
use tch::Device;

/// Rows that are read, scored and written together; the order of the output is that of the input.
const CHUNK_ROWS: usize = 1024;

pub(super) fn score(args: &ScoreArgs) -> Result<(), Failure> {
    if args.micro_batch_tokens == 0 {
        return Err(Failure::usage("--micro-batch-tokens: must be at least 1"));
    }
    let device = run::device(&args.model.section())?;
    if args.log_probs { write_log_probs(args, device) } else { write_scores(args, device) }
}

fn write_scores(args: &ScoreArgs, device: Device) -> Result<(), Failure> {
    let scorer = Scorer::load(&args.model.model, None, device)?;
    say_notices(&scorer.tokenizer);
    let longest = scorer.model.config().max_position_embeddings;
    let name = if scorer.kind == ModelKind::Cost { "cost" } else { "reward" };
    let (mut lines, mut output) = args.stream.open()?;
    loop {
        let chunk = lines.take(CHUNK_ROWS)?;
        if chunk.is_empty() {
            return output.finish();
        }
        let sequences = encode(&lines, &chunk, &scorer.tokenizer, longest)?;
        let scores = scorer.score_sequences(&sequences, args.micro_batch_tokens)?;
        for ((line, mut row), score) in chunk.into_iter().zip(scores) {
            lines.number(line, name, f64::from(score))?;
            row.insert(name.to_owned(), json!(score));
            if scorer.kind == ModelKind::Cost {
                row.insert("unsafe".to_owned(), json!(score > 0.0));
            }
            output.write(&row)?;
        }
    }
}

fn write_log_probs(args: &ScoreArgs, device: Device) -> Result<(), Failure> {
    let PolicyModel { policy, tokenizer } = PolicyModel::load(&args.model.model, device)?;
    say_notices(&tokenizer);
    let longest = policy.config().max_position_embeddings;
    let (mut lines, mut output) = args.stream.open()?;
    loop {
        let chunk = lines.take(CHUNK_ROWS)?;
        if chunk.is_empty() {
            return output.finish();
        }
        let sequences = encode(&lines, &chunk, &tokenizer, longest)?;
        let log_probs = token_log_probs(&policy, &sequences.iter().collect::<Vec<_>>(), args.micro_batch_tokens)?;
        for (((line, mut row), sequence), log_probs) in chunk.into_iter().zip(sequences).zip(log_probs) {
            let log_prob = log_probs.iter().map(|each| f64::from(*each)).sum();
            row.insert("log_prob".to_owned(), lines.number(line, "log_prob", log_prob)?);
            row.insert("token_ids".to_owned(), json!(sequence.response));
            row.insert("token_log_probs".to_owned(), json!(log_probs));
            output.write(&row)?;
        }
    }
}

/// The rows of a chunk as tokens; one that is too long for the model is refused with its line.
fn encode(
    lines: &Lines,
    chunk: &[NumberedRow],
    tokenizer: &Tokenizer,
    longest: usize,
) -> Result<Vec<Sequence>, Failure> {
    let mut sequences = Vec::with_capacity(chunk.len());
    for (line, row) in chunk {
        let sequence = encode_pair(tokenizer, &lines.prompt(*line, row)?, lines.response(*line, row)?)?;
        if sequence.length() > longest {
            let length = sequence.length();
            return Err(Failure::usage(
                lines.place(*line, format!("prompt and response have {length} tokens, the model reads {longest}")),
            ));
        }
        sequences.push(sequence);
    }
    Ok(sequences)
}
