//! A decoder's forward pass on a CPU against the same layers of libtorch's own operations.

mod common;

use common::{check, numbers};
use rstest::rstest;
use saddle_libtorch::decoder::{Block, Decoder, Norm, Places};
use saddle_libtorch::kernels::PackedWeight;
use saddle_libtorch::{LibtorchError, set_threads};
use tch::{Device, Kind, Tensor};

const ROWS: i64 = 3;
const CAPACITY: i64 = 48;
const EPSILON: f64 = 1e-5;

/// What the families of decoders differ in.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Family {
    /// RMS norms, rotary positions, a gate.
    Llama,
    /// The same with norms of heads.
    Qwen3,
    /// Layer norms, biases, no gate and nothing turned.
    Gpt2,
}

#[derive(Clone, Copy, Debug)]
struct Sizes {
    width: i64,
    inner: i64,
    heads: i64,
    kv_heads: i64,
    head_size: i64,
}

/// Linear layers and norms by name, of two blocks; and the matrices packed.
struct Model {
    family: Family,
    sizes: Sizes,
    window: Option<i64>,
    weights: Kind,
    packed: Vec<Vec<PackedWeight>>,
    tables: [Tensor; 2],
}

const MATRICES: [&str; 7] = ["query", "key", "value", "output", "up", "down", "gate"];

impl Model {
    fn new(family: Family, sizes: Sizes, window: Option<i64>, weights: Kind) -> Self {
        let tables = [7.0, 8.0].map(|seed| numbers(&[CAPACITY, sizes.head_size], seed));
        let mut model = Self { family, sizes, window, weights, packed: vec![], tables };
        for block in 0..2 {
            let pack = |name: &&str| {
                let (weight, bias) = model.matrix(block, name);
                PackedWeight::new(&weight, bias.as_ref(), weights).expect("a matrix")
            };
            let matrices = &MATRICES[..if family == Family::Gpt2 { 6 } else { 7 }];
            let packed = matrices.iter().map(pack).collect();
            model.packed.push(packed);
        }
        model
    }

    fn matrix(&self, block: i64, name: &str) -> (Tensor, Option<Tensor>) {
        let Sizes { width, inner, heads, kv_heads, head_size } = self.sizes;
        let place = MATRICES.iter().position(|each| *each == name).expect("a name of a matrix");
        let (outputs, inputs) = match name {
            "query" => (heads * head_size, width),
            "key" | "value" => (kv_heads * head_size, width),
            "output" => (width, heads * head_size),
            "down" => (width, inner),
            _ => (inner, width),
        };
        let seed = (10 * block) as f64 + place as f64;
        let bias = (self.family == Family::Gpt2).then(|| numbers(&[outputs], seed + 0.5));
        (numbers(&[outputs, inputs], seed) / (inputs as f64).sqrt() * 2.0, bias)
    }

    /// Weight and bias of a norm.
    fn norm(&self, width: i64, seed: f64) -> (Tensor, Option<Tensor>) {
        let bias = (self.family == Family::Gpt2).then(|| numbers(&[width], seed + 0.5));
        (numbers(&[width], seed) + 1.5, bias)
    }

    fn forward(
        &self,
        hidden: &Tensor,
        places: &Places<'_>,
        cache: &mut [[Tensor; 2]],
    ) -> Result<Tensor, LibtorchError> {
        let Sizes { width, head_size, .. } = self.sizes;
        let norms: Vec<_> = (0..5).map(|which| self.norm(width, 100.0 + f64::from(which))).collect();
        let head_norms: Vec<_> = (0..4).map(|which| self.norm(head_size, 200.0 + f64::from(which))).collect();
        let blocks = self.packed.iter().enumerate().map(|(index, packed)| Block {
            attention_norm: norm_of(&norms[2 * index]),
            input: [&packed[0], &packed[1], &packed[2]],
            head_norms: (self.family == Family::Qwen3)
                .then(|| [norm_of(&head_norms[2 * index]), norm_of(&head_norms[2 * index + 1])]),
            output: &packed[3],
            feed_forward_norm: norm_of(&norms[2 * index + 1]),
            gate: packed.get(6),
            up: &packed[4],
            down: &packed[5],
        });
        let decoder = Decoder {
            blocks: blocks.collect(),
            norm: norm_of(&norms[4]),
            rotary: (self.family != Family::Gpt2).then_some((&self.tables[0], &self.tables[1])),
            window: self.window,
        };
        let mut layers: Vec<_> = cache.iter_mut().map(|[keys, values]| (keys, values)).collect();
        decoder.forward(hidden.copy(), places, &mut layers)
    }

