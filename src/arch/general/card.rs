//! The front matter of a model card: YAML as far as cards use it for plain facts. Nested maps are skipped.

/// A fact of the card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    Text(String),
    List(Vec<String>),
}

/// Top-level keys of the front matter of README.md, in order. Anything that is not understood is left out.
pub fn front_matter(readme: &str) -> Vec<(String, Fact)> {
    let mut lines = readme.lines();
    if lines.next() != Some("---") {
        return Vec::new();
    }
    let lines: Vec<_> = lines.take_while(|l| *l != "---").collect();
    let mut facts = Vec::new();
    let mut rest = &lines[..];
    while let [first, tail @ ..] = rest {
        // A key's lines go on until the next line that starts a key: not indented, no list item.
        let continues = |l: &&str| l.is_empty() || l.starts_with([' ', '\t', '#', '-']);
        let end = tail.iter().position(|l| !continues(l)).unwrap_or(tail.len());
        let (body, next) = tail.split_at(end);
        rest = next;
        if let Some((key, value)) = first.split_once(':')
            && let Some(fact) = fact(value, body)
        {
            facts.push((key.trim_matches(['"', '\'']).to_owned(), fact));
        }
    }
    facts
}

fn fact(value: &str, body: &[&str]) -> Option<Fact> {
    let value = uncommented(value).trim();
    let body = body.iter().map(|l| uncommented(l).trim()).filter(|l| !l.is_empty());
    if let Some(list) = value.strip_prefix('[') {
        let whole = std::iter::once(list).chain(body).collect::<Vec<_>>().join(" ");
        let inner = whole.trim_end().strip_suffix(']')?;
        return Some(Fact::List(inner.split(',').map(unquoted).filter(|v| !v.is_empty()).collect()));
    }
    match value.as_bytes() {
        // Folded and literal blocks hold prose, `{` a map, `&` and `*` references.
        [b'>' | b'|' | b'{' | b'&' | b'*', ..] => None,
        [] => list(body),
        _ => {
            let text = std::iter::once(value).chain(body).collect::<Vec<_>>().join(" ");
            (!is_null(&text)).then(|| Fact::Text(unquoted(&text)))
        }
    }
}

/// `- value` lines. A list of maps is no list of plain facts.
fn list<'a>(lines: impl Iterator<Item = &'a str>) -> Option<Fact> {
    let mut items = Vec::new();
    for line in lines {
        let item = line.strip_prefix('-')?.trim();
        let quoted = item.starts_with(['"', '\'']);
        if !quoted && (item.contains(": ") || item.ends_with(':')) {
            return None;
        }
        if !is_null(item) {
            items.push(unquoted(item));
        }
    }
    (!items.is_empty()).then_some(Fact::List(items))
}

fn is_null(text: &str) -> bool {
    matches!(text, "" | "~" | "null" | "Null" | "NULL")
}

/// Without ` # a comment`, unless within quotes.
fn uncommented(line: &str) -> &str {
    if line.trim_start().starts_with('#') {
        return "";
    }
    let quoted = line.trim_start().trim_start_matches("- ").starts_with(['"', '\'']);
    let comment = if quoted { None } else { line.find(" #") };
    comment.map_or(line, |at| &line[..at])
}

fn unquoted(text: &str) -> String {
    let text = text.trim();
    let within = |quote: char| text.strip_prefix(quote).and_then(|t| t.strip_suffix(quote));
    if let Some(inner) = within('"') {
        inner.replace("\\\"", "\"").replace("\\\\", "\\")
    } else if let Some(inner) = within('\'') {
        inner.replace("''", "'")
    } else {
        text.to_owned()
    }
}
