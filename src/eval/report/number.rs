//! Numbers as a publication prints them: a real minus, three significant digits, columns that align at the decimal point.

/// As wide as a digit, as wide as a point: what pads a column where tabular figures are on.
const FIGURE_SPACE: char = '\u{2007}';
const POINT_SPACE: char = '\u{2008}';
const SUPERSCRIPTS: [char; 10] = ['⁰', '¹', '²', '³', '⁴', '⁵', '⁶', '⁷', '⁸', '⁹'];

pub fn fixed(x: f64, places: usize) -> String {
    format!("{x:.places$}").replace('-', "\u{2212}")
}

/// With its sign, always.
pub fn signed(x: f64, places: usize) -> String {
    let text = format!("{x:+.places$}").replace('-', "\u{2212}");
    // What rounds to nothing has no sign.
    if text.contains(|c| ('1'..='9').contains(&c)) { text } else { text[text.find('0').unwrap_or(0)..].to_owned() }
}

/// Three significant digits; powers of ten below 0.0001.
pub fn significant(x: f64) -> String {
    let size = x.abs();
    if size == 0.0 {
        return "0".to_owned();
    }
    if !(1e-4..1e7).contains(&size) {
        let text = format!("{x:.1e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        return format!("{}×{}", digits.replace('-', "\u{2212}"), power(exponent.parse().unwrap_or(0)));
    }
    fixed(x, (2.0 - size.log10().floor()).clamp(0.0, 6.0) as usize)
}

/// 10⁻⁵
pub fn power(exponent: i32) -> String {
    let digits = exponent.unsigned_abs().to_string();
    let sign = if exponent < 0 { "⁻" } else { "" };
    let superscript = |c: char| c.to_digit(10).map_or(c, |d| SUPERSCRIPTS[d as usize]);
    format!("10{sign}{}", digits.chars().map(superscript).collect::<String>())
}

/// Enough digits to see a change of perplexity.
pub fn perplexity(x: f64) -> String {
    fixed(
        x,
        if x < 100.0 {
            4
        } else if x < 10_000.0 {
            2
        } else {
            0
        },
    )
}

/// Pads the numbers of a right-aligned column so that their points stand below each other.
pub fn align(column: &mut [String]) {
    let places =
        |text: &str| text.rsplit_once('.').map_or(0, |(_, end)| end.chars().take_while(char::is_ascii_digit).count());
    let plain = |text: &str| !text.is_empty() && !text.contains('×');
    let most = column.iter().filter(|t| plain(t)).map(|t| places(t)).max().unwrap_or(0);
    for text in column.iter_mut().filter(|t| plain(t)) {
        let missing = most - places(text);
        if missing > 0 && !text.contains('.') {
            text.push(POINT_SPACE);
        }
        text.extend(std::iter::repeat_n(FIGURE_SPACE, missing));
    }
}

pub fn percent(share: f64, places: usize) -> String {
    format!("{}\u{a0}%", fixed(share * 100.0, places))
}

/// 1 234 567, with narrow no-break spaces.
pub fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push('\u{202f}');
        }
        out.push(c);
    }
    out
}

/// Name and bytes of the unit in which a size is best read.
pub fn unit(bytes: u64) -> (&'static str, f64) {
    const UNITS: [(&str, f64); 5] = [
        ("TiB", (1u64 << 40) as f64),
        ("GiB", (1u64 << 30) as f64),
        ("MiB", (1u64 << 20) as f64),
        ("KiB", 1024.0),
        ("B", 1.0),
    ];
    *UNITS.iter().find(|(_, size)| bytes as f64 >= *size).unwrap_or(&UNITS[4])
}

pub fn bytes(n: u64) -> String {
    let (name, size) = unit(n);
    format!("{}\u{a0}{name}", fixed(n as f64 / size, if name == "B" { 0 } else { 2 }))
}

/// 0 to 1024 is 0–1k.
pub fn range(from: u64, to: u64) -> String {
    let short = |n: u64| if n > 0 && n.is_multiple_of(1024) { format!("{}k", n / 1024) } else { n.to_string() };
    format!("{}–{}", short(from), short(to))
}

pub fn interval(low: Option<f64>, high: Option<f64>, show: impl Fn(f64) -> String) -> String {
    match (low, high) {
        (Some(low), Some(high)) if low < 0.0 => format!("{} to {}", show(low), show(high)),
        (Some(low), Some(high)) => format!("{}–{}", show(low), show(high)),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_print() {
        for (x, text) in [
            (0.0, "0"),
            (0.123_45, "0.123"),
            (12.345, "12.3"),
            (1234.5, "1234"),
            (-0.5, "−0.500"),
            (0.000_123_4, "0.000123"),
            (3.04e-6, "3.0×10⁻⁶"),
            (-2.5e12, "−2.5×10¹²"),
        ] {
            assert_eq!(significant(x), text);
        }
        assert_eq!((signed(-0.04, 1), signed(0.4, 1), signed(-3.0, 1)), ("0.0".into(), "+0.4".into(), "−3.0".into()));
        let spans = [(Some(0.1), Some(0.2)), (Some(-0.1), Some(0.2)), (None, Some(0.1))];
        assert_eq!(spans.map(|s| interval(s.0, s.1, |x| fixed(x, 1))), ["0.1–0.2", "−0.1 to 0.2", ""]);
        assert_eq!(thousands(1_234_567), "1\u{202f}234\u{202f}567");
        assert_eq!(bytes(1536), "1.50\u{a0}KiB");
        assert_eq!(bytes(0), "0\u{a0}B");
        assert_eq!(range(1024, 4096), "1k–4k");
    }

    #[test]
    fn columns_end_at_the_same_place() {
        let mut column = ["12.3", "0.0123", "4", "1.0×10⁻⁵", ""].map(str::to_owned);
        align(&mut column);
        assert_eq!(
            column,
            ["12.3\u{2007}\u{2007}\u{2007}", "0.0123", "4\u{2008}\u{2007}\u{2007}\u{2007}\u{2007}", "1.0×10⁻⁵", ""]
        );
    }
}
