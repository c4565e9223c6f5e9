//! Why a request to the hub failed, and what the user can do.

use std::io;

use hf_hub::api::sync::ApiError;

use super::{Holds, Reference, Settings};
use crate::error::{Error, Kind};

pub enum Failure {
    Request(ureq::Error),
    /// The connection broke while a body came in, or the disk refused it.
    Io(io::Error),
    Malformed(String),
}

impl From<ureq::Error> for Failure {
    fn from(e: ureq::Error) -> Self {
        Failure::Request(e)
    }
}

impl From<ApiError> for Failure {
    fn from(e: ApiError) -> Self {
        match e {
            ApiError::RequestError(e) => Failure::Request(*e),
            ApiError::IoError(e) => Failure::Io(e),
            e => Failure::Malformed(e.to_string()),
        }
    }
}

const AGAIN: &str = "run the same command again later: the download goes on where it stopped";

impl Failure {
    /// There was no answer at all.
    pub fn is_unreachable(&self) -> bool {
        use ureq::Error::{ConnectionFailed, HostNotFound, Io, Timeout};
        matches!(self, Failure::Request(Io(_) | HostNotFound | ConnectionFailed | Timeout(_)))
    }

    /// Worth another try: the connection broke, or the server is overloaded.
    pub fn is_transient(&self) -> bool {
        use io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem, StorageFull};
        match self {
            Failure::Request(ureq::Error::StatusCode(code)) => *code >= 500 || *code == 408,
            Failure::Request(ureq::Error::Protocol(_)) => true,
            Failure::Io(e) => !matches!(e.kind(), StorageFull | PermissionDenied | ReadOnlyFilesystem),
            _ => self.is_unreachable(),
        }
    }

    pub fn explain(self, model: &Reference, settings: &Settings) -> Error {
        let page = model.page(&settings.endpoint);
        match self {
            Failure::Request(ureq::Error::StatusCode(code)) => status(code, model, settings, &page),
            Failure::Request(e) => Error::new(Kind::Io, format!("the hub cannot be reached: {e}")).help(format!(
                "check the network and HF_ENDPOINT ({}), or pass a local {}",
                settings.endpoint,
                local(model)
            )),
            Failure::Io(e) => match Error::from(e) {
                e if self_explaining(&e) => e,
                e => e.help(AGAIN),
            },
            Failure::Malformed(what) => Error::input(format!("the hub's answer is malformed: {what}"))
                .at(settings.endpoint.clone())
                .help("try again, or another HF_ENDPOINT"),
        }
    }
}

/// Errors that bring their own help keep it.
fn self_explaining(e: &Error) -> bool {
    e.to_string().contains("help: ")
}

/// What serves in its place.
fn local(model: &Reference) -> &'static str {
    if model.holds == Holds::Data { "file" } else { "folder" }
}

fn status(code: u16, model: &Reference, settings: &Settings, page: &str) -> Error {
    let what = model.holds.name();
    match (code, &settings.token) {
        (401, None) => Error::request(format!("the hub does not show this {what} without a token"))
            .help(format!("check the name; if it is private or gated, ask for access at {page} and set HF_TOKEN")),
        (401, Some(_)) => Error::request(format!("the hub refuses the token, or there is no such {what}"))
            .help("check the name and HF_TOKEN (huggingface.co/settings/tokens)"),
        (403, _) => Error::request(format!("the token gives no access to this {what}"))
            .help(format!("accept its conditions at {page}, and use a token that may read gated repositories")),
        (404, _) => Error::request(format!("the hub has no {what} {} with revision {}", model.repo, model.revision))
            .help(format!("check the name at {page}")),
        (429, _) => Error::new(Kind::Io, "the hub limits our requests").help("wait some minutes, or set HF_TOKEN"),
        _ => Error::new(Kind::Io, format!("the hub answers with status {code}")).help(AGAIN),
    }
}
