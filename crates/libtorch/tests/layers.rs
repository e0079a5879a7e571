//! The layers against libtorch's own operations in float64, forward and backward.

mod common;

use common::{check, numbers};
use rstest::rstest;
use saddle_libtorch::layers::{Packing, log_probs, rms_norm, sequence_attention, swiglu};
use saddle_libtorch::{LibtorchError, set_threads};
use tch::{Kind, Tensor};

#[test]
fn narrower_instruction_sets_pass_the_same_tests() {
    common::run_again_with_narrower_kernels();
}

/// What `layer` makes of `inputs`, and the gradients of a weighted sum of it.
fn both_ways(inputs: &[&Tensor], layer: impl Fn(&[Tensor]) -> Tensor) -> Vec<Tensor> {
    let inputs: Vec<Tensor> = inputs.iter().map(|input| input.detach().set_requires_grad(true)).collect();
    let out = layer(&inputs);
    let loss = (&out * numbers(&out.size(), 9.0)).sum(Kind::Double);
    let gradients = Tensor::run_backward(&[&loss], &inputs, false, false);
    std::iter::once(out.detach()).chain(gradients).collect()
}

/// Holds `layer` against `reference`, which is given the same numbers in float64.
fn compare(
    inputs: &[&Tensor],
    layer: impl Fn(&[Tensor]) -> Tensor,
    reference: impl Fn(&[Tensor]) -> Tensor,
    tolerance: f64,
) {
    let found = both_ways(inputs, layer);
    let wide: Vec<Tensor> = inputs.iter().map(|input| input.to_kind(Kind::Double)).collect();
    let expected = both_ways(&wide.iter().collect::<Vec<_>>(), reference);
    for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
        let what = if index == 0 { "result".to_owned() } else { format!("gradient of input {}", index - 1) };
        check(&what, found, &expected.to_kind(Kind::Float), tolerance);
    }
}

#[rstest]
fn a_norm_is_that_of_libtorch(#[values(1, 5, 300)] rows: i64, #[values(1, 7, 64, 100)] width: i64) {
    let (input, weight) = (numbers(&[rows, width], 1.0), numbers(&[width], 2.0));
    let reference = |of: &[Tensor]| of[0].f_rms_norm([width], Some(&of[1]), 1e-5).unwrap();
    compare(&[&input, &weight], |of| rms_norm(&of[0], &of[1], 1e-5).unwrap(), reference, 1e-5 * (rows as f64).sqrt());
}

#[rstest]
fn a_gate_is_that_of_libtorch(#[values(1, 7, 64, 3000)] count: i64) {
    let (gate, up) = (numbers(&[count], 1.0) * 30.0, numbers(&[count], 2.0));
    compare(&[&gate, &up], |of| swiglu(&of[0], &of[1]).unwrap(), |of| of[0].silu() * &of[1], 2e-5);
}

#[rstest]
fn log_probs_are_those_of_a_log_softmax(
    #[values(1, 7, 64, 3000)] width: i64,
    #[values(0.6, 1.0, 2.0)] temperature: f64,
) {
    let logits = numbers(&[5, width], 1.0) * 20.0;
    let targets = Tensor::from_slice(&[0, width / 2, width - 1, width / 3, 0]);
    let layer = |of: &[Tensor]| log_probs(&of[0], &targets, temperature).unwrap().0;
    let all = |logits: &Tensor| (logits / temperature).log_softmax(-1, Kind::Double);
    compare(&[&logits], layer, |of| all(&of[0]).gather(-1, &targets.unsqueeze(1), false).squeeze_dim(1), 1e-5);
    let entropies = log_probs(&logits.set_requires_grad(true), &targets, temperature).unwrap().1;
    let expected = -(all(&logits).exp() * all(&logits)).sum_dim_intlist(-1, false, Kind::Double);
    check("entropy", &entropies, &expected.detach().to_kind(Kind::Float), 1e-5);
    assert!(!entropies.requires_grad());
}

