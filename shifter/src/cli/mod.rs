//! The command line: one file per verb, a client of the gRPC API.

mod agent;
mod apply;
mod client;
mod completion;
mod confirm;
mod delete;
mod detach;
mod doctor;
mod drain;
mod explain;
mod failure;
mod file;
mod freeze;
mod get;
mod man;
mod plan;
mod prepare;
mod promote;
mod receipt;
mod rollback;
mod rollout;
mod runner;
mod screen;
mod share;
mod shift;
mod status;
mod table;
#[cfg(test)]
mod tests;
mod text;

use std::{ffi::OsString, time::Duration};

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum};

use crate::model::duration;
use client::Client;
use failure::Failure;
pub use screen::Screen;

/// Done, or nothing to do.
const EXIT_DONE: u8 = 0;
/// A plan has changes.
const EXIT_CHANGES: u8 = 2;
/// The command line is wrong (BSD's EX_USAGE).
const EXIT_USAGE: u8 = 64;

/// Move live traffic between two versions of a service, one connection at a time.
///
/// New connections follow the weight; a connection that exists stays on the
/// backend it began on until it ends.
#[derive(Parser, Debug)]
#[command(
    name = "shifter",
    version,
    max_term_width = 100,
    arg_required_else_help = true
)]
#[command(
    after_help = "Exit codes: 0 done or unchanged, 1 error, 2 changes present (plan, apply --dry-run), \
    3 conflict (etag), 4 not verified, 5 rollout rolled back, 6 timeout, 7 frozen, 8 agent unreachable, 9 denied, 64 usage."
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Verb,
}

/// Options of every verb.
#[derive(clap::Args, Clone, Debug)]
struct Global {
    /// Where the agent is asked: what `unix` in [api] of its configuration says. Refused by
    /// commands that ask none.
    #[arg(long, env = "SHIFTER_ENDPOINT", global = true, value_name = "URL")]
    #[arg(default_value = "unix:///run/shifter/shifter.sock")]
    endpoint: String,
    /// How to print: a table for people, JSON for programs.
    #[arg(short, long, global = true, value_enum, default_value = "table")]
    output: Output,
    /// How long to wait for the agent, as in 10s or 500ms.
    #[arg(long, global = true, value_name = "TIME", default_value = "10s", value_parser = duration::parse)]
    timeout: Duration,
    /// No colours; NO_COLOR in the environment says the same.
    #[arg(long, global = true)]
    no_color: bool,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum Output {
    Table,
    Json,
}

#[derive(Subcommand, Debug)]
enum Verb {
    Agent(agent::Agent),
    Apply(apply::Apply),
    Plan(plan::Plan),
    Get(get::Get),
    Status(status::Status),
    Shift(shift::Shift),
    Confirm(confirm::Confirm),
    Rollback(rollback::Rollback),
    Promote(promote::Promote),
    Rollout(rollout::RolloutVerb),
    Drain(drain::Drain),
    Undrain(drain::Undrain),
    Freeze(freeze::Freeze),
    Unfreeze(freeze::Unfreeze),
    Delete(delete::Delete),
    Explain(explain::Explain),
    Doctor(doctor::Doctor),
    Detach(detach::Detach),
    Prepare(prepare::Prepare),
    Runner(runner::Runner),
    Completion(completion::Completion),
    Man(man::Man),
}

impl Verb {
    /// Whether it is a client of the agent; the others work on this host themselves.
    fn asks_agent(&self) -> bool {
        !matches!(
            self,
            Self::Agent(_)
                | Self::Doctor(_)
                | Self::Detach(_)
                | Self::Prepare(_)
                | Self::Runner(_)
                | Self::Completion(_)
                | Self::Man(_)
        )
    }
}

/// Runs one command line (its first argument is the program's name) and gives
/// its exit code.
pub fn run(args: impl IntoIterator<Item = OsString>, screen: &mut Screen<'_>) -> u8 {
    let args: Vec<OsString> = args.into_iter().collect();
    screen.forbid_colour(args.iter().any(|arg| arg == "--no-color"));
    let cli = match parse(args) {
        Ok(cli) => cli,
        Err(mut error) => {
            name_not_by_alias(&mut error);
            return screen.usage(&error);
        }
    };
    screen.set_json(cli.global.output == Output::Json);
    match dispatch(cli, screen) {
        Ok(code) => code,
        Err(Failure::OutputClosed) => EXIT_DONE,
        Err(failure) => {
            screen.complain(&failure.to_string());
            failure.exit_code()
        }
    }
}

fn parse(args: Vec<OsString>) -> Result<Cli, clap::Error> {
    let mut command = command();
    let matches = command.try_get_matches_from_mut(args)?;
    let cli = Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut command))?;
    // What is in the environment is for other commands too.
    let is_asked = |of: &clap::ArgMatches| {
        of.value_source("endpoint") == Some(clap::parser::ValueSource::CommandLine)
    };
    match matches.subcommand() {
        Some((verb, of)) if is_asked(of) && !cli.verb.asks_agent() => {
            let why = match cli.verb {
                Verb::Agent(_) => {
                    "the agent listens where `unix` in [api] of its configuration says (--config)"
                }
                _ => "it works on this host itself",
            };
            let text = format!(
                "shifter {verb} does not ask an agent, so --endpoint says nothing to it: {why}"
            );
            Err(command.error(clap::error::ErrorKind::ArgumentConflict, text))
        }
        _ => Ok(cli),
    }
}

