//! Cache types by position, coloured by what they lose.

use super::data::KvRow;
use super::number::{range, significant};
use super::palette;
use super::svg::{ADVANCE, Plot, Rect, Svg, columns, shorten};

/// The ranges of positions that any row has, in order.
pub fn ranges(rows: &[KvRow]) -> Vec<(u64, u64)> {
    let mut out: Vec<(u64, u64)> = rows.iter().flat_map(|r| &r.buckets).map(|b| (b.from, b.to)).collect();
    out.sort_unstable();
    out.dedup();
    out
}

const CELL: (f64, f64) = (88.0, 30.0);
const TOP: f64 = 44.0;

/// None: there are no ranges.
pub fn draw(rows: &[KvRow], name: String) -> Option<Plot> {
    let ranges = ranges(rows);
    if ranges.is_empty() {
        return None;
    }
    let labels: Vec<String> = rows.iter().map(|r| shorten(&r.name, 36)).collect();
    let names = labels.iter().map(|l| columns(l)).max().unwrap_or(0) as f64 * ADVANCE + 24.0;
    let left = names + 84.0;
    let mut svg = Svg::new(left + ranges.len() as f64 * CELL.0 + 12.0, TOP + rows.len() as f64 * CELL.1 + 12.0);
    svg.text("quiet", (left - 12.0, TOP - 8.0), "end", "bytes/token");
    svg.text("quiet", (left, TOP - 26.0), "start", "mean KLD (nats) at positions");
    for (column, (from, to)) in ranges.iter().enumerate() {
        let x = left + (column as f64 + 0.5) * CELL.0;
        svg.text("tick", (x, TOP - 8.0), "middle", &range(*from, *to));
    }
    for (i, (row, label)) in rows.iter().zip(&labels).enumerate() {
        let y = TOP + i as f64 * CELL.1;
        svg.name("", (12.0, y + 19.0), label);
        svg.text("tick", (left - 12.0, y + 19.0), "end", &format!("{:.0}", row.bytes_per_token));
        for (column, range) in ranges.iter().enumerate() {
            let Some(bucket) = row.buckets.iter().find(|b| (b.from, b.to) == *range) else { continue };
            let (x, step) = (left + column as f64 * CELL.0, palette::step(bucket.kld.value));
            svg.rect(&format!("h{step}"), Rect { x, y, w: CELL.0 - 2.0, h: CELL.1 - 2.0 });
            let centre = (x + CELL.0 / 2.0 - 1.0, y + 19.0);
            svg.text(&format!("t{step}"), centre, "middle", &significant(bucket.kld.value));
        }
    }
    let one = |r: &KvRow| {
        let worst = r.buckets.iter().map(|b| b.kld.value).fold(0.0, f64::max);
        format!("{} at most {} at {:.0} bytes a token", r.name, significant(worst), r.bytes_per_token)
    };
    let description = rows.iter().take(20).map(one).collect::<Vec<_>>().join("; ");
    Some(Plot { name, title: "KLD of cache types by position".into(), description, svg })
}
