//! Low-rank adapters (LoRA, arXiv 2106.09685): instead of a projection W, two thin matrices beside it are trained, which
//! make it W + (α/r) B A with A `[rank, inputs]` and B `[outputs, rank]`.
//!
//! B begins at zero, so that an adapted model begins as the model that it was made from. A score model's head is small and
//! often new: it is trained whole beside the adapters. Adapters are named after their projections, as PEFT has it.

use crate::layout::trunk_shapes;
use crate::{Architecture, DecoderConfig, LmError};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use saddle_core::Problems;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use tch::{Kind, Tensor, no_grad_guard};

/// What stands behind a projection's name in that of its A.
pub(crate) const DOWN: &str = ".lora_A.weight";
/// What stands behind a projection's name in that of its B.
pub(crate) const UP: &str = ".lora_B.weight";

/// `[lora]`: low-rank adapters (arXiv 2106.09685) are trained in place of the weights: a projection W becomes W + (α/r) B A,
/// and only A and B are trained. A score model's head is trained beside them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct LoraConfig {
    /// r, the rows of A and columns of B; at most the smaller side of every projection that is adapted.
    pub rank: usize,
    /// α: what an adapter adds is scaled by α/r.
    pub alpha: f64,
    /// The projections that are adapted, each by its name or the end of it, such as `q_proj` or `mlp.down_proj`; all of them
    /// if the list is empty.
    pub targets: Vec<String>,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self { rank: 8, alpha: 16.0, targets: Vec::new() }
    }
}

impl LoraConfig {
    /// What is wrong whatever the model.
    #[must_use]
    pub fn validate(&self) -> Problems {
        let mut problems = Problems::default();
        problems.require(self.rank > 0, "rank", "must be at least 1; leave [lora] out to train all weights");
        problems.require(
            self.alpha.is_finite() && self.alpha > 0.0,
            "alpha",
            format!("must be a positive number, is {}", self.alpha),
        );
        problems.require(
            self.targets.iter().all(|target| !target.is_empty()),
            "targets",
            "must be names; leave the list out to adapt every projection",
        );
        problems
    }

    /// Numbers in the adapters of a model.
    ///
    /// # Errors
    /// [`LmError::Mismatch`] if the model cannot have them.
    pub fn parameter_count(&self, config: &DecoderConfig) -> Result<usize, LmError> {
        let targets = self.targets_of(config)?;
        Ok(targets.iter().map(|each| self.rank * (each.inputs + each.outputs) as usize).sum())
    }

    /// α/r.
    pub(crate) fn scale(&self) -> f64 {
        self.alpha / self.rank as f64
    }

    /// The projections of a model that are adapted.
    ///
    /// # Errors
    /// [`LmError::Mismatch`] with every target that the model lacks, and with a rank that is too large for it.
    pub(crate) fn targets_of(&self, config: &DecoderConfig) -> Result<Vec<Projection>, LmError> {
        let all = projections(config);
        let mut problems = self.validate();
        for target in &self.targets {
            let known = all.iter().map(Projection::short_name).collect::<BTreeSet<_>>().into_iter();
            let known = known.collect::<Vec<_>>().join(", ");
            let message = format!("this model has no projection called {target:?}; it has {known}");
            problems.require(all.iter().any(|each| each.is_called(target)), "targets", message);
        }
        let chosen: Vec<_> = all
            .into_iter()
            .filter(|each| self.targets.is_empty() || self.targets.iter().any(|target| each.is_called(target)))
            .collect();
        if let Some(smallest) = chosen.iter().min_by_key(|each| each.smaller_side())
            && self.rank as i64 > smallest.smaller_side()
        {
            let (limit, name) = (smallest.smaller_side(), &smallest.name);
            let message = format!("must be at most {limit}, the smaller side of {name}, is {}", self.rank);
            problems.require(false, "rank", message);
        }
        if problems.is_empty() {
            return Ok(chosen);
        }
        let mut all = Problems::default();
        all.section("lora", problems);
        Err(LmError::Mismatch(format!("the model cannot have these adapters:\n{all}")))
    }
}

/// A matrix of the trunk that an adapter can stand beside.
#[derive(Debug)]
pub(crate) struct Projection {
    /// Its module's name, such as `model.layers.0.self_attn.q_proj`.
    pub(crate) name: String,
    pub(crate) inputs: i64,
    pub(crate) outputs: i64,
}

impl Projection {
    fn is_called(&self, target: &str) -> bool {
        self.name.strip_suffix(target).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    }

    /// The last part of its name, such as `q_proj`.
    pub(crate) fn short_name(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or(&self.name)
    }

