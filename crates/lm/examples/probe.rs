//! What a model directory says, in numbers: for comparing it with other programs (`make interop`).
//!
//! ```text
//! probe tokenize MODEL < texts.json > tokens.json       ["text", …] to [[id, …], …], without what begins a text
//! probe decode   MODEL < tokens.json > texts.json       [[id, …], …] to ["text", …], special tokens left out
//! probe logits   MODEL OUT.safetensors < tokens.json    the logits of each list, as tensors "0", "1", … [length, vocabulary]
//! ```
#![expect(clippy::print_stdout, reason = "the program's result")]

use saddle_lm::{LmError, ModelDirectory, Policy, Sequences, policy_shapes, write_safetensors};
use std::collections::BTreeMap;
use std::error::Error;
use std::io::stdin;
use std::path::Path;
use tch::{Device, Tensor};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["tokenize", model] => {
            let texts: Vec<String> = serde_json::from_reader(stdin())?;
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            let tokens = ModelDirectory::open(model)?.tokenizer()?.encode_batch(&texts, false)?;
            println!("{}", serde_json::to_string(&tokens)?);
        }
        ["decode", model] => {
            let lists: Vec<Vec<i64>> = serde_json::from_reader(stdin())?;
            let tokenizer = ModelDirectory::open(model)?.tokenizer()?;
            let texts = lists.iter().map(|tokens| tokenizer.decode(tokens, true)).collect::<Result<Vec<_>, _>>()?;
            println!("{}", serde_json::to_string(&texts)?);
        }
        ["logits", model, out] => {
            let lists: Vec<Vec<i64>> = serde_json::from_reader(stdin())?;
            let logits = logits(model, &lists)?;
            write_safetensors(Path::new(out), &logits, &BTreeMap::new())?;
        }
        _ => return Err("usage: probe tokenize|decode MODEL, or probe logits MODEL OUT.safetensors".into()),
    }
    Ok(())
}

fn logits(model: &str, lists: &[Vec<i64>]) -> Result<Vec<(String, Tensor)>, LmError> {
    let _guard = tch::no_grad_guard();
    let directory = ModelDirectory::open(model)?;
    let config = directory.config()?;
    let weights = directory.weights(&policy_shapes(&config), Device::Cpu)?;
    let policy = Policy::from_weights(config, &weights, Device::Cpu)?;
    let one = |(index, tokens): (usize, &Vec<i64>)| {
        let sequence = Sequences::new(&[tokens.len()], Device::Cpu)?;
        let hidden = policy.trunk().forward(&Tensor::f_from_slice(tokens)?, &sequence, None)?;
        Ok((index.to_string(), policy.logits(&hidden)?))
    };
    lists.iter().enumerate().map(one).collect()
}
