//! `saddle judge`: answers to the embedded world's prompts in, their gold scores out.

use crate::cli::JudgeArgs;
use crate::failure::Failure;
use saddle_data::world::World;
use serde_json::{Value, json};

/// Rows that are read, judged and written together; the order of the output is that of the input.
const CHUNK_ROWS: usize = 1024;

pub(super) fn judge(args: &JudgeArgs) -> Result<(), Failure> {
    let world = World::load(&args.world)?;
    let (mut lines, mut output) = args.stream.open()?;
    loop {
        let chunk = lines.take(CHUNK_ROWS)?;
        if chunk.is_empty() {
            return output.finish();
        }
        let mut judged = Vec::with_capacity(chunk.len());
        for (line, mut row) in chunk {
            let turns = lines.prompt(line, &row)?;
            let prompt = turns.last().map_or("", |turn| &turn.content);
            let response = lines.response(line, &row)?;
            // `saddle generate` says whether the response ended by itself; of other texts, their length does.
            let gold = match row.get("ended").and_then(Value::as_bool) {
                Some(ended) => world.judge(prompt, response, ended),
                None => world.judge_text(prompt, response),
            };
            row.insert("gold_helpfulness".to_owned(), lines.number(line, "gold_helpfulness", gold.helpfulness)?);
            row.insert("gold_harm".to_owned(), lines.number(line, "gold_harm", gold.harm)?);
            row.insert("unsafe".to_owned(), json!(gold.is_unsafe()));
            judged.push(row);
        }
        judged.iter().try_for_each(|row| output.write(row))?;
    }
}
