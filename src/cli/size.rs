//! Amounts as people write them: byte counts (`8GiB`, `4G`, `500MB`), and numbers above 0.

use std::str::FromStr;

use crate::error::{Error, Result};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

/// A number above 0, as the value of a flag.
pub fn positive(text: &str) -> Result<f64> {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() && number > 0.0 => Ok(number),
        _ => Err(Error::request(format!("{text:?} is no number above 0"))),
    }
}

const UNITS: &[(&str, u64)] = &[
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("K", 1 << 10),
    ("M", 1 << 20),
    ("G", 1 << 30),
    ("T", 1 << 40),
];

impl FromStr for Size {
    type Err = Error;

    fn from_str(text: &str) -> Result<Size> {
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let unit = unit.trim();
        let factor = UNITS.iter().find(|(name, _)| unit.is_empty() || name.eq_ignore_ascii_case(unit)).map(|u| u.1);
        let bytes = number.parse::<f64>().ok().zip(factor).map(|(n, f)| n * f as f64);
        match bytes {
            Some(bytes) if bytes >= 1.0 && bytes < u64::MAX as f64 => Ok(Size(bytes as u64)),
            _ => {
                Err(Error::request(format!("{text:?} is no size")).help("write it as 8GiB, 500MB or a number of bytes"))
            }
        }
    }
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (unit, factor) = UNITS[..5].iter().rev().find(|(_, factor)| self.0 >= *factor).unwrap_or(&UNITS[0]);
        if *factor == 1 { write!(f, "{} B", self.0) } else { write!(f, "{:.2} {unit}", self.0 as f64 / *factor as f64) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_as_people_write_them() {
        for (text, bytes) in
            [("17", 17), ("8GiB", 8 << 30), ("4g", 4 << 30), ("1.5K", 1536), ("500MB", 500_000_000), ("2 kib", 2048)]
        {
            assert_eq!(text.parse::<Size>().unwrap(), Size(bytes), "{text}");
        }
        for text in ["", "GiB", "-1", "1.2.3M", "5 parsecs", "0", "1e400"] {
            assert!(text.parse::<Size>().is_err(), "{text:?}");
        }
        assert_eq!(Size(1536).to_string(), "1.50 KiB");
    }

    #[test]
    fn numbers_above_zero() {
        assert_eq!(positive("4.25").unwrap(), 4.25);
        for text in ["", "0", "-1", "nan", "inf", "1e999", "4bpw"] {
            assert!(positive(text).is_err(), "{text:?}");
        }
    }
}
