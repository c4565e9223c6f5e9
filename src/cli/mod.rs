//! The command line: one file a command. `report` is the only module that prints.

mod allocate;
mod blame;
mod calibrate;
mod convert;
mod device;
mod devices;
mod eval;
mod gate;
mod generate;
mod html;
mod inputs;
mod inspect;
mod kernels;
mod kv;
mod list;
mod model;
mod outputs;
mod probe;
mod quality;
mod quickstart;
mod reference;
mod repair;
mod report;
mod selftest;
mod shell;
mod size;
mod statistics_report;
mod stress;
mod tasks;
mod text;
mod verify;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::error::{Error, Kind, Result};
use report::Reporter;

#[derive(Parser)]
#[command(name = "quant", version, about, max_term_width = 110, propagate_version = true)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

/// Flags of every command.
#[derive(Args, Clone)]
struct Common {
    /// Print one JSON object to stdout instead of tables
    #[arg(long, global = true)]
    json: bool,
    /// No progress on stderr
    #[arg(long, short, global = true)]
    quiet: bool,
    /// Worker threads [default: all cores]
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=4096))]
    threads: Option<u16>,
}

impl Common {
    fn threads(&self) -> usize {
        let all = || std::thread::available_parallelism().map_or(1, usize::from);
        self.threads.map_or_else(all, usize::from)
    }
}

#[derive(Subcommand)]
enum Command {
    /// Try everything once, offline, in a minute: quantize a small model that comes with the program and see what is lost
    Quickstart(quickstart::Quickstart),
    /// Turn a model into one or several quantized files
    Convert(convert::Convert),
    /// Show what convert would write: codecs, fallbacks, sizes, memory, disk
    Plan(convert::Convert),
    /// Collect statistics of a model's activations on text, which methods and importance matrices are made of
    Calibrate(Box<calibrate::Calibrate>),
    /// Measure perplexity, and what was lost against a reference: KL divergence, top-1 agreement
    Eval(eval::Eval),
    /// Judge a report of eval by budgets and by an earlier report: PASS, REGRESSION, INCONCLUSIVE or INVALID
    Gate(gate::Gate),
    /// Make a page of results: tables, plots, changed answers, how to read each number
    Report(html::Report),
    /// Rank an artifact's weights by what each costs in divergence from the model
    Blame(blame::Blame),
    /// Give an artifact's weights more bits where that buys most, until its divergence is low enough
    Repair(repair::Repair),
    /// Keep a reference's hidden states in a file, to evaluate artifacts without the model
    Reference(reference::Reference),
    /// Show what a model or artifact holds
    Inspect(inspect::Inspect),
    /// Check a file, and against its source: structure, values, completeness, tokenizer, chat template
    Verify(verify::Verify),
    /// Let a model or artifact continue a text or answer a question
    Generate(generate::Generate),
    /// Print questions with known answers and texts of known entropy, made from a seed, as JSON lines
    Probe(probe::Probe),
    /// List presets, methods, formats, architectures and containers
    List(list::List),
    /// List where arithmetic can run: the CPU, and NVIDIA cards, or why there are none
    Devices(devices::Devices),
    /// Hold a device's operations to the CPU's, one by one
    Selftest(selftest::Selftest),
    /// Print the sources of the kernels
    #[command(hide = true)]
    Kernels(kernels::Kernels),
    /// Print a completion script or the manual page
    #[command(hide = true)]
    Shell(shell::Shell),
}

/// The program's exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Exit(u8);

impl Exit {
    const DONE: Exit = Exit(0);
    const FAILED: Exit = Exit(1);
    const USAGE: Exit = Exit(2);
    const GATE_MISSED: Exit = Exit(3);
    const INCONCLUSIVE: Exit = Exit(4);
}

impl From<bool> for Exit {
    fn from(good: bool) -> Exit {
        if good { Exit::DONE } else { Exit::FAILED }
    }
}

