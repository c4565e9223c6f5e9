//! Size against loss, with intervals and the Pareto front.

use super::axis::{self, Axis};
use super::number::{bytes, interval, significant, unit};
use super::place::{Placed, place};
use super::svg::{ADVANCE, LINE, Plot, Rect, Svg, columns, shorten};

/// An artifact in the plane.
#[derive(Clone, Debug)]
pub struct Point {
    /// Short, unique.
    pub label: String,
    pub bytes: u64,
    pub value: f64,
    pub low: Option<f64>,
    pub high: Option<f64>,
}

/// What the vertical axis counts.
pub struct Measure {
    pub name: &'static str,
    pub title: &'static str,
    /// The reference measured against itself: below it differences are noise.
    pub floor: Option<f64>,
}

const WIDTH: f64 = 760.0;
const FRAME: Rect = Rect { x: 76.0, y: 14.0, w: 668.0, h: 356.0 };
const RADIUS: f64 = 5.5;
/// Longest name beside a point.
const LONGEST: usize = 34;
/// More points than this are labelled on the front only.
const LABELLED: usize = 60;
/// Losses below are drawn at the bottom: what lies there cannot be told from nothing.
const LEAST: f64 = 1e-6;

/// Whether no other point is at most as large and at most as far, and less in one of both.
pub fn front(points: &[Point]) -> Vec<bool> {
    let better =
        |a: &Point, b: &Point| a.bytes <= b.bytes && a.value <= b.value && (a.bytes < b.bytes || a.value < b.value);
    points.iter().map(|p| !points.iter().any(|q| better(q, p))).collect()
}

/// None: nothing to compare.
pub fn draw(points: &[Point], measure: &Measure) -> Option<Plot> {
    if points.len() < 2 {
        return None;
    }
    let front = front(points);
    let (x, y, scale) = axes(points);
    let at = |p: &Point| (x.at(p.bytes as f64 / scale.1), y.at(p.value));
    let bars: Vec<[(f64, f64); 2]> = points.iter().map(|p| bar(p, at(p).0, &y)).collect();
    let steps = steps(points, &front, at);

    let marks: Vec<Rect> = points.iter().map(|p| Rect::around(at(p), 2.0 * RADIUS, 2.0 * RADIUS)).collect();
    let mut soft: Vec<Rect> = bars.iter().map(|[a, b]| Rect { x: a.0 - 3.0, y: b.1, w: 6.0, h: a.1 - b.1 }).collect();
    soft.extend(steps.windows(2).map(|w| {
        let (low, high) = ((w[0].0.min(w[1].0), w[0].1.min(w[1].1)), (w[0].0.max(w[1].0), w[0].1.max(w[1].1)));
        Rect { x: low.0 - 2.0, y: low.1 - 2.0, w: high.0 - low.0 + 4.0, h: high.1 - low.1 + 4.0 }
    }));
    // The floor's own label stands first, in the corner where large and close files are.
    let floor = measure.floor.filter(|f| *f > y.lowest() && *f < points.iter().map(|p| p.value).fold(0.0, f64::max));
    let mut obstacles = marks.clone();
    let floor_text = "noise floor";
    if let Some(f) = floor {
        let w = columns(floor_text) as f64 * 6.5;
        obstacles.push(Rect { x: FRAME.x + 4.0, y: y.at(f) - LINE, w, h: LINE });
    }
    let labels = Labels::place(points, &front, &obstacles, &soft);

    let rows = labels.legend.len().div_ceil(2);
    let bottom = FRAME.bottom() + 54.0;
    let mut svg = Svg::new(WIDTH, bottom + if rows > 0 { rows as f64 * 18.0 + 12.0 } else { 0.0 });
    axis::draw(&mut svg, FRAME, &x, &y, [&format!("size ({})", scale.0), measure.title]);
    if let Some(f) = floor {
        svg.line("floor", [(FRAME.x, y.at(f)), (FRAME.right(), y.at(f))]);
        svg.text("quiet", (FRAME.x + 4.0, y.at(f) - 4.0), "start", floor_text);
    }
    svg.path("front", &steps, false);
    for [a, b] in &bars {
        svg.line("bar", [*a, *b]);
        for end in [a, b] {
            svg.line("bar", [(end.0 - 3.0, end.1), (end.0 + 3.0, end.1)]);
        }
    }
    labels.places.iter().flatten().filter_map(|p| p.leader).for_each(|l| svg.line("leader", l));
    for (p, on) in points.iter().zip(&front) {
        let figures = [bytes(p.bytes), significant(p.value), interval(p.low, p.high, significant)].join(", ");
        let figures = format!("{}: {}", p.label, figures.trim_end_matches(", "));
        svg.circle(if *on { "on" } else { "off" }, at(p), RADIUS, &figures);
    }
    for (text, placed) in labels.texts.iter().zip(&labels.places) {
        if let Some(placed) = placed {
            svg.name("", (placed.rect.x + 2.0, placed.rect.y + 11.5), text);
        }
    }
    for (i, line) in labels.legend.iter().enumerate() {
        let at = (FRAME.x + (i / rows) as f64 * FRAME.w / 2.0, bottom + 14.0 + (i % rows) as f64 * 18.0);
        svg.name("", at, line);
    }
    let description = describe(points, &front, measure);
    Some(Plot { name: measure.name.to_owned(), title: format!("Size against {}", measure.title), description, svg })
}

