//! The critics: value estimates of the reward stream and of each cost stream.
//!
//! `separate` has one model a stream; `two_headed` one model with a head a stream. Both are a list of score models whose
//! heads, in order, are the streams. With low-rank adapters, a critic shares the weights of the score model that it starts
//! from, and has adapters and a head of its own.

use crate::TrainingError;
use crate::config::{Critics, CriticsSection};
use crate::workers::Replica;
use saddle_lm::{AdamW, LoraConfig, Precision, ScoreModel, SequenceBatch};
use tch::{Device, Tensor};

/// Values for all streams: the reward's first, then each cost's.
#[derive(Debug)]
pub struct CriticSet {
    critics: Vec<Critic>,
    learning_rate: f64,
}

#[derive(Debug)]
struct Critic {
    model: ScoreModel,
    optimizer: AdamW,
    heads: usize,
}

impl CriticSet {
    /// Critics that start from the reward model and the cost models, as published; a two-headed one starts from the
    /// reward model's trunk. With `lora`, adapters and heads are trained, and the trunks are those of `scorers` themselves.
    ///
    /// # Errors
    /// Fails if a model cannot be built.
    pub fn new(
        section: &CriticsSection,
        lora: Option<&LoraConfig>,
        scorers: &[&ScoreModel],
        seed: u64,
        device: Device,
    ) -> Result<Self, TrainingError> {
        let starts: Vec<(&ScoreModel, usize)> = match section.layout {
            Critics::Separate => scorers.iter().map(|scorer| (*scorer, 1)).collect(),
            Critics::TwoHeaded => scorers.first().map(|first| (*first, scorers.len())).into_iter().collect(),
        };
        let critics = starts.into_iter().map(|(start, heads)| {
            let model = match lora {
                Some(lora) => ScoreModel::on_adapted_trunk(start, heads, lora, seed)?,
                None => ScoreModel::on_trunk(start.config().clone(), &start.weights()?, heads, seed, device)?,
            };
            let model = model.trainable()?;
            let optimizer = AdamW::new(section.adamw.clone(), model.parameters())?;
            Ok::<_, TrainingError>(Critic { model, optimizer, heads })
        });
        Ok(Self { critics: critics.collect::<Result<_, _>>()?, learning_rate: section.learning_rate })
    }

    /// How many numbers are trained of each model.
    #[must_use]
    pub fn trained_numbers(&self) -> Vec<usize> {
        self.critics.iter().map(|critic| critic.model.parameters().count()).collect()
    }

    /// The same critics, which compute in `precision`.
    #[must_use]
    pub fn in_precision(mut self, precision: Precision) -> Self {
        let critics = self.critics.into_iter();
        self.critics = critics.map(|critic| Critic { model: critic.model.in_precision(precision), ..critic }).collect();
        self
    }

    /// The critics as `worker` has them.
    pub(crate) fn replicas(&mut self, worker: usize) -> Result<CriticReplicas, TrainingError> {
        let replicas = self.critics.iter_mut().map(|critic| {
            let replica = Replica { model: critic.model.replica()?, sum: critic.optimizer.sum(worker)? };
            Ok((replica, critic.heads))
        });
        Ok(CriticReplicas(replicas.collect::<Result<_, TrainingError>>()?))
    }

    /// Takes a step with every critic. Returns the largest gradient norm, NaN if one is, and whether every step was taken.
    ///
    /// # Errors
    /// Fails if libtorch does.
    pub fn step(&mut self) -> Result<saddle_lm::Step, TrainingError> {
        let mut all = saddle_lm::Step { gradient_norm: 0.0, taken: true };
        for critic in &mut self.critics {
            let step = critic.optimizer.step(critic.model.parameters_mut(), self.learning_rate)?;
            let largest = all.gradient_norm.is_nan() || all.gradient_norm >= step.gradient_norm;
            all.gradient_norm = if largest { all.gradient_norm } else { step.gradient_norm };
            all.taken &= step.taken;
        }
        Ok(all)
    }

    /// Forgets the gradients added up so far.
    ///
    /// # Errors
    /// Fails if libtorch does.
    pub fn discard(&mut self) -> Result<(), TrainingError> {
        self.critics.iter_mut().try_for_each(|critic| Ok(critic.optimizer.discard()?))
    }
}

/// The critics as one worker has them, each with the number of its streams.
#[derive(Debug)]
pub(crate) struct CriticReplicas(Vec<(Replica<ScoreModel>, usize)>);

impl CriticReplicas {
    /// Values of the states before each response token: one `[batch, response]` for each stream.
    pub(crate) fn values(&self, batch: &SequenceBatch) -> Result<Vec<Tensor>, TrainingError> {
        let mut values = Vec::new();
        for (critic, _) in &self.0 {
            values.extend(critic.model.response_values(batch)?);
        }
        Ok(values)
    }

    /// Adds the gradients of `losses`, one for each stream, to those of the coming step.
    pub(crate) fn accumulate(&self, losses: &[Tensor]) -> Result<(), TrainingError> {
        let mut rest = losses;
        for (critic, heads) in &self.0 {
            let (own, others) = rest.split_at(*heads);
            let total = own.iter().skip(1).try_fold(own[0].shallow_clone(), |total, loss| total.f_add(loss))?;
            critic.model.parameters().add_gradient(&total, &critic.sum)?;
            rest = others;
        }
        Ok(())
    }
}
