//! Where the hub is, who asks and where files go, from the variables of Python's `huggingface_hub`.

use std::path::PathBuf;

use crate::error::{Error, Result};

#[derive(Clone)]
pub struct Settings {
    /// `https://huggingface.co`
    pub endpoint: String,
    pub token: Option<String>,
    /// Holds `models--org--name/`.
    pub cache: PathBuf,
    /// Use the cache only.
    pub offline: bool,
    /// Pause before a broken download goes on; doubled each time.
    pub pause: std::time::Duration,
}

impl Settings {
    pub fn from_env() -> Result<Settings> {
        Self::from_vars(|name| std::env::var(name).ok())
    }

    /// `var` gives the value of an environment variable.
    pub fn from_vars(var: impl Fn(&str) -> Option<String>) -> Result<Settings> {
        let var = |name: &str| var(name).filter(|v| !v.is_empty());
        let is_set =
            |name: &str| var(name).is_some_and(|v| !matches!(v.as_str(), "0" | "false" | "FALSE" | "no" | "off"));
        let endpoint = var("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned());
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        if !endpoint.starts_with("https://") && !endpoint.starts_with("http://") {
            return Err(Error::request(format!("HF_ENDPOINT={endpoint} is not a URL"))
                .help("for example https://huggingface.co"));
        }
        let home = var("HF_HOME")
            .map(PathBuf::from)
            .or_else(|| var("XDG_CACHE_HOME").map(|d| PathBuf::from(d).join("huggingface")))
            .or_else(|| {
                var("HOME").or_else(|| var("USERPROFILE")).map(|d| PathBuf::from(d).join(".cache/huggingface"))
            });
        let cache = var("HF_HUB_CACHE").map(PathBuf::from).or_else(|| Some(home.as_ref()?.join("hub")));
        let cache =
            cache.ok_or_else(|| Error::request("no home directory to keep downloads in").help("set HF_HOME"))?;
        // Links in the cache are made relative, which needs absolute paths.
        let cache = std::path::absolute(cache)?;
        let file = var("HF_TOKEN_PATH").map(PathBuf::from).or_else(|| Some(home?.join("token")));
        let stored = || Some(std::fs::read_to_string(file?).ok()?.trim().to_owned()).filter(|t| !t.is_empty());
        let token = match is_set("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
            true => None,
            false => var("HF_TOKEN").or_else(stored),
        };
        let token = token.map(|t| t.trim().to_owned());
        if token.as_ref().is_some_and(|t| !t.bytes().all(|b| b.is_ascii_graphic())) {
            return Err(Error::request("the token (HF_TOKEN or the stored one) has characters that tokens never have"));
        }
        Ok(Settings {
            endpoint,
            token,
            cache,
            offline: is_set("HF_HUB_OFFLINE"),
            pause: std::time::Duration::from_millis(500),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(vars: &'static [(&str, &str)]) -> Result<Settings> {
        Settings::from_vars(|name| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| v.to_string()))
    }

    #[test]
    fn places_of_the_cache() {
        let cache = |vars| with(vars).unwrap().cache;
        assert_eq!(cache(&[("HOME", "/h")]), PathBuf::from("/h/.cache/huggingface/hub"));
        assert_eq!(cache(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]), PathBuf::from("/x/huggingface/hub"));
        assert_eq!(cache(&[("HOME", "/h"), ("HF_HOME", "/f")]), PathBuf::from("/f/hub"));
        assert_eq!(cache(&[("HF_HOME", "/f"), ("HF_HUB_CACHE", "/c")]), PathBuf::from("/c"));
        assert!(with(&[]).is_err());
    }

    #[test]
    fn endpoint_token_and_offline() {
        let s = with(&[
            ("HF_HOME", "/f"),
            ("HF_ENDPOINT", "http://127.0.0.1:8/"),
            ("HF_TOKEN", "hf_x\n"),
            ("HF_HUB_OFFLINE", "1"),
        ]);
        let s = s.unwrap();
        assert_eq!((s.endpoint.as_str(), s.token.as_deref(), s.offline), ("http://127.0.0.1:8", Some("hf_x"), true));
        let s = with(&[
            ("HF_HOME", "/f"),
            ("HF_TOKEN", "x"),
            ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1"),
            ("HF_HUB_OFFLINE", "0"),
        ])
        .unwrap();
        assert_eq!((s.endpoint.as_str(), s.token, s.offline), ("https://huggingface.co", None, false));
        assert!(with(&[("HF_HOME", "/f"), ("HF_ENDPOINT", "huggingface.co")]).is_err());
        assert!(with(&[("HF_HOME", "/f"), ("HF_TOKEN", "a b")]).is_err());
    }

    #[test]
    fn a_stored_token_is_found() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("token"), "hf_stored\n").unwrap();
        let home = dir.path().display().to_string();
        let s = Settings::from_vars(|n| (n == "HF_HOME").then(|| home.clone())).unwrap();
        assert_eq!(s.token.as_deref(), Some("hf_stored"));
    }
}
