//! Completion on the command line. The script of `retrovisor completions SHELL` runs this program for each completion,
//! which asks the daemon, or reads the store where none runs.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Arg, Command};
use clap_complete::engine::{ArgValueCandidates, CompletionCandidate, SubcommandCandidates};
use retrovisor_proto::v1::{
    ListFaultsRequest, ListMachinesRequest, ListQueriesRequest, ListQuestionsRequest,
};

use crate::client::{self, Client};
use crate::error::CliError;
use crate::place;

/// The environment variable that requests a completion; its value is the shell.
pub(crate) const VARIABLE: &str = "RETROVISOR_COMPLETE";

/// How long a completion may take. Then there are no candidates.
const WAIT: Duration = Duration::from_secs(2);

/// Answers a completion and exits, if one is requested. Must be called before there is a runtime.
pub(crate) fn answer_if_requested(command: fn() -> Command) {
    clap_complete::CompleteEnv::with_factory(move || with_candidates(command())).var(VARIABLE).complete();
}

/// Gives every argument whose values the service knows its candidates, by the argument's name.
fn with_candidates(command: Command) -> Command {
    command.mut_subcommands(|verb| {
        let verb = verb.mut_args(argument_candidates);
        if verb.get_name() == "inject" { verb.add(SubcommandCandidates::new(faults)) } else { verb }
    })
}

fn argument_candidates(argument: Arg) -> Arg {
    match argument.get_id().as_str() {
        "name" => argument.add(ArgValueCandidates::new(machines)),
        "what" => argument.add(ArgValueCandidates::new(questions)),
        "named" => argument.add(ArgValueCandidates::new(queries)),
        _ => argument,
    }
}

fn machines() -> Vec<CompletionCandidate> {
    ask(async |client| {
        let answer = client.machines().list_machines(ListMachinesRequest {}).await?.into_inner();
        Ok(answer.machines.into_iter().map(|machine| CompletionCandidate::new(machine.name)).collect())
    })
}

fn questions() -> Vec<CompletionCandidate> {
    ask(async |client| {
        let answer = client.checkpoints().list_questions(ListQuestionsRequest {}).await?.into_inner();
        Ok(answer.questions.into_iter().map(|question| candidate(question.name, question.doc)).collect())
    })
}

fn queries() -> Vec<CompletionCandidate> {
    ask(async |client| {
        let answer = client.queries().list_queries(ListQueriesRequest {}).await?.into_inner();
        Ok(answer.queries.into_iter().map(|query| candidate(query.name, query.question)).collect())
    })
}

fn faults() -> Vec<CompletionCandidate> {
    ask(async |client| {
        let answer = client.faults().list_faults(ListFaultsRequest {}).await?.into_inner();
        Ok(answer.faults.into_iter().map(|fault| candidate(fault.name, fault.doc)).collect())
    })
}

fn candidate(value: String, help: String) -> CompletionCandidate {
    CompletionCandidate::new(value).help(Some(help.into()))
}

/// Asks the daemon of the store, or reads the store. A failure gives no candidates: there is no place for a message.
fn ask(
    question: impl AsyncFnOnce(Client) -> Result<Vec<CompletionCandidate>, CliError>,
) -> Vec<CompletionCandidate> {
    let Ok(runtime) = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()
    else {
        return Vec::new();
    };
    let answer = runtime.block_on(async {
        let store = store().map_or_else(place::default_store, Ok)?;
        tokio::time::timeout(WAIT, async { question(client::reader(&store).await?).await })
            .await
            .map_err(|_| CliError::failed("no answer in time"))?
    });
    runtime.shutdown_background();
    answer.unwrap_or_default()
}

/// The store that the line being completed names, or the environment.
fn store() -> Option<PathBuf> {
    store_of(std::env::args_os()).or_else(|| std::env::var_os("RETROVISOR_STORE").map(PathBuf::from))
}

fn store_of(words: impl IntoIterator<Item = OsString>) -> Option<PathBuf> {
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        if word == "--store" {
            return words.next().map(PathBuf::from);
        }
        if let Some(store) = word.to_str().and_then(|word| word.strip_prefix("--store=")) {
            return Some(PathBuf::from(store));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_store_is_the_one_of_the_line() {
        let store = |words: &[&str]| store_of(words.iter().map(OsString::from));
        assert_eq!(store(&["retrovisor", "show", "--store", "/a", "web"]), Some(PathBuf::from("/a")));
        assert_eq!(store(&["retrovisor", "--store=/b", "show"]), Some(PathBuf::from("/b")));
        assert_eq!(store(&["retrovisor", "show", "--store"]), None);
    }
}
