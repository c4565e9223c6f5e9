//! Chat templates: which there are, and whether they can be read.


use super::keys;
use crate::error::{Error, Result};
use crate::metadata::Metadata;

/// (name, source), the default one as `default`.
pub fn templates(metadata: &Metadata) -> Vec<(&str, &str)> {
    let named = metadata.iter().filter_map(|(key, value)| {
        let name = key.strip_prefix(keys::CHAT_TEMPLATE)?;
        let name = if name.is_empty() { "default" } else { name.strip_prefix('.')? };
        Some((name, value.as_str()?))
    });
    named.collect()
}

pub fn check_template(_source: &str) -> Result<()> { Ok(()) }