/// Both axes, and the unit of sizes.
fn axes(points: &[Point]) -> (Axis, Axis, (&'static str, f64)) {
    let scale = unit(points.iter().map(|p| p.bytes).max().unwrap_or(0));
    let ends = |values: &mut dyn Iterator<Item = f64>| values.fold((f64::MAX, 0.0), |(a, b), v| (v.min(a), v.max(b)));
    let sizes = ends(&mut points.iter().map(|p| p.bytes as f64 / scale.1));
    let least = points.iter().map(|p| p.value).filter(|v| *v > 0.0).fold(f64::MAX, f64::min).min(1.0);
    let least = least.max(LEAST);
    let values = points.iter().flat_map(|p| [Some(p.value), p.low, p.high]).flatten();
    let (low, high) = ends(&mut values.map(|v| v.max(least / 2.0)));
    let x = Axis::new(sizes.0, sizes.1, sizes.0 > 0.0 && sizes.1 > 30.0 * sizes.0, true, [FRAME.x, FRAME.right()]);
    (x, Axis::new(low, high, true, true, [FRAME.bottom(), FRAME.y]), scale)
}

/// An interval, from below upwards; nothing of one is a point.
fn bar(p: &Point, x: f64, y: &Axis) -> [(f64, f64); 2] {
    [(x, y.at(p.low.unwrap_or(p.value))), (x, y.at(p.high.unwrap_or(p.value)))]
}

/// The front as a staircase: at each size, the least loss that a file of at most that size has.
fn steps(points: &[Point], front: &[bool], at: impl Fn(&Point) -> (f64, f64)) -> Vec<(f64, f64)> {
    let mut on: Vec<(f64, f64)> = points.iter().zip(front).filter(|(_, on)| **on).map(|(p, _)| at(p)).collect();
    on.sort_by(|a, b| a.0.total_cmp(&b.0).then(b.1.total_cmp(&a.1)));
    let mut out: Vec<(f64, f64)> = Vec::new();
    for p in on {
        if let Some(last) = out.last().copied() {
            out.push((p.0, last.1));
        }
        out.push(p);
    }
    out.extend(out.last().map(|last| (FRAME.right(), last.1)));
    out
}

struct Labels {
    texts: Vec<String>,
    places: Vec<Option<Placed>>,
    /// What numbers stand for; empty where names stand beside their points.
    legend: Vec<String>,
}

impl Labels {
    /// Names if they all find room, else numbers.
    fn place(points: &[Point], front: &[bool], marks: &[Rect], soft: &[Rect]) -> Labels {
        let size = |text: &String| (columns(text) as f64 * ADVANCE + 4.0, LINE);
        let names: Vec<String> = points.iter().map(|p| shorten(&p.label, LONGEST)).collect();
        let sizes: Vec<_> = names.iter().map(size).collect();
        let places = if points.len() <= LABELLED { place(marks, soft, &sizes, FRAME, false) } else { Vec::new() };
        if !places.is_empty() && places.iter().all(Option::is_some) {
            return Labels { texts: names, places, legend: Vec::new() };
        }
        let all = points.len() <= LABELLED;
        let shown: Vec<usize> = (0..points.len()).filter(|i| all || front[*i]).take(LABELLED).collect();
        let texts: Vec<String> = (1..=shown.len()).map(|n| n.to_string()).collect();
        let legend =
            shown.iter().zip(&texts).map(|(i, n)| format!("{n:\u{a0}>2} {}", shorten(&points[*i].label, 42))).collect();
        // `place` labels the first marks.
        let rest = (0..marks.len()).filter(|i| !shown.contains(i));
        let marks: Vec<Rect> = shown.iter().copied().chain(rest).map(|i| marks[i]).collect();
        let sizes: Vec<_> = texts.iter().map(size).collect();
        Labels { places: place(&marks, soft, &sizes, FRAME, true), texts, legend }
    }
}

fn describe(points: &[Point], front: &[bool], measure: &Measure) -> String {
    let one = |p: &Point| format!("{} ({}, {})", p.label, bytes(p.bytes), significant(p.value));
    let on: Vec<String> = points.iter().zip(front).filter(|(_, on)| **on).map(|(p, _)| one(p)).take(12).collect();
    format!(
        "{} files by size and {} on a logarithmic scale. No file is both smaller and closer than these: {}.",
        points.len(),
        measure.title,
        on.join("; ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(label: &str, bytes: u64, value: f64) -> Point {
        Point { label: label.into(), bytes, value, low: Some(value * 0.9), high: Some(value * 1.1) }
    }

    #[test]
    fn the_front_is_what_nothing_beats() {
        let points =
            [point("a", 10, 0.1), point("b", 20, 0.01), point("c", 20, 0.02), point("d", 5, 0.5), point("e", 30, 0.01)];
        assert_eq!(front(&points), [true, true, false, true, false]);
        // Equal ones do not beat each other.
        assert_eq!(front(&[point("a", 1, 1.0), point("b", 1, 1.0)]), [true, true]);
    }

    #[test]
    fn crowds_get_numbers_and_a_legend() {
        let measure = Measure { name: "size-kld", title: "KLD", floor: Some(1e-5) };
        let few: Vec<Point> =
            (1..6u32).map(|i| point(&format!("m-q{i}.gguf"), u64::from(i) << 20, 0.5f64.powi(2 * i as i32))).collect();
        let plot = draw(&few, &measure).unwrap().file();
        assert!(plot.contains(">m-q3.gguf</text>"), "{plot}");
        let many: Vec<Point> =
            (0..40).map(|i| point(&format!("a-model-with-a-long-name-{i}.gguf"), 1 << 30, 0.01)).collect();
        let plot = draw(&many, &measure).unwrap().file();
        for i in [1, 25, 40] {
            assert!(plot.contains(&format!(">{i}</text>")) && plot.contains(&format!("{i:\u{a0}>2} a-model")), "{i}");
        }
        assert!(draw(&few[..1], &measure).is_none());
        let zero = [point("f32", 100, 0.0), point("f16", 50, 0.0), point("q", 1, 3.0)];
        assert!(!draw(&zero, &measure).unwrap().file().contains("NaN"));
        let crowd: Vec<Point> = (0..400).map(|i| point(&format!("{i}.gguf"), 1 << 30, 0.01)).collect();
        assert!(draw(&crowd, &measure).is_some());
    }
}
