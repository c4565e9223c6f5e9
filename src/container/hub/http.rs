//! Contents of files over HTTP: what the hub says about a file, and its bytes from any place on.
//!
//! `hf-hub` 0.5 asks for a compressed byte range to learn a file's size, which the hub answers without one (its issue 141),
//! and sends the token to the host that the hub redirects to. Both matter here, so contents take this way.

use std::io::{self, Read};
use std::time::Duration;

use ureq::config::RedirectAuthHeaders;
use ureq::http::{HeaderMap, Response, Uri};
use ureq::{Agent, Body};

use super::failure::Failure;
use super::plain;

/// One agent that follows redirects, one that does not: the hub describes a file in the answer that redirects.
pub struct Http {
    agent: Agent,
    direct: Agent,
    authorization: Option<String>,
}

/// What the hub says about a file.
#[derive(Debug, PartialEq, Eq)]
pub struct About {
    /// Names the contents; safe as a file name.
    pub etag: String,
    pub size: u64,
}

/// Redirects within the hub, as of renamed repositories.
const REDIRECTS: usize = 10;

impl Http {
    pub fn new(token: Option<&str>) -> Http {
        let agent = |redirects| -> Agent {
            Agent::config_builder()
                .max_redirects(redirects)
                .redirect_auth_headers(RedirectAuthHeaders::SameHost)
                .accept_encoding("identity")
                .user_agent(concat!("quant/", env!("CARGO_PKG_VERSION")))
                .timeout_connect(Some(Duration::from_secs(30)))
                .timeout_recv_response(Some(Duration::from_secs(60)))
                .timeout_per_read(Some(Duration::from_secs(60)))
                .build()
                .into()
        };
        let authorization = token.map(|t| format!("Bearer {t}"));
        Http { agent: agent(REDIRECTS as u32), direct: agent(0), authorization }
    }

    /// Asks the hub itself, following redirects to other paths but not to other hosts.
    pub fn about(&self, url: &str) -> Result<About, Failure> {
        let mut url = url.to_owned();
        for _ in 0..=REDIRECTS {
            let mut request = self.direct.head(&url);
            if let Some(value) = &self.authorization {
                request = request.header("Authorization", value);
            }
            let answer = request.call()?;
            match elsewhere(answer.headers(), &url).filter(|_| answer.status().is_redirection()) {
                Some(next) => url = next,
                None => return about(answer.headers()),
            }
        }
        Err(Failure::Malformed("it redirects in circles".into()))
    }

    /// The bytes of a file from `from` on, or all of them if the server does not do ranges; which it was comes first.
    pub fn bytes(&self, url: &str, from: u64) -> Result<(u64, impl Read + use<>), Failure> {
        let mut request = self.agent.get(url);
        if let Some(value) = &self.authorization {
            request = request.header("Authorization", value);
        }
        if from > 0 {
            request = request.header("Range", format!("bytes={from}-"));
        }
        let answer: Response<Body> = request.call()?;
        let start = match answer.status().as_u16() {
            206 => start_of_range(answer.headers()).filter(|start| *start == from),
            _ => Some(0),
        };
        let start = start.ok_or_else(|| Failure::Malformed("it sends other bytes than those asked for".into()))?;
        Ok((start, answer.into_body().into_reader()))
    }
}

/// The target of a redirect within the same host.
fn elsewhere(headers: &HeaderMap, url: &str) -> Option<String> {
    let target: Uri = headers.get("location")?.to_str().ok()?.parse().ok()?;
    let base: Uri = url.parse().ok()?;
    match (target.host(), target.path_and_query()) {
        // `//host/path` names another host.
        (None, Some(path)) if !path.as_str().starts_with("//") => {
            Some(format!("{}://{}{path}", base.scheme_str()?, base.authority()?))
        }
        _ => None,
    }
}

fn about(headers: &HeaderMap) -> Result<About, Failure> {
    // Of a large file, the plain headers describe the redirect.
    let header = |linked, plain| headers.get(linked).or_else(|| headers.get(plain))?.to_str().ok();
    let etag = header("x-linked-etag", "etag").unwrap_or_default();
    let etag = etag.strip_prefix("W/").unwrap_or(etag).trim_matches('"');
    if etag.is_empty() || etag.starts_with('.') || !etag.chars().all(plain) {
        return Err(Failure::Malformed(format!("etag {etag:?}")));
    }
    let size = header("x-linked-size", "content-length").and_then(|s| s.parse().ok());
    let size = size.ok_or_else(|| Failure::Malformed("no size".into()))?;
    Ok(About { etag: etag.to_owned(), size })
}

/// `bytes 70000-199999/200000` -> 70000
fn start_of_range(headers: &HeaderMap) -> Option<u64> {
    let range = headers.get("content-range")?.to_str().ok()?.strip_prefix("bytes ")?;
    range.split_once('-')?.0.parse().ok()
}

/// Copies all of `from`, telling how much so far; stops behind `limit` bytes, which is too much.
pub fn copy(mut from: impl Read, mut to: impl io::Write, limit: u64, mut so_far: impl FnMut(u64)) -> io::Result<u64> {
    let (mut buffer, mut done) = (vec![0; 1 << 16], 0);
    while done <= limit {
        let n = from.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        to.write_all(&buffer[..n])?;
        done += n as u64;
        so_far(done);
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(k, v)| (k.parse().unwrap(), v.parse().unwrap())).collect()
    }

    #[test]
    fn large_files_are_described_by_the_linked_headers() {
        let of = |pairs| about(&headers(pairs)).ok().map(|a| (a.etag, a.size));
        let small = &[("etag", "W/\"abc\""), ("content-length", "12")];
        assert_eq!(of(small), Some(("abc".into(), 12)));
        let large =
            &[("etag", "\"x\""), ("x-linked-etag", "\"sha\""), ("content-length", "0"), ("x-linked-size", "99")];
        assert_eq!(of(large), Some(("sha".into(), 99)));
        for bad in [&[("etag", "../x"), ("content-length", "1")][..], &[("etag", "x")], &[("content-length", "1")]] {
            assert_eq!(of(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn redirects_stay_on_the_host() {
        let to = |location| elsewhere(&headers(&[("location", location)]), "http://hub:8/a/b?c");
        assert_eq!(to("/d/e?f").as_deref(), Some("http://hub:8/d/e?f"));
        assert_eq!(to("https://cdn/d"), None);
        assert_eq!(to("//cdn/d"), None);
    }
}