#[test]
fn a_token_that_is_ruled_out_leaves_log_probs_of_the_others_as_they_are() {
    let logits = Tensor::from_slice(&[1.0f32, f32::NEG_INFINITY, 3.0]).view([1, 3]);
    let found = both_ways(&[&logits], |of| log_probs(&of[0], &Tensor::from_slice(&[2i64]), 1.0).unwrap().0);
    let (expected, entropies) =
        log_probs(&Tensor::from_slice(&[1.0f32, 3.0]).view([1, 2]), &Tensor::from_slice(&[1i64]), 1.0).unwrap();
    check("log-probability", &found[0], &expected, 1e-7);
    assert_eq!(found[1].double_value(&[0, 1]), 0.0, "its gradient");
    let ruled_out = log_probs(&logits, &Tensor::from_slice(&[2i64]), 1.0).unwrap().1;
    check("entropy", &ruled_out, &entropies, 1e-6);
}

/// Attention of one sequence by libtorch's own operations: `[tokens, heads · size]`.
fn attention_of_one(
    (query, key, value): (&Tensor, &Tensor, &Tensor),
    size: i64,
    rotary: Option<(&Tensor, &Tensor)>,
    window: Option<i64>,
) -> Tensor {
    let length = query.size()[0];
    let split = |all: &Tensor| all.view([length, -1, size]).transpose(0, 1);
    let turn = |heads: Tensor| match rotary {
        None => heads,
        Some((cosine, sine)) => {
            let swapped = Tensor::cat(&[-heads.narrow(-1, size / 2, size / 2), heads.narrow(-1, 0, size / 2)], -1);
            heads * cosine.narrow(0, 0, length) + swapped * sine.narrow(0, 0, length)
        }
    };
    let (query, key, value) = (turn(split(query)), turn(split(key)), split(value));
    let share = query.size()[0] / key.size()[0];
    let (key, value) =
        (key.repeat_interleave_self_int(share, 0, None), value.repeat_interleave_self_int(share, 0, None));
    let places = Tensor::arange(length, (Kind::Int64, tch::Device::Cpu));
    let apart = places.unsqueeze(1) - places.unsqueeze(0);
    let unseen = apart.lt(0).logical_or(&apart.ge(window.unwrap_or(i64::MAX)));
    let scores = (query.matmul(&key.transpose(1, 2)) / (size as f64).sqrt()).masked_fill(&unseen, f64::NEG_INFINITY);
    scores.softmax(-1, Kind::Double).matmul(&value).transpose(0, 1).reshape([length, -1])
}

#[rstest]
fn attention_over_packed_sequences_is_that_of_each_alone(
    #[values(&[1], &[5, 1, 13], &[70, 3, 129, 31])] lengths: &[i64],
    #[values((1, 1, 8), (4, 4, 32), (6, 2, 64), (3, 1, 40))] (heads, kv_heads, size): (i64, i64, i64),
    #[values(true, false)] turns: bool,
    #[values(None, Some(1), Some(20))] window: Option<i64>,
) {
    let tokens = lengths.iter().sum::<i64>();
    let starts: Vec<i64> = (0..=lengths.len()).map(|row| lengths[..row].iter().sum()).collect();
    let tables = [numbers(&[130, size], 4.0), numbers(&[130, size], 5.0)];
    let (query, key) = (numbers(&[tokens, heads * size], 1.0) * 2.0, numbers(&[tokens, kv_heads * size], 2.0) * 2.0);
    let value = numbers(&[tokens, kv_heads * size], 3.0);
    let rotary = turns.then_some((&tables[0], &tables[1]));
    let packing = Packing { starts: &Tensor::from_slice(&starts), rotary, window, head_size: size };
    let wide = tables.each_ref().map(|table| table.to_kind(Kind::Double));
    let wide = turns.then_some((&wide[0], &wide[1]));
    let reference = |of: &[Tensor]| {
        let alone = lengths.iter().zip(&starts).map(|(length, start)| {
            let [query, key, value] = [0, 1, 2].map(|index| of[index].narrow(0, *start, *length));
            attention_of_one((&query, &key, &value), size, wide, window)
        });
        Tensor::cat(&alone.collect::<Vec<_>>(), 0)
    };
    let layer = |of: &[Tensor]| sequence_attention(&of[0], &of[1], &of[2], &packing).unwrap();
    compare(&[&query, &key, &value], layer, reference, 2e-5);
}

