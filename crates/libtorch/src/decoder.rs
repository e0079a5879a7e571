//! A decoder's forward pass over packed weights and a cache of keys and values, on a CPU: all its layers in one call.
//!
//! Between a decoding step's products lies little work, many times. So the threads of a pass stay together from its first
//! layer to its last, and each takes its share of every product, norm and attention. Weights and cache are each float32 or
//! bfloat16; everything else is float32. As with [`crate::kernels`], a token's result is the same, to the bit, whatever else is
//! computed beside it.

use crate::kernels::{PackedWeight, operand, require, require_kind};
use crate::{LibtorchError, ffi};
use std::ptr;
use tch::{Device, Kind, Tensor};

/// An RMS norm (arXiv 1910.07467), or a layer norm (1607.06450) where there is a bias.
#[derive(Clone, Copy, Debug)]
pub struct Norm<'a> {
    /// `[width]`.
    pub weight: &'a Tensor,
    /// `[width]`.
    pub bias: Option<&'a Tensor>,
    /// Added to the mean square.
    pub epsilon: f64,
}

/// One layer: x += output(attention(norm(x))), then x += down(silu(gate(norm(x))) · up(norm(x))), or down(gelu(up(norm(x))))
/// where there is no gate.
#[derive(Debug)]
pub struct Block<'a> {
    /// Before the attention.
    pub attention_norm: Norm<'a>,
    /// Projections to queries `[heads · head_size]`, keys and values `[kv_heads · head_size]`.
    pub input: [&'a PackedWeight; 3],
    /// Of each head of the queries and of the keys, before they are turned.
    pub head_norms: Option<[Norm<'a>; 2]>,
    /// From what the heads took.
    pub output: &'a PackedWeight,
    /// Before the feed-forward.
    pub feed_forward_norm: Norm<'a>,
    /// The gate of SwiGLU (2002.05202).
    pub gate: Option<&'a PackedWeight>,
    /// Into the feed-forward.
    pub up: &'a PackedWeight,
    /// Out of it.
    pub down: &'a PackedWeight,
}

/// The layers between what embeddings give and hidden states.
#[derive(Debug)]
pub struct Decoder<'a> {
    /// The layers, which are of one shape and one kind of weights.
    pub blocks: Vec<Block<'a>>,
    /// After the last of them.
    pub norm: Norm<'a>,
    /// Cosine and sine of the rotary positions, `[positions, head_size]` each with halves repeated, where there are any.
    pub rotary: Option<(&'a Tensor, &'a Tensor)>,
    /// How many tokens a token sees, itself included, where that is limited.
    pub window: Option<i64>,
}

/// Where tokens stand in the cache, and which of them are asked for.
#[derive(Clone, Copy, Debug)]
pub struct Places<'a> {
    /// Row of the cache of each token.
    pub rows: &'a [i64],
    /// Position in that row of each token.
    pub positions: &'a [i64],
    /// The tokens whose hidden states are wanted, by number; otherwise all.
    pub wanted: Option<&'a [i64]>,
}

/// A layer's keys and values, `[rows, kv_heads, capacity, head_size]` each, float32 or bfloat16. In the cache are turned keys.
pub type Layer<'a> = (&'a mut Tensor, &'a mut Tensor);

impl Decoder<'_> {
    /// The hidden states of the wanted tokens after the last norm, `[wanted, width]`. `hidden` `[tokens, width]`, what
    /// enters the first layer, is used up: the memory behind it is overwritten. The tokens' keys and values go into `cache`, a pair
    /// of tensors for each layer, all of one shape and kind; what stands before the tokens in their rows must be there
    /// already, or be among them.
    ///
    /// # Errors
    /// [`LibtorchError::Operand`] if shapes or kinds do not fit, or a token stands outside the cache.
    pub fn forward(
        &self,
        hidden: Tensor,
        places: &Places<'_>,
        cache: &mut [Layer<'_>],
    ) -> Result<Tensor, LibtorchError> {
        let _guard = tch::no_grad_guard();
        let (Some(first), Some((keys, _))) = (self.blocks.first(), cache.first()) else {
            return Err(operand("a decoder without layers".to_owned()));
        };
        let [rows, kv_heads, capacity, head_size] = keys.size()[..] else {
            return Err(operand(format!("a cache has the shape {:?}", keys.size())));
        };
        let shape = Shape {
            width: first.input[0].inputs,
            inner: first.up.outputs,
            queries: first.input[0].outputs,
            head_size,
            cache: [rows, kv_heads, capacity, head_size],
            weights: first.up.kind(),
            kept: keys.kind(),
        };
        let heads = shape.queries / head_size.max(1);
        if kv_heads < 1 || heads < 1 || heads % kv_heads != 0 || heads * head_size != shape.queries {
            return Err(operand(format!("queries of {} for {kv_heads} heads of {head_size}", shape.queries)));
        }
        if !matches!(shape.kept, Kind::Float | Kind::BFloat16) {
            return Err(operand(format!("a cache is Float or BFloat16, not {:?}", shape.kept)));
        }
        if cache.len() != self.blocks.len() || self.window.is_some_and(|window| window < 1) {
            return Err(operand(format!(
                "{} layers, a cache of {}, a window of {:?}",
                self.blocks.len(),
                cache.len(),
                self.window
            )));
        }
        let blocks = self.blocks.iter().zip(cache.iter_mut()).map(|(block, layer)| block.checked(&shape, layer));
        let blocks = blocks.collect::<Result<Vec<_>, _>>()?;
        let count = places.rows.len() as i64;
        require(&hidden, &[count, shape.width])?;
        let longest = places.checked(rows, capacity)?;
        let (cosine, sine) = self.tables(longest, head_size)?;
        let wanted_count = places.wanted.map_or(count, |wanted| wanted.len() as i64);
        let out = Tensor::f_empty([wanted_count, shape.width], (Kind::Float, Device::Cpu))?;
        let decoder = ffi::Decoder {
            blocks: blocks.as_ptr(),
            count: blocks.len() as i64,
            norm: self.norm.checked(shape.width)?,
            cosine,
            sine,
            width: shape.width,
            inner: shape.inner,
            heads,
            kv_heads,
            head_size,
            capacity,
            window: self.window.unwrap_or(0),
            bf16_weights: shape.weights == Kind::BFloat16,
            bf16_cache: shape.kept == Kind::BFloat16,
        };
        let tokens = ffi::Tokens {
            hidden: hidden.data_ptr().cast(),
            rows: places.rows.as_ptr(),
            positions: places.positions.as_ptr(),
            count,
            longest,
            wanted: places.wanted.map_or(ptr::null(), <[i64]>::as_ptr),
            wanted_count,
            out: out.data_ptr().cast(),
        };
        ffi::forward(&decoder, &tokens)?;
        Ok(out)
    }

    fn tables(&self, longest: i64, head_size: i64) -> Result<(*const f32, *const f32), LibtorchError> {
        let Some((cosine, sine)) = self.rotary else { return Ok((ptr::null(), ptr::null())) };
        let known = cosine.size().first().copied().unwrap_or(0);
        if known < longest || head_size % 2 != 0 {
            return Err(operand(format!("position {} of {known} rotary ones", longest - 1)));
        }
        require(cosine, &[known, head_size])?;
        require(sine, &[known, head_size])?;
        Ok((cosine.data_ptr().cast(), sine.data_ptr().cast()))
    }
}

