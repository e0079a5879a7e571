//! Commands to a run under way, from wherever: the program, or the task of a server.

use crate::messages::{Order, Report};
use crate::{Plan, Role};
use ractor::{ActorRef, RpcReplyPort};
use saddle_flow::{Cancel, Ledger};
use std::time::Duration;

/// For an answer of the supervisor.
const ANSWER: Duration = Duration::from_secs(10);
/// For the engines of new stages, which may have to load a model.
const SCALED: Duration = Duration::from_secs(120);

/// Why an order was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// It asks for what cannot be.
    #[error("{0}")]
    Refused(String),
    /// The supervisor does not answer: the run is over, or about to be.
    #[error("the supervisor does not answer: {0}")]
    Gone(String),
}

/// A hold on a run. Clones are of the same run, and do not keep it alive.
#[derive(Clone, Debug)]
pub struct Remote {
    pub(crate) supervisor: ActorRef<Order>,
    pub(crate) ledger: Ledger,
    pub(crate) drain: Cancel,
    pub(crate) plan: Plan,
}

impl Remote {
    /// The role of this name.
    ///
    /// # Errors
    /// [`OrderError::Refused`] with the names that there are.
    pub fn role(&self, name: &str) -> Result<Role, OrderError> {
        let roles: Vec<_> = self.plan.stages().into_iter().map(|(role, _)| (role, self.plan.name(role))).collect();
        let found = roles.iter().find(|(_, each)| &**each == name).map(|(role, _)| *role);
        found.ok_or_else(|| {
            let names: Vec<&str> = roles.iter().map(|(_, name)| &**name).collect();
            OrderError::Refused(format!("there is no role {name:?}; there are {}", names.join(", ")))
        })
    }

    /// Has so many stages of a role from now on, and waits until those that are new have their engines. Those that leave hand
    /// their prompts back.
    ///
    /// # Errors
    /// [`OrderError`]; the run goes on without a stage that cannot be started.
    pub async fn scale(&self, role: Role, count: usize) -> Result<(), OrderError> {
        self.ask(SCALED, |reply| Order::Scale { role, count, reply }).await?.map_err(OrderError::Refused)
    }

    /// Lets the stages of a role stand still before their next step, or go on. Nobody loses patience meanwhile.
    ///
    /// # Errors
    /// [`OrderError::Gone`].
    pub fn pause(&self, role: Role, paused: bool) -> Result<(), OrderError> {
        let sent = self.supervisor.send_message(Order::Pause { role, paused });
        sent.map_err(|error| OrderError::Gone(error.to_string()))
    }

    /// Begins the drain: no new prompt is drawn, what is under way ends as it will, and who was paused goes on.
    pub fn drain(&self) {
        if self.drain.is_cancelled() {
            return;
        }
        self.ledger.close();
        self.drain.cancel("the run drains");
        // A supervisor that is gone has nobody left to let go on.
        let _ = self.supervisor.send_message(Order::Drain);
    }

    /// How the stages are.
    ///
    /// # Errors
    /// [`OrderError::Gone`].
    pub async fn observe(&self) -> Result<Report, OrderError> {
        self.ask(ANSWER, Order::Observe).await
    }

    async fn ask<T: Send + 'static>(
        &self,
        patience: Duration,
        order: impl FnOnce(RpcReplyPort<T>) -> Order,
    ) -> Result<T, OrderError> {
        let answer = self.supervisor.call(order, Some(patience)).await;
        let answer = answer.map_err(|error| OrderError::Gone(error.to_string()))?;
        answer.success_or_else(|| OrderError::Gone("the run is over".to_owned()))
    }
}
