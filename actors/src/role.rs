//! What stages there are.

/// Which score a scorer gives. In this order, scores of a response stand side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// The reward.
    Reward,
    /// The cost of the constraint with this place in the order of the constraints.
    Cost(usize),
    /// The reference's log-probs of the tokens.
    Reference,
}

impl Lane {
    /// Every lane of a run with so many constraints.
    pub fn all(constraints: usize) -> impl Iterator<Item = Self> + Clone {
        std::iter::once(Self::Reward).chain((0..constraints).map(Self::Cost)).chain([Self::Reference])
    }

    /// Its place among them.
    #[must_use]
    pub fn place(self, constraints: usize) -> usize {
        match self {
            Self::Reward => 0,
            Self::Cost(constraint) => 1 + constraint,
            Self::Reference => 1 + constraints,
        }
    }
}

/// What a stage does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Draws prompts under credits.
    Source,
    /// Answers them.
    Generator,
    /// Scores the answers in one way.
    Scorer(Lane),
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
