//! Rollouts: a plan of steps over a service, and the state machine that walks it. Pure.
//!
//! Every strategy is a preset over one language of steps ([`Step`]).
//! [`step`] takes a state, an event and the time and gives the next state with
//! what has to be done. What has to be done bears an id and stays in the state
//! as [`State::pending`] until its result is told, so whoever carries it out can
//! die at any point, and go on after it: nothing is asked for twice under two ids.

pub mod as_text;
mod command;
pub mod facts;
pub mod machine;
pub mod note;
pub mod plan;
pub mod preset;
pub mod report;
pub mod spec;
pub mod state;
#[cfg(test)]
mod tests;
pub mod window;

pub use command::check;
pub use facts::{BackendFacts, Facts, Health};
pub use machine::step;
pub use note::{Happened, Note, notes};
pub use plan::{GatePolicy, OnDoubt, Plan, Step};
pub use spec::{RolloutSpec, Strategy};
pub use state::{Action, Effect, Event, Outcome, Phase, State};
pub use window::Window;
