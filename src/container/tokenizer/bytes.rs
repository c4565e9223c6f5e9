//! The byte-level alphabet: one printable character for each byte value. Source: GPT-2's `bytes_to_unicode`.

use std::sync::LazyLock;

/// Bytes that stand for themselves; the others are numbered from U+0100 in byte order.
const fn printable(byte: u8) -> bool {
    matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff)
}

pub static TO_CHAR: LazyLock<[char; 256]> = LazyLock::new(|| {
    let mut next = 0x100u32;
    std::array::from_fn(|byte| {
        if printable(byte as u8) {
            return byte as u8 as char;
        }
        next += 1;
        char::from_u32(next - 1).unwrap_or(char::REPLACEMENT_CHARACTER)
    })
});

/// The inverse, indexed by character: the alphabet ends below U+0144.
static TO_BYTE: LazyLock<[Option<u8>; 0x144]> = LazyLock::new(|| {
    let mut table = [None; 0x144];
    for (byte, &c) in TO_CHAR.iter().enumerate() {
        table[c as usize] = Some(byte as u8);
    }
    table
});

pub fn encode(text: &str) -> String {
    text.bytes().map(|b| TO_CHAR[b as usize]).collect()
}

/// `None` when a character is outside the alphabet.
pub fn decode(text: &str) -> Option<Vec<u8>> {
    text.chars().map(|c| TO_BYTE.get(c as usize).copied().flatten()).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_byte_has_its_own_character() {
        let all: Vec<u8> = (0..=255).collect();
        let text: String = all.iter().map(|&b| super::TO_CHAR[b as usize]).collect();
        assert_eq!(super::decode(&text), Some(all));
        assert_eq!(super::encode(" a\n"), "ĠaĊ");
        assert_eq!(super::decode("a b"), None);
    }
}
