//! Conversations as a model reads them: the token ids of a prompt, which a chat template ([`crate::template`]) writes, and of
//! a response.

use crate::{LmError, Tokenizer};
use serde::Serialize;

/// One message of a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ChatTurn<'a> {
    /// Who speaks: `user`, `assistant` or `system`; templates may know others.
    pub role: &'a str,
    /// What is said.
    pub content: &'a str,
}

impl<'a> ChatTurn<'a> {
    /// What the person says.
    #[must_use]
    pub fn user(content: &'a str) -> Self {
        Self { role: "user", content }
    }

    /// What the model says.
    #[must_use]
    pub fn assistant(content: &'a str) -> Self {
        Self { role: "assistant", content }
    }

    /// What the model is told beforehand.
    #[must_use]
    pub fn system(content: &'a str) -> Self {
        Self { role: "system", content }
    }
}

impl Tokenizer {
    /// The text of a conversation as the model reads it. `add_generation_prompt` ends it where an answer begins.
    ///
    /// # Errors
    /// [`LmError::Template`], naming the template's file, if it refuses the conversation or fails.
    pub fn render(&self, turns: &[ChatTurn<'_>], add_generation_prompt: bool) -> Result<String, LmError> {
        self.template.render(turns, add_generation_prompt, self.special_texts())
    }

    /// The token ids of a conversation up to where the answer begins. Special tokens are those that the template writes;
    /// as in every chat template, the text of one inside a message counts as that token too.
    ///
    /// # Errors
    /// As [`Self::render`] and [`Self::encode`].
    pub fn encode_prompt(&self, turns: &[ChatTurn<'_>]) -> Result<Vec<i64>, LmError> {
        self.encode(&self.render(turns, true)?, false)
    }

    /// The token ids of an answer with the token that ends it; the answer's own text is taken literally.
    ///
    /// # Errors
    /// [`LmError::Tokenizer`] if there is no token that ends a text, and as [`Self::encode`].
    pub fn encode_response(&self, response: &str) -> Result<Vec<i64>, LmError> {
        let end = self.required_eos()?;
        let mut tokens = self.encode_literal(response)?;
        tokens.push(end);
        Ok(tokens)
    }
}

#[cfg(test)]
#[path = "chat_tests.rs"]
mod tests;