    fn smaller_side(&self) -> i64 {
        self.inputs.min(self.outputs)
    }
}

/// Every projection of a model's blocks.
pub(crate) fn projections(config: &DecoderConfig) -> Vec<Projection> {
    let input_first = stores_input_first(config);
    let projection = |(name, shape): (String, Vec<i64>)| {
        let name = name.strip_suffix(".weight").filter(|name| name.contains(".layers.") || name.contains(".h."))?;
        let [first, second] = *shape.as_slice() else { return None };
        let (inputs, outputs) = if input_first { (first, second) } else { (second, first) };
        Some(Projection { name: name.to_owned(), inputs, outputs })
    };
    trunk_shapes(config).into_iter().filter_map(projection).collect()
}

/// Whether projections are stored as Wᵀ, with the input first.
pub(crate) fn stores_input_first(config: &DecoderConfig) -> bool {
    config.architecture == Architecture::Gpt2
}

/// Fresh adapters of `lora` for a model of `config`: A uniform in ±1/√inputs, as He et al. (arXiv 1502.01852) have it for a
/// linear layer, and B zero. A function of `seed` and the shapes alone; each projection has a stream of its own.
///
/// # Errors
/// As [`LoraConfig::targets_of`].
pub(crate) fn fresh_adapters(
    config: &DecoderConfig,
    lora: &LoraConfig,
    seed: u64,
) -> Result<BTreeMap<String, Tensor>, LmError> {
    let rank = lora.rank as i64;
    let mut weights = BTreeMap::new();
    for (index, Projection { name, inputs, outputs }) in lora.targets_of(config)?.into_iter().enumerate() {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(index as u64);
        let bound = (inputs as f64).sqrt().recip();
        let uniform = |_| (bound * (2.0 * random.random::<f64>() - 1.0)) as f32;
        let values: Vec<f32> = (0..rank * inputs).map(uniform).collect();
        weights.insert(format!("{name}{DOWN}"), Tensor::f_from_slice(&values)?.f_view([rank, inputs])?);
        weights.insert(format!("{name}{UP}"), Tensor::f_zeros([outputs, rank], (Kind::Float, tch::Device::Cpu))?);
    }
    Ok(weights)
}

/// What stands beside one projection.
#[derive(Debug)]
pub(crate) struct Adapter {
    /// A.
    pub(crate) down: Tensor,
    /// B.
    pub(crate) up: Tensor,
    /// α/r.
    pub(crate) scale: f64,
}

impl Adapter {
    /// `output` `[.., outputs]` of the projection plus (α/r) (x Aᵀ) Bᵀ, with x its `input` `[.., inputs]`.
    pub(crate) fn add_to(&self, output: &Tensor, input: &Tensor) -> Result<Tensor, LmError> {
        let low = input.f_linear::<&Tensor>(&self.down, None)?.f_mul_scalar(self.scale)?;
        Ok(output.f_add(&low.f_linear::<&Tensor>(&self.up, None)?)?)
    }

    /// (α/r) B A, `[outputs, inputs]`.
    pub(crate) fn product(&self) -> Result<Tensor, LmError> {
        Ok(self.up.f_matmul(&self.down)?.f_mul_scalar(self.scale)?)
    }
}

/// Merges what was trained into `weights`: an adapted projection becomes W + (α/r) B A, in its own number type; what was
/// trained whole replaces its like. `trained` names adapters in pairs.
///
/// # Errors
/// [`LmError::MissingTensor`] if an adapter has only one of its matrices, or no projection.
pub(crate) fn merge(
    config: &DecoderConfig,
    weights: &mut BTreeMap<String, Tensor>,
    trained: &BTreeMap<String, Tensor>,
    scale: f64,
) -> Result<(), LmError> {
    let _guard = no_grad_guard();
    for (name, tensor) in trained {
        let Some(module) = name.strip_suffix(DOWN) else {
            if !name.ends_with(UP) {
                weights.insert(name.clone(), tensor.f_detach()?);
            }
            continue;
        };
        let up = format!("{module}{UP}");
        let up = trained.get(&up).ok_or(LmError::MissingTensor(up))?.shallow_clone();
        let product = Adapter { down: tensor.shallow_clone(), up, scale }.product()?;
        let product = if stores_input_first(config) { product.f_transpose(0, 1)? } else { product };
        let name = format!("{module}.weight");
        let weight = weights.get_mut(&name).ok_or(LmError::MissingTensor(name))?;
        *weight = weight.f_to_kind(Kind::Float)?.f_add(&product)?.f_to_kind(weight.f_kind()?)?;
    }
    Ok(())
}
