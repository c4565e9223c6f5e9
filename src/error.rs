//! One error type. It says what is wrong, where (innermost place first) and what to do.

use std::cell::Cell;
use std::fmt;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

use crate::nearest::did_you_mean;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Whose move it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A file lies or is damaged.
    Input,
    /// The input is fine, `quant` cannot do this with it.
    Unsupported,
    /// Flags, a recipe, a task or budgets cannot be read, or ask for something impossible.
    Request,
    /// Memory, disk or another promised bound would be exceeded.
    Limits,
    /// A GPU, its driver or its libraries.
    Device,
    /// The operating system refused.
    Io,
}

#[derive(Debug, thiserror::Error)]
pub struct Error {
    pub kind: Kind,
    message: String,
    at: Vec<String>,
    help: Option<String>,
}

impl Error {
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Error { kind, message: message.into(), at: Vec::new(), help: None }
    }
    pub fn input(message: impl Into<String>) -> Self {
        Self::new(Kind::Input, message)
    }
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new(Kind::Unsupported, message)
    }
    pub fn request(message: impl Into<String>) -> Self {
        Self::new(Kind::Request, message)
    }
    pub fn limits(message: impl Into<String>) -> Self {
        Self::new(Kind::Limits, message)
    }
    /// A name that is not known. Help are those that it may have been meant to be, then `all`: where all are told.
    pub fn unknown<'a>(what: &str, name: &str, known: impl Iterator<Item = &'a str>, all: &str) -> Self {
        let help = did_you_mean(name, known).map_or_else(|| all.to_owned(), |near| format!("{near} {all}"));
        Self::request(format!("unknown {what} {name:?}")).help(help)
    }
    /// Adds the next larger place: first the weight, then the file.
    pub fn at(mut self, place: impl Into<String>) -> Self {
        self.at.push(place.into());
        self
    }
    /// What the user can do. The innermost help wins.
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help.get_or_insert_with(|| help.into());
        self
    }
    /// It lies in what the user wrote: flags, a recipe, a task, budgets.
    pub fn in_request(self) -> Self {
        Error { kind: Kind::Request, ..self }
    }
    pub fn message(&self) -> &str {
        &self.message
    }
    pub fn advice(&self) -> Option<&str> {
        self.help.as_deref()
    }
    pub fn places(&self) -> &[String] {
        &self.at
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        for place in &self.at {
            write!(f, "\n  in {place}")?;
        }
        if let Some(help) = &self.help {
            write!(f, "\nhelp: {help}")?;
        }
        Ok(())
    }
}

impl From<std::io::Error> for Error {
    fn from(e: std::io::Error) -> Self {
        let error = Error::new(Kind::Io, e.to_string());
        match e.kind() {
            std::io::ErrorKind::StorageFull => error.help("free disk space or write elsewhere with -o"),
            std::io::ErrorKind::FileTooLarge => {
                error.help("raise the limit (`ulimit -f`), or split the output with --split-max-size")
            }
            _ => error,
        }
    }
}

/// Runs a library on what nobody vouches for. It should not panic; if it does, that is `None`, and nothing is printed.
pub fn caught<T>(run: impl FnOnce() -> T) -> Option<T> {
    thread_local!(static HIDDEN: Cell<bool> = const { Cell::new(false) });
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !HIDDEN.get() {
                before(info);
            }
        }));
    });
    let hidden = HIDDEN.replace(true);
    let done = panic::catch_unwind(AssertUnwindSafe(run));
    HIDDEN.set(hidden);
    done.ok()
}

/// Adds places to any result whose error is, or becomes, an [`Error`].
pub trait At<T> {
    fn at<S: Into<String>>(self, place: impl FnOnce() -> S) -> Result<T>;
}

impl<T, E: Into<Error>> At<T> for Result<T, E> {
    fn at<S: Into<String>>(self, place: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|e| e.into().at(place()))
    }
}
