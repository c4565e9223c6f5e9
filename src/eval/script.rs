//! Writing systems, as far as Unicode's blocks tell them apart.

/// (first, last, name); what is in none is `latin`.
static BLOCKS: &[(u32, u32, &str)] = &[
    (0x0370, 0x03ff, "greek"),
    (0x0400, 0x052f, "cyrillic"),
    (0x0590, 0x05ff, "hebrew"),
    (0x0600, 0x06ff, "arabic"),
    (0x0750, 0x077f, "arabic"),
    (0x0900, 0x097f, "devanagari"),
    (0x0980, 0x09ff, "bengali"),
    (0x0a00, 0x0a7f, "gurmukhi"),
    (0x0a80, 0x0aff, "gujarati"),
    (0x0b80, 0x0bff, "tamil"),
    (0x0c00, 0x0c7f, "telugu"),
    (0x0c80, 0x0cff, "kannada"),
    (0x0d00, 0x0d7f, "malayalam"),
    (0x0e00, 0x0e7f, "thai"),
    (0x3040, 0x30ff, "kana"),
    (0x4e00, 0x9fff, "han"),
    (0xac00, 0xd7af, "hangul"),
];

/// The writing system of a letter.
pub fn of(c: char) -> &'static str {
    let code = u32::from(c);
    BLOCKS.iter().find(|(first, last, _)| (*first..=*last).contains(&code)).map_or("latin", |(.., name)| name)
}

/// The one that most letters of a text are of; `None`: no letters.
pub fn main(text: &str) -> Option<&'static str> {
    let mut counts = std::collections::BTreeMap::<&str, usize>::new();
    text.chars().filter(|c| c.is_alphabetic()).for_each(|c| *counts.entry(of(c)).or_default() += 1);
    counts.into_iter().max_by_key(|(_, n)| *n).map(|(name, _)| name)
}

#[cfg(test)]
mod tests {
    #[test]
    fn letters_tell() {
        assert_eq!(super::main("3 caf\u{e9}s, \u{43d}"), Some("latin"));
        assert_eq!(super::main("\u{43d}\u{435}\u{442}, no"), Some("cyrillic"));
        assert_eq!(super::main("12."), None);
    }
}