    /// The hidden states of one whole sequence by libtorch's operations, with keys and values rounded as a cache of `kept` does.
    fn expected(&self, hidden: &Tensor, kept: Kind) -> Tensor {
        let Sizes { width, heads, kv_heads, head_size, .. } = self.sizes;
        let length = hidden.size()[0];
        let stored = |tensor: &Tensor| tensor.to_kind(self.weights).to_kind(Kind::Double);
        let product = |block: i64, name: &str, input: &Tensor| {
            let (weight, bias) = self.matrix(block, name);
            let product = stored(input).matmul(&stored(&weight).transpose(0, 1)).to_kind(Kind::Float);
            bias.map_or(product.shallow_clone(), |bias| product + bias)
        };
        let norm = |input: &Tensor, width: i64, seed: f64| match self.norm(width, seed) {
            (weight, None) => input.rms_norm([width], Some(&weight), EPSILON),
            (weight, bias) => input.layer_norm([width], Some(&weight), bias.as_ref(), EPSILON, false),
        };
        let turn = |states: Tensor| {
            if self.family == Family::Gpt2 {
                return states;
            }
            let half = head_size / 2;
            let swapped = Tensor::cat(&[-states.narrow(2, half, half), states.narrow(2, 0, half)], 2);
            let [cosine, sine] = self.tables.each_ref().map(|table| table.narrow(0, 0, length).unsqueeze(1));
            states * cosine + swapped * sine
        };
        let seen = Tensor::ones([length, length], (Kind::Bool, Device::Cpu)).tril(0);
        let seen = self.window.map_or(seen.shallow_clone(), |window| seen.triu(1 - window));
        let mut hidden = hidden.copy();
        for block in 0..2 {
            let seed = (2 * block) as f64;
            let normed = norm(&hidden, width, 100.0 + seed);
            let mut query = product(block, "query", &normed).view([length, heads, head_size]);
            let mut key = product(block, "key", &normed).view([length, kv_heads, head_size]);
            let value = product(block, "value", &normed).view([length, kv_heads, head_size]);
            if self.family == Family::Qwen3 {
                query = norm(&query, head_size, 200.0 + seed);
                key = norm(&key, head_size, 201.0 + seed);
            }
            let round = |tensor: Tensor| tensor.to_kind(kept).to_kind(Kind::Float);
            let batched = |tensor: Tensor| tensor.transpose(0, 1).unsqueeze(0);
            let mixed = Tensor::scaled_dot_product_attention(
                &batched(turn(query)),
                &batched(round(turn(key))),
                &batched(round(value)),
                Some(&seen),
                0.0,
                false,
                None,
                heads != kv_heads,
            );
            let mixed = mixed.squeeze_dim(0).transpose(0, 1).reshape([length, heads * head_size]);
            hidden += product(block, "output", &mixed);
            let normed = norm(&hidden, width, 101.0 + seed);
            let up = product(block, "up", &normed);
            let inner = match self.family {
                Family::Gpt2 => up.gelu("tanh"),
                _ => product(block, "gate", &normed).silu() * up,
            };
            hidden += product(block, "down", &inner);
        }
        norm(&hidden, width, 104.0)
    }

    fn cache(&self, kept: Kind) -> [[Tensor; 2]; 2] {
        let shape = [ROWS, self.sizes.kv_heads, CAPACITY, self.sizes.head_size];
        [0, 1].map(|_| [0, 1].map(|_| Tensor::zeros(shape, (kept, Device::Cpu))))
    }
}

fn norm_of((weight, bias): &(Tensor, Option<Tensor>)) -> Norm<'_> {
    Norm { weight, bias: bias.as_ref(), epsilon: EPSILON }
}

/// Counts up from `start`.
fn upto(start: i64, count: i64) -> Vec<i64> {
    (start..start + count).collect()
}

#[test]
fn narrower_instruction_sets_pass_the_same_tests() {
    common::run_again_with_narrower_kernels();
}

/// Two rows of 9 and 4 tokens; of each the last two go in after the others, and of the first ones only the last is asked for.
#[rstest]
fn a_pass_is_what_libtorchs_operations_make_of_whole_sequences(
    #[values(Family::Llama, Family::Qwen3, Family::Gpt2)] family: Family,
    #[values(Kind::Float, Kind::BFloat16)] weights: Kind,
    #[values(Kind::Float, Kind::BFloat16)] kept: Kind,
    #[values(4, 6, 16, 40, 64)] head_size: i64,
    #[values((4, 4), (6, 2), (5, 1))] (heads, kv_heads): (i64, i64),
    #[values(None, Some(3))] window: Option<i64>,
) {
    let model = Model::new(family, Sizes { width: 21, inner: 35, heads, kv_heads, head_size }, window, weights);
    let mut cache = model.cache(kept);
    // A number that differs in its last bit may be rounded to bfloat16's next one.
    let tolerance = match (weights, kept) {
        (Kind::Float, Kind::Float) => 2e-5,
        (Kind::Float, _) => 5e-3,
        _ => 2e-2,
    };
    for (row, length, seed) in [(0, 9, 1.0), (2, 4, 2.0)] {
        let hidden = numbers(&[length, 21], seed) * 3.0;
        let expected = model.expected(&hidden, kept);
        let mut pass = |start: i64, count: i64, wanted: Option<&[i64]>| {
            let (rows, positions) = (vec![row; count as usize], upto(start, count));
            let places = Places { rows: &rows, positions: &positions, wanted };
            model.forward(&hidden.narrow(0, start, count), &places, &mut cache).unwrap()
        };
        check("the first", &pass(0, length - 2, Some(&[length - 3])), &expected.narrow(0, length - 3, 1), tolerance);
        check("the others", &pass(length - 2, 2, None), &expected.narrow(0, length - 2, 2), tolerance);
    }
}