/// What is near to a wrong word is suggested by its name, not by its alias too.
fn name_not_by_alias(error: &mut clap::Error) {
    use clap::error::{ContextKind, ContextValue};
    let Some(ContextValue::Strings(near)) = error.get(ContextKind::SuggestedSubcommand) else {
        return;
    };
    let mut names: Vec<String> = near
        .iter()
        .map(|word| match word.as_str() {
            "service" | "backend" | "flow" | "rollout" | "event" => format!("{word}s"),
            name => name.to_owned(),
        })
        .collect();
    names.dedup();
    error.insert(
        ContextKind::SuggestedSubcommand,
        ContextValue::Strings(names),
    );
}

/// The whole command line, for completions and manual pages.
fn command() -> clap::Command {
    Cli::command()
}

fn dispatch(cli: Cli, screen: &mut Screen<'_>) -> Result<u8, Failure> {
    let Cli { global, verb } = cli;
    match verb {
        Verb::Agent(verb) => verb.run(),
        Verb::Doctor(verb) => verb.run(screen),
        Verb::Detach(verb) => verb.run(screen),
        Verb::Prepare(verb) => verb.run(screen),
        Verb::Runner(verb) => verb.run(),
        Verb::Completion(verb) => verb.run(screen),
        Verb::Man(verb) => verb.run(screen),
        verb => tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Failure::Local(error.into()))?
            .block_on(ask(verb, &global, screen)),
    }
}

/// The verbs that ask the agent.
async fn ask(verb: Verb, global: &Global, screen: &mut Screen<'_>) -> Result<u8, Failure> {
    let client = Client::new(global)?;
    match verb {
        Verb::Apply(verb) => verb.run(&client, screen).await,
        Verb::Plan(verb) => verb.run(&client, screen).await,
        Verb::Get(verb) => verb.run(&client, screen).await,
        Verb::Status(verb) => verb.run(&client, screen).await,
        Verb::Shift(verb) => verb.run(&client, screen).await,
        Verb::Confirm(verb) => verb.run(&client, screen).await,
        Verb::Rollback(verb) => verb.run(&client, screen).await,
        Verb::Promote(verb) => verb.run(&client, screen).await,
        Verb::Rollout(verb) => verb.run(&client, screen).await,
        Verb::Drain(verb) => verb.run(&client, screen).await,
        Verb::Undrain(verb) => verb.run(&client, screen).await,
        Verb::Freeze(verb) => verb.run(&client, screen).await,
        Verb::Unfreeze(verb) => verb.run(&client, screen).await,
        Verb::Delete(verb) => verb.run(&client, screen).await,
        Verb::Explain(verb) => verb.run(&client, screen).await,
        Verb::Agent(_)
        | Verb::Doctor(_)
        | Verb::Detach(_)
        | Verb::Prepare(_)
        | Verb::Runner(_)
        | Verb::Completion(_)
        | Verb::Man(_) => Ok(EXIT_DONE),
    }
}