/// Runs the program; returns the exit code: 0 done, 1 failed, 2 wrong usage (of flags, or in a recipe,
/// mix, task or gate file), 3 a gate was missed, 4 not enough evidence.
pub fn main() -> u8 {
    refuse_large_files_by_error();
    let parsed = command().try_get_matches().and_then(|found| <Cli as FromArgMatches>::from_arg_matches(&found));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(e) => return usage(&e),
    };
    let reporter = Reporter::new(cli.common.json, cli.common.quiet);
    let (common, reporter) = (&cli.common, &reporter);
    let outcome: Result<Exit> = match &cli.command {
        Command::Quickstart(c) => c.run(common, reporter).map(Exit::from),
        Command::Convert(c) => c.run(common, reporter, false).map(Exit::from),
        Command::Plan(c) => c.run(common, reporter, true).map(Exit::from),
        Command::Calibrate(c) => c.run(common, reporter).map(Exit::from),
        Command::Eval(c) => c.run(common, reporter),
        Command::Gate(c) => c.run(reporter),
        Command::Report(c) => c.run(reporter).map(Exit::from),
        Command::Blame(c) => c.run(common, reporter).map(Exit::from),
        Command::Repair(c) => c.run(common, reporter).map(Exit::from),
        Command::Reference(c) => c.run(common, reporter).map(Exit::from),
        Command::Inspect(c) => c.run(common, reporter).map(Exit::from),
        Command::Verify(c) => c.run(common, reporter).map(Exit::from),
        Command::Generate(c) => c.run(common, reporter).map(Exit::from),
        Command::Probe(c) => c.run(reporter).map(Exit::from),
        Command::List(c) => c.run(reporter).map(Exit::from),
        Command::Devices(c) => c.run(reporter).map(Exit::from),
        Command::Selftest(c) => c.run(reporter).map(Exit::from),
        Command::Kernels(c) => c.run(reporter).map(Exit::from),
        Command::Shell(c) => c.run().map(Exit::from),
    };
    let exit = outcome.unwrap_or_else(|e| {
        reporter.error(&e);
        if e.kind == Kind::Request { Exit::USAGE } else { Exit::FAILED }
    });
    exit.0
}

/// Help, or what is wrong with the arguments: as clap says it, and for programs also as every other error.
fn usage(said: &clap::Error) -> u8 {
    let json = std::env::args_os().take_while(|a| a != "--").any(|a| a == "--json");
    let reporter = Reporter::new(json, true);
    let other = std::env::args_os().find(|a| a.to_str().is_none());
    if let Some(other) = other.filter(|_| said.kind() == ErrorKind::InvalidUtf8) {
        let error = Error::request(format!("the argument {other:?} is not UTF-8"));
        reporter.error(&error.help("rename the file, or reach it by a link whose name is"));
        return Exit::USAGE.0;
    }
    if json && said.use_stderr() {
        let text = said.to_string();
        let text = text.strip_prefix("error: ").unwrap_or(&text);
        let (message, help) = text.split_once("\n\n").unwrap_or((text, ""));
        reporter.error_object(&Error::request(message.trim()).help(help.trim()));
    }
    let _ = said.print();
    said.exit_code().try_into().unwrap_or(Exit::USAGE.0)
}

fn command() -> clap::Command {
    with_negative_numbers(<Cli as CommandFactory>::command())
}

/// `--temperature -1` reaches what says why that is wrong, instead of being taken for a flag.
fn with_negative_numbers(command: clap::Command) -> clap::Command {
    let takes = |arg: &clap::Arg| arg.get_action().takes_values() && !arg.is_positional();
    command
        .mut_args(|arg| {
            let takes = takes(&arg);
            arg.allow_negative_numbers(takes)
        })
        .mut_subcommands(with_negative_numbers)
}

/// A file beyond `ulimit -f` is an error of the write, which cleans up and says so, not the end of the process.
fn refuse_large_files_by_error() {
    #[cfg(unix)]
    // SAFETY: ignoring a signal installs no handler and touches no memory.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
}
