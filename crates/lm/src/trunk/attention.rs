//! Queries, keys and values, and what a token takes from those that it sees.

use super::layers::{Linear, Norm};
use crate::{Architecture, DecoderConfig, LmError, Parameters};
use saddle_libtorch::kernels::PackedWeight;
use tch::{Device, Kind, Tensor};

/// The projections around one block's attention.
#[derive(Debug)]
pub(super) struct Attention {
    input: Projection,
    /// Norms of query and key heads (Qwen3).
    pub(super) norms: Option<(Norm, Norm)>,
    pub(super) output: Linear,
    heads: i64,
    head_size: i64,
}

/// What a block attends with, of packed tokens and before it is turned.
pub(super) struct Heads {
    /// `[tokens, heads · size]`.
    pub(super) query: Tensor,
    /// `[tokens, kv_heads · size]`, as the values.
    pub(super) key: Tensor,
    pub(super) value: Tensor,
    pub(super) size: i64,
}

#[derive(Debug)]
enum Projection {
    Separate {
        query: Linear,
        key: Linear,
        value: Linear,
    },
    /// All three from one matrix, side by side (GPT-2).
    Fused(Linear),
}

impl Attention {
    pub(super) fn over(prefix: &str, config: &DecoderConfig, parameters: &Parameters) -> Result<Self, LmError> {
        let (input, output) = if config.architecture == Architecture::Gpt2 {
            let named = |name: &str| Linear::input_first(&format!("{prefix}.attn.{name}"), parameters);
            (Projection::Fused(named("c_attn")?), named("c_proj")?)
        } else {
            let projection = |name: &str| {
                let name = format!("{prefix}.self_attn.{name}");
                match config.architecture.has_query_key_value_biases() {
                    true => Linear::biased(&name, parameters),
                    false => Linear::plain(&name, parameters),
                }
            };
            let (query, key, value) = (projection("q_proj")?, projection("k_proj")?, projection("v_proj")?);
            let output = Linear::plain(&format!("{prefix}.self_attn.o_proj"), parameters)?;
            (Projection::Separate { query, key, value }, output)
        };
        let norm = |name: &str| Norm::over(&format!("{prefix}.self_attn.{name}"), config, parameters);
        let normed = config.architecture.has_query_key_norms();
        Ok(Self {
            input,
            norms: normed.then(|| Ok::<_, LmError>((norm("q_norm")?, norm("k_norm")?))).transpose()?,
            output,
            heads: config.num_attention_heads as i64,
            head_size: config.head_dim() as i64,
        })
    }

    pub(super) fn linears_mut(&mut self) -> Vec<&mut Linear> {
        match &mut self.input {
            Projection::Separate { query, key, value } => vec![query, key, value, &mut self.output],
            Projection::Fused(all) => vec![all, &mut self.output],
        }
    }

    /// Query, key and value projections for decoding on a CPU.
    pub(super) fn pack_input(&self, storage: Kind) -> Result<[PackedWeight; 3], LmError> {
        match &self.input {
            Projection::Separate { query, key, value } => {
                Ok([query.pack(storage)?, key.pack(storage)?, value.pack(storage)?])
            }
            Projection::Fused(all) => all.pack_parts(storage),
        }
    }

    /// Queries, keys and values of `input` `[tokens, hidden]`.
    pub(super) fn project(&self, input: &Tensor) -> Result<Heads, LmError> {
        let [mut query, mut key, value] = match &self.input {
            Projection::Separate { query, key, value } => Linear::apply_each([query, key, value], input)?,
            Projection::Fused(all) => {
                let all = all.apply(input)?;
                let width = self.heads * self.head_size;
                let part = |index: i64| all.f_narrow(-1, index * width, width);
                [part(0)?, part(1)?, part(2)?]
            }
        };
        if let Some((query_norm, key_norm)) = &self.norms {
            for (heads, norm) in [(&mut query, query_norm), (&mut key, key_norm)] {
                *heads = norm.apply(&heads.f_reshape([-1, self.head_size])?)?.f_view_as(heads)?;
            }
        }
        Ok(Heads { query, key, value, size: self.head_size })
    }
}

/// softmax(q kᵀ / √head_size) v with each key-value head shared by heads / kv_heads query heads: under `mask`, or under a
/// causal one where there is none. In the number type of `key` and `value`, which a cache may keep as bfloat16; in that of
/// `query` again.
pub(super) fn attend(query: &Tensor, key: &Tensor, value: &Tensor, mask: Option<&Tensor>) -> Result<Tensor, LmError> {
    let grouped = query.size()[1] != key.size()[1];
    let asked = query.f_to_kind(key.f_kind()?)?;
    let given = Tensor::f_scaled_dot_product_attention(&asked, key, value, mask, 0.0, mask.is_none(), None, grouped)?;
    Ok(given.f_to_kind(query.f_kind()?)?)
}

/// True where the row's token sees the column's, `[length, length]`: itself and the `window` − 1 tokens before it.
pub(super) fn window_mask(length: i64, window: i64, device: Device) -> Result<Tensor, LmError> {
    let causal = Tensor::f_ones([length, length], (Kind::Bool, device))?.f_tril(0)?;
    Ok(causal.f_triu(1 - window)?)
}