#[rstest]
fn a_token_has_the_same_bits_beside_any_others_and_on_any_number_of_threads(
    #[values(Kind::Float, Kind::BFloat16)] kind: Kind,
) {
    let sizes = Sizes { width: 130, inner: 270, heads: 6, kv_heads: 2, head_size: 32 };
    let model = Model::new(Family::Llama, sizes, None, kind);
    let hidden = numbers(&[2 * CAPACITY, 130], 1.0);
    let pass = |threads: usize, rows: &[i64]| {
        set_threads(threads).unwrap();
        let count = rows.len() as i64 * CAPACITY;
        let all: Vec<_> = rows.iter().flat_map(|row| vec![*row; CAPACITY as usize]).collect();
        let positions = upto(0, CAPACITY).repeat(rows.len());
        let places = Places { rows: &all, positions: &positions, wanted: None };
        model.forward(&hidden.narrow(0, 0, count), &places, &mut model.cache(kind)).unwrap()
    };
    let alone = pass(1, &[1]);
    for threads in 1..5 {
        let both = pass(threads, &[1, 2]);
        assert!(both.narrow(0, 0, CAPACITY).equal(&alone), "{threads} threads");
        assert!(pass(threads, &[1, 2]).equal(&both), "{threads} threads, again");
    }
}

/// A row's first token takes its own value, whatever its score.
#[test]
fn large_scores_do_not_overflow() {
    let sizes = Sizes { width: 8, inner: 8, heads: 1, kv_heads: 1, head_size: 8 };
    let mut model = Model::new(Family::Llama, sizes, None, Kind::Float);
    let pass = |model: &Model| {
        let places = Places { rows: &[0, 0], positions: &[0, 1], wanted: None };
        model.forward(&numbers(&[2, 8], 1.0), &places, &mut model.cache(Kind::Float)).unwrap()
    };
    let moderate = pass(&model);
    for block in &mut model.packed {
        for matrix in &mut block[..2] {
            *matrix =
                PackedWeight::new(&Tensor::full([8, 8], 1e4, (Kind::Float, Device::Cpu)), None, Kind::Float).unwrap();
        }
    }
    let found = pass(&model);
    check("the only token", &found.narrow(0, 0, 1), &moderate.narrow(0, 0, 1), 0.0);
    assert!(found.isfinite().all().int64_value(&[]) == 1, "{found:?}");
}

#[test]
fn what_a_pass_cannot_read_is_refused() {
    let sizes = Sizes { width: 6, inner: 10, heads: 4, kv_heads: 2, head_size: 4 };
    let model = Model::new(Family::Llama, sizes, None, Kind::Float);
    let hidden = numbers(&[1, 6], 1.0);
    let refused = |hidden: &Tensor, places: &Places<'_>, cache: &mut [[Tensor; 2]]| {
        let result = model.forward(hidden, places, cache);
        assert!(matches!(result, Err(LibtorchError::Operand { .. })), "{result:?}");
    };
    let first = Places { rows: &[0], positions: &[0], wanted: None };
    let good = || model.cache(Kind::Float);
    assert_eq!(model.forward(&hidden, &first, &mut good()).unwrap().size(), [1, 6]);
    for (rows, positions) in [([ROWS], [0]), ([0], [CAPACITY]), ([-1], [0]), ([0], [-1])] {
        refused(&hidden, &Places { rows: &rows, positions: &positions, wanted: None }, &mut good());
    }
    refused(&hidden, &Places { wanted: Some(&[1]), ..first }, &mut good());
    refused(&hidden, &Places { rows: &[0, 0], ..first }, &mut good());
    refused(&numbers(&[1, 5], 1.0), &first, &mut good());
    refused(&hidden.to_kind(Kind::Double), &first, &mut good());
    refused(&hidden, &first, &mut good()[..1]);
    refused(&hidden, &first, &mut []);
    refused(&hidden, &first, &mut model.cache(Kind::Half));
    let mut mixed = good();
    mixed[1][0] = mixed[1][0].to_kind(Kind::BFloat16);
    refused(&hidden, &first, &mut mixed);
    for shape in [[ROWS, 3, CAPACITY, 4], [ROWS, 2, CAPACITY, 3], [ROWS, 0, CAPACITY, 4]] {
        let mut odd = [0, 1].map(|_| [0, 1].map(|_| Tensor::zeros(shape, (Kind::Float, Device::Cpu))));
        refused(&hidden, &first, &mut odd);
    }
    let windowless = Model::new(Family::Llama, sizes, Some(0), Kind::Float);
    assert!(windowless.forward(&hidden, &first, &mut good()).is_err());
}
