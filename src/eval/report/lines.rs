//! Lines with their names at their ends: loss by position, loss by layer.

use super::axis::{self, Axis};
use super::number::significant;
use super::place::spread;
use super::svg::{ADVANCE, LINE, Plot, Rect, Svg, columns, shorten};

pub struct Series {
    pub label: String,
    /// x ascending.
    pub points: Vec<Dot>,
}

pub struct Dot {
    pub x: f64,
    pub y: f64,
    pub interval: Option<(f64, f64)>,
}

pub struct Chart {
    pub name: &'static str,
    pub title: &'static str,
    pub x: &'static str,
    pub y: &'static str,
    pub series: Vec<Series>,
}

const WIDTH: f64 = 760.0;
const LEFT: f64 = 76.0;
const TOP: f64 = 14.0;
/// Longest name at a line's end.
const LONGEST: usize = 24;
/// Lines of one chart.
const MOST: usize = 40;
/// With more lines, bands of intervals would hide each other.
const BANDS: usize = 5;
/// Values below cannot be told from nothing.
const LEAST: f64 = 1e-7;

/// None: there is no line. Values that range widely, all above zero, go on a logarithmic scale.
pub fn draw(chart: &Chart) -> Option<Plot> {
    let series: Vec<&Series> = chart.series.iter().filter(|s| !s.points.is_empty()).take(MOST).collect();
    if series.iter().all(|s| s.points.len() < 2) {
        return None;
    }
    let labels: Vec<String> = series.iter().map(|s| shorten(&s.label, LONGEST)).collect();
    let margin = labels.iter().map(|l| columns(l)).max().unwrap_or(0) as f64 * ADVANCE + 26.0;
    let height = (series.len() as f64 * LINE).max(260.0);
    let frame = Rect { x: LEFT, y: TOP, w: WIDTH - LEFT - margin, h: height };
    let (x, y) = axes(&series, frame);

    let mut svg = Svg::new(WIDTH, frame.bottom() + 54.0);
    axis::draw(&mut svg, frame, &x, &y, [chart.x, chart.y]);
    let at = |(px, py): (f64, f64)| (x.at(px), y.at(py));
    if series.len() <= BANDS {
        for (i, s) in series.iter().enumerate() {
            let around = band(s).into_iter().map(at).collect::<Vec<_>>();
            if around.len() > 3 {
                svg.path(&format!("band f{}", i % 6), &around, true);
            }
        }
    }
    let ends: Vec<(f64, f64)> = series.iter().filter_map(|s| s.points.last()).map(|p| at((p.x, p.y))).collect();
    let wishes: Vec<f64> = ends.iter().map(|e| e.1).collect();
    let centres = spread(&wishes, LINE, TOP - LINE / 2.0, frame.bottom() + LINE / 2.0);
    for (i, s) in series.iter().enumerate() {
        let points: Vec<(f64, f64)> = s.points.iter().map(|p| at((p.x, p.y))).collect();
        svg.path(&format!("line l{} d{}", i % 6, i / 6 % 4), &points, false);
        for (at, dot) in points.iter().zip(&s.points) {
            let figures = format!("{}, {}: {}", s.label, significant(dot.x), significant(dot.y));
            svg.circle(&format!("s f{}", i % 6), *at, 3.0, &figures);
        }
        svg.line("leader", [(ends[i].0 + 5.0, ends[i].1), (frame.right() + 18.0, centres[i])]);
        svg.name(&format!("f{}", i % 6), (frame.right() + 22.0, centres[i] + 4.0), &labels[i]);
    }
    let one = |s: &&Series| {
        let (first, last) = (s.points.first(), s.points.last());
        let value = |p: Option<&Dot>| p.map_or_else(String::new, |p| significant(p.y));
        format!("{} from {} to {}", s.label, value(first), value(last))
    };
    let description = format!("{}: {}.", chart.y, series.iter().take(12).map(one).collect::<Vec<_>>().join("; "));
    Some(Plot { name: chart.name.to_owned(), title: chart.title.to_owned(), description, svg })
}

/// Around the intervals: along their upper ends and back along the lower.
fn band(series: &Series) -> Vec<(f64, f64)> {
    let intervals = || series.points.iter().filter_map(|p| Some((p.x, p.interval?)));
    let upper = intervals().map(|(x, (_, high))| (x, high));
    upper.chain(intervals().rev().map(|(x, (low, _))| (x, low))).collect()
}

fn axes(series: &[&Series], frame: Rect) -> (Axis, Axis) {
    let ends = |values: &mut dyn Iterator<Item = f64>| {
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), v| (v.min(a), v.max(b)))
    };
    let points = || series.iter().flat_map(|s| &s.points);
    let xs = ends(&mut points().map(|p| p.x));
    let mut ys = ends(&mut points().map(|p| p.y));
    let log = ys.0 >= 0.0 && ys.1 > 20.0 * ys.0.max(LEAST);
    if log {
        ys = (points().map(|p| p.y).filter(|v| *v > LEAST).fold(ys.1, f64::min), ys.1);
    } else {
        let bands = series.len() <= BANDS;
        let band = ends(&mut points().filter_map(|p| p.interval.filter(|_| bands)).flat_map(|b| [b.0, b.1]));
        ys = (ys.0.min(band.0).min(0.0), ys.1.max(band.1));
    }
    let wide = xs.0 > 0.0 && xs.1 > 30.0 * xs.0;
    (
        Axis::new(xs.0, xs.1, wide, false, [frame.x + 8.0, frame.right() - 8.0]),
        Axis::new(ys.0, ys.1, log, true, [frame.bottom(), frame.y]),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(count: usize) -> Chart {
        let dot = |x: f64, y: f64| Dot { x, y, interval: Some((y * 0.9, y * 1.1)) };
        let series = |i: usize| Series {
            label: format!("q{i}"),
            points: (1..9).map(|x| dot(x as f64, 0.01 * (i + x) as f64)).collect(),
        };
        Chart { name: "c", title: "T", x: "x", y: "y", series: (0..count).map(series).collect() }
    }

    #[test]
    fn each_line_has_its_name() {
        for count in [1, 5, 40] {
            let plot = draw(&chart(count)).unwrap().file();
            assert_eq!(plot.matches("class=\"line ").count(), count);
            assert!((0..count).all(|i| plot.contains(&format!(">q{i}</text>"))));
            assert!(!plot.contains("NaN") && !plot.contains("inf"));
        }
        assert!(draw(&chart(0)).is_none());
        let mut zero = chart(2);
        zero.series.iter_mut().flat_map(|s| &mut s.points).for_each(|p| *p = Dot { x: p.x, y: 0.0, interval: None });
        assert!(!draw(&zero).unwrap().file().contains("NaN"));
    }
}
