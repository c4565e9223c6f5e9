//! A conversation as the tokens that a model expects. Sources: llama.cpp `common/chat.cpp`, transformers `apply_chat_template`.

use serde_json::{Value as Json, json};

use crate::container::tokenizer::{self, Tokenizer, render_template, templates};
use crate::error::{At, Error, Result};
use crate::metadata::Metadata;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// `system`, `user` or `assistant`
    pub role: &'a str,
    pub content: &'a str,
}

/// The text of a conversation by the model's own template, up to where its answer begins.
///
/// Errors: no template; one that fails or refuses these messages.
pub fn prompt(metadata: &Metadata, tokenizer: &Tokenizer, messages: &[Message<'_>]) -> Result<String> {
    let messages: Vec<Json> = messages.iter().map(|m| json!({"role": m.role, "content": m.content})).collect();
    render(metadata, tokenizer, &json!({"messages": messages, "add_generation_prompt": true}))
}

/// The text of a conversation as a JSON object, `messages` and what else its template may ask for (`tools`).
///
/// Errors: as [`prompt`].
pub fn render(metadata: &Metadata, tokenizer: &Tokenizer, conversation: &Json) -> Result<String> {
    let all = templates(metadata);
    let Some((_, source)) = all.iter().find(|(name, _)| *name == "default") else {
        let others: Vec<_> = all.iter().map(|(name, _)| *name).collect();
        let others = if others.is_empty() { String::new() } else { format!(", only {}", others.join(", ")) };
        return Err(Error::request(format!("the model has no default chat template{others}"))
            .help("use --prompt without --chat, and write the text as the model expects it"));
    };
    let text = |role| tokenizer::special_id(metadata, role).and_then(|id| tokenizer.token(id)).unwrap_or_default();
    // As transformers: what was not given is there and none.
    let mut context = json!({"add_generation_prompt": false, "tools": null, "documents": null,
        "bos_token": text("bos"), "eos_token": text("eos")});
    if let (Json::Object(context), Json::Object(given)) = (&mut context, conversation) {
        context.extend(given.clone());
    }
    render_template(source, &context).at(|| "tokenizer.chat_template")
}

/// Tokens of a prompt: special tokens are found in the text, and BOS is put in front where the model wants it and the text,
/// as that of many templates, does not begin with it. Never an EOS at the end, which would end what is to go on.
///
/// Errors: no tokens at all.
pub fn tokens(metadata: &Metadata, tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    let mut ids = tokenizer.encode(text, false, true)?;
    if let Some(bos) = tokenizer::leading_bos(metadata, tokenizer)?
        && ids.first() != Some(&bos)
    {
        ids.insert(0, bos);
    }
    if ids.is_empty() {
        return Err(Error::request("the prompt has no tokens"));
    }
    Ok(ids)
}