#[test]
fn attention_and_gradients_of_a_sequence_depend_on_neither_threads_nor_neighbours() {
    let (lengths, size) = ([90, 200, 7], 32);
    let tokens: i64 = lengths.iter().sum();
    let inputs = [1.0, 2.0, 3.0].map(|seed| numbers(&[tokens, 4 * size], seed));
    let run = |inputs: &[Tensor; 3], starts: &[i64], threads: usize| {
        set_threads(threads).unwrap();
        let packing = Packing { starts: &Tensor::from_slice(starts), rotary: None, window: None, head_size: size };
        both_ways(&inputs.each_ref(), |of| {
            let out = sequence_attention(&of[0], &of[1], &of[2], &packing).unwrap();
            // Weighted alike wherever a token stands.
            &out * out.sin().detach()
        })
    };
    let starts = [0, 90, 290, 297];
    let one = run(&inputs, &starts, 1);
    for (one, two) in one.iter().zip(run(&inputs, &starts, 2)) {
        assert!(one.equal(&two), "two threads");
    }
    let out = |inputs: &[Tensor; 3], starts: &[i64]| {
        let packing = Packing { starts: &Tensor::from_slice(starts), rotary: None, window: None, head_size: size };
        sequence_attention(&inputs[0], &inputs[1], &inputs[2], &packing).unwrap()
    };
    let alone = out(&inputs.each_ref().map(|input| input.narrow(0, 90, 200)), &[0, 200]);
    assert!(alone.equal(&out(&inputs, &starts).narrow(0, 90, 200)), "without neighbours");
}

#[test]
fn operands_that_do_not_fit_are_refused_with_what_they_are() {
    let says = |error: LibtorchError, part: &str| assert!(error.to_string().contains(part), "{error}");
    let wide = numbers(&[2, 8], 1.0);
    says(rms_norm(&wide, &numbers(&[7], 1.0), 1e-5).unwrap_err(), "a norm of [7] has an input of [2, 8]");
    says(rms_norm(&wide.to_kind(Kind::Double), &numbers(&[8], 1.0), 1e-5).unwrap_err(), "must be float32 on the CPU");
    says(swiglu(&wide, &numbers(&[2, 7], 1.0)).unwrap_err(), "a gate of [2, 8] before [2, 7]");
    let target = |token: i64| log_probs(&wide, &Tensor::from_slice(&[0, token]), 1.0);
    says(target(8).unwrap_err(), "outside the vocabulary of 8");
    says(log_probs(&wide, &Tensor::from_slice(&[0i64, 1]), 0.0).unwrap_err(), "at temperature 0");
    let attend = |starts: &[i64], head_size: i64, rotary: Option<(&Tensor, &Tensor)>| {
        let packing = Packing { starts: &Tensor::from_slice(starts), rotary, window: None, head_size };
        sequence_attention(&wide, &wide, &wide, &packing).unwrap_err()
    };
    says(attend(&[0, 3], 4, None), "sequences from 0 to 3 of 2 tokens");
    says(attend(&[0, 2, 1, 2], 4, None), "ends before it starts");
    says(attend(&[0, 2], 3, None), "heads of 3");
    let short = numbers(&[1, 4], 1.0);
    says(attend(&[0, 2], 4, Some((&short, &short))), "a sequence of 2 tokens");
}