/// What all layers have in common.
struct Shape {
    width: i64,
    inner: i64,
    /// Width of a token's queries.
    queries: i64,
    head_size: i64,
    cache: [i64; 4],
    weights: Kind,
    kept: Kind,
}

impl Block<'_> {
    fn checked(&self, shape: &Shape, (keys, values): &mut Layer<'_>) -> Result<ffi::Block, LibtorchError> {
        for each in [&**keys, &**values] {
            require_kind(each, &shape.cache, shape.kept)?;
        }
        let matrix = |weight: &PackedWeight, inputs: i64, outputs: i64| {
            if (weight.inputs, weight.outputs, weight.kind()) != (inputs, outputs, shape.weights) {
                return Err(operand(format!(
                    "[{outputs}, {inputs}] of {:?} is needed, not [{}, {}] of {:?}",
                    shape.weights,
                    weight.outputs,
                    weight.inputs,
                    weight.kind()
                )));
            }
            let (weight, bias) = weight.pointers();
            Ok(ffi::Matrix { weight, bias, outputs })
        };
        let (width, inner, queries) = (shape.width, shape.inner, shape.queries);
        let [query, key, value] = self.input;
        let shared = shape.cache[1] * shape.head_size;
        let head_norm = |which: usize| {
            let norm = self.head_norms.as_ref().map(|norms| norms[which].checked(shape.head_size)).transpose()?;
            Ok::<_, LibtorchError>(norm.unwrap_or(ffi::Norm { weight: ptr::null(), bias: ptr::null(), epsilon: 0.0 }))
        };
        let gate = self.gate.map(|gate| matrix(gate, width, inner)).transpose()?;
        Ok(ffi::Block {
            attention_norm: self.attention_norm.checked(width)?,
            query: matrix(query, width, queries)?,
            key: matrix(key, width, shared)?,
            value: matrix(value, width, shared)?,
            query_norm: head_norm(0)?,
            key_norm: head_norm(1)?,
            output: matrix(self.output, queries, width)?,
            feed_forward_norm: self.feed_forward_norm.checked(width)?,
            gate: gate.unwrap_or(ffi::Matrix { weight: ptr::null(), bias: ptr::null(), outputs: 0 }),
            up: matrix(self.up, width, inner)?,
            down: matrix(self.down, inner, width)?,
            keys: keys.data_ptr(),
            values: values.data_ptr(),
        })
    }
}

impl Norm<'_> {
    fn checked(&self, width: i64) -> Result<ffi::Norm, LibtorchError> {
        let pointer =
            |tensor: &Tensor| require(tensor, &[width]).map(|()| tensor.data_ptr().cast::<f32>().cast_const());
        let bias = self.bias.map(pointer).transpose()?.unwrap_or(ptr::null());
        Ok(ffi::Norm { weight: pointer(self.weight)?, bias, epsilon: self.epsilon })
    }
}

impl Places<'_> {
    /// One more than the largest position.
    fn checked(&self, rows: i64, capacity: i64) -> Result<i64, LibtorchError> {
        let within = |indices: &[i64], limit: i64| indices.iter().all(|index| (0..limit).contains(index));
        let tokens = self.rows.len();
        if self.positions.len() != tokens || !within(self.rows, rows) || !within(self.positions, capacity) {
            return Err(operand(format!("a token stands outside a cache of {rows} rows of {capacity}")));
        }
        if self.wanted.is_some_and(|wanted| !within(wanted, tokens as i64)) {
            return Err(operand(format!("a token that is wanted is not among {tokens}")));
        }
        Ok(self.positions.iter().max().map_or(0, |last| last + 1))
    }
}
