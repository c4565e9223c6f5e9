//! Text out of bytes that arrive in pieces: a character may be spread over several tokens.

/// Holds the bytes of a character until it is whole.
#[derive(Debug, Default)]
pub struct Utf8 {
    held: Vec<u8>,
}

impl Utf8 {
    /// The text that is certain by now; what can be no character is U+FFFD, as in [`String::from_utf8_lossy`].
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.held.extend_from_slice(bytes);
        let mut out = String::new();
        loop {
            let (valid, invalid) = match std::str::from_utf8(&self.held) {
                Ok(text) => (text.len(), None),
                Err(e) => (e.valid_up_to(), e.error_len()),
            };
            out += &String::from_utf8_lossy(&self.held[..valid]);
            self.held.drain(..valid + invalid.unwrap_or(0));
            match invalid {
                Some(_) => out.push(char::REPLACEMENT_CHARACTER),
                None => return out,
            }
        }
    }

    /// What stands for a character that never became whole.
    pub fn finish(self) -> &'static str {
        if self.held.is_empty() { "" } else { "\u{FFFD}" }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Utf8;

    #[test]
    fn characters_come_whole() {
        let mut text = Utf8::default();
        let parts: Vec<String> = "aé€😀".bytes().map(|b| text.push(&[b])).collect();
        assert_eq!(parts, ["a", "", "é", "", "", "€", "", "", "", "😀"]);
        assert_eq!(text.push(b"\xf0\x9f"), "");
        assert_eq!(text.push(b"x"), "\u{FFFD}x");
        assert_eq!(text.push(b"\xe2\x82"), "");
        assert_eq!(text.finish(), "\u{FFFD}");
    }

    proptest! {
        #[test]
        fn pieces_make_the_text_of_the_whole(
            parts in prop::collection::vec(
                prop_oneof![
                    prop::collection::vec(any::<u8>(), 0..4),
                    any::<char>().prop_map(|c| c.to_string().into_bytes()),
                    any::<char>().prop_map(|c| c.to_string().as_bytes()[..1].to_vec()),
                ],
                0..40,
            )
        ) {
            let mut text = Utf8::default();
            let mut out: String = parts.iter().map(|p| text.push(p)).collect();
            prop_assert!(text.held.len() < 4);
            out += text.finish();
            prop_assert_eq!(out, String::from_utf8_lossy(&parts.concat()).into_owned());
        }
    }
}
