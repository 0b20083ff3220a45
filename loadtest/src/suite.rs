//! Scenarios in a TOML file. A key is a flag without its dashes, so a file knows what the command
//! line knows, with the same defaults and the same errors:
//!
//! ```toml
//! url = "ws://127.0.0.1:8080"      # for all
//!
//! [[scenario]]
//! kind = "echo"
//! connections = 200
//! in-flight = 16
//! max-p99 = "5ms"
//! ```

use std::path::{Path, PathBuf};

use clap::{Args, Parser};
use toml::{Table, Value};

use crate::cli::{self, Failure, Output, Single};
use crate::report::model::Report;

/// The arguments of `loadtest run`.
#[derive(Debug, Args)]
pub(crate) struct Run {
    /// A TOML file with [[scenario]] tables: kind is one of the commands, the other keys are its flags
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The server, whatever the file says
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// Its process, whatever the file says
    #[arg(long, value_name = "PID")]
    server_pid: Option<u32>,
    #[command(flatten)]
    output: Output,
}

/// A scenario of a file, as on the command line.
#[derive(Debug, Parser)]
#[command(name = "scenario", no_binary_name = true)]
struct InFile {
    #[command(subcommand)]
    single: Single,
}

/// Runs all scenarios of a file, one after the other.
pub(crate) fn run(run: &Run) -> Result<(), Failure> {
    let mut more = Table::new();
    if let Some(url) = &run.url {
        more.insert("url".to_owned(), Value::String(url.clone()));
    }
    if let Some(pid) = run.server_pid {
        more.insert("server-pid".to_owned(), Value::Integer(pid.into()));
    }
    // All are read before the first begins: a mistake in the last one shows at once.
    let mut scenarios = Vec::new();
    for words in scenarios_of(&run.file, "scenario", &more, &[])? {
        let parsed = InFile::try_parse_from(&words);
        let InFile { single } = parsed.map_err(|error| wrong(&run.file, &words, &error))?;
        if single.output().json.is_some() || single.output().html.is_some() {
            let file = run.file.display();
            let text = format!("{file}: json and html are flags of the command, for all scenarios");
            return Err(Failure::Usage(text));
        }
        scenarios.push(single);
    }
    let (mut reports, mut failure): (Vec<Report>, Option<Failure>) = (Vec::new(), None);
    for scenario in &scenarios {
        match scenario.run() {
            Ok(report) => reports.push(report),
            Err(error) => {
                failure = Some(error);
                break;
            }
        }
    }
    // What is done is told, whatever came of the rest.
    run.output.write(&reports, &[])?;
    failure.map_or_else(|| cli::all_met(&reports), Err)
}

/// What is wrong with a scenario, and with which.
pub(crate) fn wrong(file: &Path, words: &[String], error: &clap::Error) -> Failure {
    Failure::Usage(format!("{}: in \"{}\": {error}", file.display(), words.join(" ")))
}

/// The tables called `table` of a file, each as the words of a command line. Keys outside of them
/// belong to all, and `more` goes over both. The flags called `first` come before the kind.
pub(crate) fn scenarios_of(
    file: &Path,
    table: &str,
    more: &Table,
    first: &[&str],
) -> Result<Vec<Vec<String>>, Failure> {
    let usage = |text: String| Failure::Usage(format!("{}: {text}", file.display()));
    let text = std::fs::read_to_string(file).map_err(|error| usage(error.to_string()))?;
    let mut shared: Table =
        text.parse().map_err(|error: toml::de::Error| usage(error.to_string()))?;
    let Some(Value::Array(scenarios)) = shared.remove(table) else {
        return Err(usage(format!("there is no [[{table}]]")));
    };
    let scenarios = scenarios.into_iter().map(|scenario| {
        let Value::Table(own) = scenario else {
            return Err(usage(format!("{table} is not a table")));
        };
        let mut all = shared.clone();
        all.extend(own);
        all.extend(more.clone());
        words(all, first).map_err(usage)
    });
    scenarios.collect()
}

/// A table as the words of a command line.
fn words(mut table: Table, first: &[&str]) -> Result<Vec<String>, String> {
    let Some(Value::String(kind)) = table.remove("kind") else {
        return Err(
            "a scenario has no kind: echo, fanout, idle, storm, slow, churn or soak".to_owned()
        );
    };
    let (mut before, mut behind) = (Vec::new(), Vec::new());
    for (key, value) in table {
        let words = if first.contains(&key.as_str()) { &mut before } else { &mut behind };
        let values = match value {
            Value::Array(values) => values,
            value => vec![value],
        };
        for value in values {
            match value {
                Value::Boolean(false) => {}
                Value::Boolean(true) => words.push(format!("--{key}")),
                Value::String(text) => words.push(format!("--{key}={text}")),
                Value::Integer(number) => words.push(format!("--{key}={number}")),
                Value::Float(number) => words.push(format!("--{key}={number}")),
                Value::Datetime(_) | Value::Array(_) | Value::Table(_) => {
                    return Err(format!("{key} is neither a text nor a number"));
                }
            }
        }
    }
    before.push(kind);
    before.append(&mut behind);
    Ok(before)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(text: &str) -> Table {
        text.parse().unwrap()
    }

    #[test]
    fn table_becomes_the_words_of_a_command_line() {
        let text = r#"
            kind = "echo"
            connections = 5
            rate = 2.5
            quiet = true
            size = "1KiB"
            header = ["A: b", "C: d"]
        "#;
        let mut words = words(table(text), &["quiet"]).unwrap();
        assert_eq!(words.drain(..2).collect::<Vec<_>>(), ["--quiet", "echo"]);
        words.sort();
        let expected =
            ["--connections=5", "--header=A: b", "--header=C: d", "--rate=2.5", "--size=1KiB"];
        assert_eq!(words, expected);
        assert!(InFile::try_parse_from(["echo", "--connections=5", "--size=1KiB"]).is_ok());
    }

    #[test]
    fn what_is_no_scenario_is_told() {
        assert!(words(table("connections = 1"), &[]).unwrap_err().contains("no kind"));
        assert!(words(table("kind = \"echo\"\nsize = {}"), &[]).unwrap_err().contains("size"));
        assert!(InFile::try_parse_from(["echo", "--conections=5"]).is_err());
    }
}
