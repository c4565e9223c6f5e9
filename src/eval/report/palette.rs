//! The colours of a report, for light and dark pages. Series colours are told apart by people with any colour vision, and
//! dashes and direct labels say the same again; every colour that carries text has a contrast of at least 4.5 (WCAG 2.2 AA).

use std::fmt::Write;

pub struct Theme {
    pub paper: &'static str,
    pub panel: &'static str,
    pub ink: &'static str,
    pub muted: &'static str,
    pub rule: &'static str,
    pub accent: &'static str,
    /// Lines and their labels.
    pub series: [&'static str; 6],
    /// Cells of a heat map from little to much: ground and text.
    pub heat: [(&'static str, &'static str); 7],
    /// Verdicts: good, bad, undecided; ground and text of a banner.
    pub good: (&'static str, &'static str),
    pub bad: (&'static str, &'static str),
    pub open: (&'static str, &'static str),
}

pub const LIGHT: Theme = Theme {
    paper: "#fffefc",
    panel: "#f5f4ef",
    ink: "#1a1d21",
    muted: "#5a616b",
    rule: "#d9d7d0",
    accent: "#0b5394",
    series: ["#0b5fa8", "#b24400", "#00735c", "#8c3f86", "#7a5d00", "#4d535c"],
    heat: [
        ("#f3f6f9", "#1a1d21"),
        ("#dbe8f4", "#1a1d21"),
        ("#b6d2ea", "#1a1d21"),
        ("#86b5dd", "#1a1d21"),
        ("#5496cc", "#101418"),
        ("#1f65a8", "#ffffff"),
        ("#0c3c6e", "#ffffff"),
    ],
    good: ("#0d5c3f", "#ffffff"),
    bad: ("#a11a1a", "#ffffff"),
    open: ("#6b4e00", "#ffffff"),
};

pub const DARK: Theme = Theme {
    paper: "#15181c",
    panel: "#1e2227",
    ink: "#e7e9ec",
    muted: "#a6aeb8",
    rule: "#3a4048",
    accent: "#7fbcf5",
    series: ["#6fb7f5", "#f2995a", "#45c9a2", "#e39fd0", "#e2cf5c", "#b6bcc5"],
    heat: [
        ("#1b2027", "#e7e9ec"),
        ("#1c3047", "#e7e9ec"),
        ("#1e456e", "#ffffff"),
        ("#235f99", "#ffffff"),
        ("#4f97d6", "#101418"),
        ("#93c5f0", "#101418"),
        ("#d9ebfb", "#101418"),
    ],
    good: ("#7fdcae", "#0b1f16"),
    bad: ("#ff9c94", "#2b0503"),
    open: ("#f0cf6b", "#241a00"),
};

/// Upper ends of the heat map's steps but the last, nats. Fixed, so that colours of two reports mean the same.
pub const STEPS: [f64; 6] = [1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1];

pub fn step(kld: f64) -> usize {
    STEPS.iter().position(|end| kld < *end).unwrap_or(STEPS.len())
}

impl Theme {
    fn variables(&self) -> String {
        let mut out = String::new();
        let plain = [
            ("paper", self.paper),
            ("panel", self.panel),
            ("ink", self.ink),
            ("muted", self.muted),
            ("rule", self.rule),
            ("accent", self.accent),
        ];
        plain.iter().for_each(|(name, colour)| _ = write!(out, "--{name}:{colour};"));
        self.series.iter().enumerate().for_each(|(i, colour)| _ = write!(out, "--s{i}:{colour};"));
        for (i, (ground, text)) in self.heat.iter().enumerate() {
            _ = write!(out, "--h{i}:{ground};--t{i}:{text};");
        }
        for (name, (ground, text)) in [("good", self.good), ("bad", self.bad), ("open", self.open)] {
            _ = write!(out, "--{name}:{ground};--on-{name}:{text};");
        }
        out
    }
}

/// Variables of both themes, and the classes of plots. Paper is light.
pub fn css() -> String {
    let (light, dark) = (LIGHT.variables(), DARK.variables());
    let mut out = format!(
        ":root{{color-scheme:light dark;{light}}}\n\
         @media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}\n{}",
        include_str!("plot.css")
    );
    const DASHES: [&str; 4] = ["none", "7 3", "2 3", "9 3 2 3"];
    for i in 0..LIGHT.series.len() {
        _ = writeln!(out, ".l{i}{{stroke:var(--s{i})}}.plot .f{i}{{fill:var(--s{i})}}");
    }
    for (i, dash) in DASHES.iter().enumerate() {
        _ = writeln!(out, ".d{i}{{stroke-dasharray:{dash}}}");
    }
    for i in 0..LIGHT.heat.len() {
        _ = writeln!(
            out,
            ".h{i}{{background:var(--h{i});fill:var(--h{i});color:var(--t{i})}}.plot .t{i}{{fill:var(--t{i})}}"
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn linear(colour: &str) -> [f64; 3] {
        let part = |i: usize| u8::from_str_radix(&colour[1 + 2 * i..3 + 2 * i], 16).unwrap() as f64 / 255.0;
        let linear = |c: f64| if c <= 0.04045 { c / 12.92 } else { ((c + 0.055) / 1.055).powf(2.4) };
        [0, 1, 2].map(|i| linear(part(i)))
    }

    fn luminance(colour: &str) -> f64 {
        let [r, g, b] = linear(colour);
        0.2126 * r + 0.7152 * g + 0.0722 * b
    }

    /// WCAG 2.2, "contrast ratio".
    fn contrast(a: &str, b: &str) -> f64 {
        let (a, b) = (luminance(a), luminance(b));
        (a.max(b) + 0.05) / (a.min(b) + 0.05)
    }

    #[test]
    fn contrast_is_what_the_standard_says() {
        assert!((contrast("#ffffff", "#000000") - 21.0).abs() < 1e-9);
        assert!((contrast("#ffffff", "#767676") - 4.54).abs() < 0.01);
    }

    #[test]
    fn text_can_be_read_in_both_themes() {
        for theme in [LIGHT, DARK] {
            for ground in [theme.paper, theme.panel] {
                assert!(contrast(theme.ink, ground) >= 7.0);
                for colour in theme.series.iter().chain([&theme.muted, &theme.accent]) {
                    assert!(contrast(colour, ground) >= 4.5, "{colour} on {ground}: {}", contrast(colour, ground));
                }
            }
            for (ground, text) in theme.heat.iter().chain([&theme.good, &theme.bad, &theme.open]) {
                assert!(contrast(text, ground) >= 4.5, "{text} on {ground}: {}", contrast(text, ground));
            }
            // Verdicts also stand as words in their own colour.
            for (colour, _) in [theme.good, theme.bad, theme.open] {
                assert!(contrast(colour, theme.paper) >= 4.5, "{colour}");
            }
            let heat: Vec<f64> = theme.heat.iter().map(|(ground, _)| luminance(ground)).collect();
            let dark = heat[0] < heat[6];
            assert!(heat.windows(2).all(|w| (w[0] < w[1]) == dark && w[0] != w[1]), "one direction: {heat:?}");
        }
    }

    /// CIE L*a*b* (D65) of linear RGB.
    fn lab([r, g, b]: [f64; 3]) -> [f64; 3] {
        let x = (0.4124 * r + 0.3576 * g + 0.1805 * b) / 0.9505;
        let y = 0.2126 * r + 0.7152 * g + 0.0722 * b;
        let z = (0.0193 * r + 0.1192 * g + 0.9505 * b) / 1.089;
        let f = |t: f64| if t > 0.008856 { t.cbrt() } else { 7.787 * t + 16.0 / 116.0 };
        [116.0 * f(y) - 16.0, 500.0 * (f(x) - f(y)), 200.0 * (f(y) - f(z))]
    }

    /// What is left of a colour without one kind of cone (Machado, Oliveira, Fernandes 2009, severity 1).
    const DEFICIENCIES: [[[f64; 3]; 3]; 4] = [
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    ];

    #[test]
    fn neighbouring_series_differ_for_any_eye() {
        for theme in [LIGHT, DARK] {
            for matrix in DEFICIENCIES {
                let seen = |colour: &str| {
                    let c = linear(colour);
                    lab(matrix.map(|row| (0..3).map(|i| row[i] * c[i]).sum::<f64>().clamp(0.0, 1.0)))
                };
                for pair in theme.series.windows(2) {
                    let (a, b) = (seen(pair[0]), seen(pair[1]));
                    let distance = (0..3).map(|i| (a[i] - b[i]).powi(2)).sum::<f64>().sqrt();
                    assert!(distance > 12.0, "{pair:?}: {distance}");
                }
            }
        }
    }
}
