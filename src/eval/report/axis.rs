//! Scales and their ticks.

use super::number::{fixed, power};
use super::svg::{Rect, Svg};

/// From values to pixels.
pub struct Axis {
    low: f64,
    high: f64,
    log: bool,
    /// Pixels of both ends.
    pixels: [f64; 2],
}

impl Axis {
    /// Shows `low..=high`, with a little room on both sides where `room`. Ends that are equal are spread.
    pub fn new(low: f64, high: f64, log: bool, room: bool, pixels: [f64; 2]) -> Axis {
        let (mut a, mut b) = if log { (low.log10(), high.log10()) } else { (low, high) };
        if !(a.is_finite() && b.is_finite()) {
            (a, b) = (0.0, 1.0);
        }
        if b - a < 1e-9 * a.abs().max(1e-9) {
            let by = if log { 0.3 } else { (a.abs() * 0.1).max(1e-9) };
            (a, b) = (a - by, b + by);
        }
        if room {
            let by = (b - a) * 0.06;
            // A size does not become negative for the looks of it.
            let floor = if !log && low >= 0.0 { 0.0 } else { f64::NEG_INFINITY };
            (a, b) = ((a - by).max(floor), b + by);
        }
        Axis { low: a, high: b, log, pixels }
    }

    pub fn at(&self, value: f64) -> f64 {
        let value = if self.log { value.max(f64::MIN_POSITIVE).log10() } else { value };
        let share = ((value - self.low) / (self.high - self.low)).clamp(0.0, 1.0);
        self.pixels[0] + share * (self.pixels[1] - self.pixels[0])
    }

    pub fn lowest(&self) -> f64 {
        if self.log { 10f64.powf(self.low) } else { self.low }
    }

    /// Values and what stands beside them.
    pub fn ticks(&self, most: usize) -> Vec<(f64, String)> {
        if !self.log {
            return linear(self.low, self.high, most);
        }
        let (first, last) = (self.low.floor() as i32, self.high.ceil() as i32);
        let decades = self.high - self.low;
        if decades < 0.7 {
            return linear(10f64.powf(self.low), 10f64.powf(self.high), most);
        }
        let digits: &[f64] = match decades {
            d if d < 1.3 => &[1.0, 1.5, 2.0, 3.0, 5.0, 7.0],
            d if d < 3.0 => &[1.0, 2.0, 5.0],
            _ => &[1.0],
        };
        let every = (decades / most as f64).ceil().max(1.0) as i32;
        let mut out = Vec::new();
        for exponent in (first..=last).filter(|e| e % every == 0) {
            for digit in digits {
                let value = digit * 10f64.powi(exponent);
                if (self.low..=self.high).contains(&value.log10()) {
                    out.push((value, label(*digit, exponent)));
                }
            }
        }
        out
    }
}

fn label(digit: f64, exponent: i32) -> String {
    let whole = digit.fract() == 0.0;
    match exponent {
        -4..=-1 => fixed(digit * 10f64.powi(exponent), exponent.unsigned_abs() as usize + usize::from(!whole)),
        0..=5 => fixed(digit * 10f64.powi(exponent), usize::from(!whole && exponent == 0)),
        _ if digit == 1.0 => power(exponent),
        _ => format!("{digit}×{}", power(exponent)),
    }
}

/// Round values, 1, 2 or 5 times a power of ten apart.
fn linear(low: f64, high: f64, most: usize) -> Vec<(f64, String)> {
    let rough = (high - low) / most as f64;
    let size = 10f64.powf(rough.log10().floor());
    let step =
        [1.0, 2.0, 5.0, 10.0].iter().map(|k| k * size).find(|step| *step >= rough * 0.999).unwrap_or(10.0 * size);
    let places = (-step.log10().floor()).clamp(0.0, 9.0) as usize;
    let first = (low / step - 1e-9).ceil();
    let values = (0..=most + 1).map(|i| (first + i as f64) * step).take_while(|v| *v <= high + step * 1e-9);
    values.map(|v| (v, fixed(v + 0.0, places))).collect()
}

/// Grid, ticks and titles of a plot's frame.
pub fn draw(svg: &mut Svg, frame: Rect, x: &Axis, y: &Axis, titles: [&str; 2]) {
    for (value, label) in y.ticks(7) {
        let at = y.at(value);
        svg.line("grid", [(frame.x, at), (frame.right(), at)]);
        svg.text("tick", (frame.x - 8.0, at + 4.0), "end", &label);
    }
    for (value, label) in x.ticks(8) {
        let at = x.at(value);
        svg.line("axis", [(at, frame.bottom()), (at, frame.bottom() + 5.0)]);
        svg.text("tick", (at, frame.bottom() + 19.0), "middle", &label);
    }
    svg.line("axis", [(frame.x, frame.bottom()), (frame.right(), frame.bottom())]);
    svg.text("quiet", (frame.centre().0, frame.bottom() + 40.0), "middle", titles[0]);
    svg.upright((14.0, frame.centre().1), titles[1]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        for (low, high, log) in [
            (0.0, 1.0, false),
            (3.0, 3.0, false),
            (-2.0, 7.0, false),
            (1.5e9, 4.0e9, false),
            (1e-4, 0.5, true),
            (0.02, 0.03, true),
            (0.01, 0.01, true),
            (1e-9, 10.0, true),
            (300.0, 90_000.0, true),
        ] {
            let axis = Axis::new(low, high, log, true, [0.0, 100.0]);
            let ticks = axis.ticks(7);
            assert!((2..=12).contains(&ticks.len()), "{low} {high} {ticks:?}");
            assert!(ticks.windows(2).all(|w| w[0].0 < w[1].0 && w[0].1 != w[1].1), "{ticks:?}");
            let at: Vec<f64> = ticks.iter().map(|t| axis.at(t.0)).collect();
            assert!(at.windows(2).all(|w| w[0] < w[1]), "{ticks:?} {at:?}");
            assert!(axis.at(low) >= 0.0 && axis.at(high) <= 100.0);
        }
        let labels: Vec<String> =
            Axis::new(1e-6, 1.0, true, false, [0.0, 1.0]).ticks(7).into_iter().map(|t| t.1).collect();
        assert_eq!(labels, ["10⁻⁶", "10⁻⁵", "0.0001", "0.001", "0.01", "0.1", "1"]);
    }
}
