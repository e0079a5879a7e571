//! What stages there are.

/// What a stage does. Scorers are told apart by their lane: the reward's, then each cost's, then the reference's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Draws prompts under credits.
    Source,
    /// Answers them.
    Generator,
    /// Scores the answers in one way.
    Scorer(usize),
    /// Brings an answer's scores together.
    Join,
    /// Moves the multipliers.
    Multiplier,
    /// Learns and publishes weights.
    Learner,
    /// Examines published weights on held-out prompts.
    Evaluator,
}

impl Role {
    /// Whether there may be several of it.
    #[must_use]
    pub fn is_scalable(self) -> bool {
        matches!(self, Self::Generator | Self::Scorer(_))
    }
}
