//! Just enough SVG: shapes with classes, whose colours the style sheet knows.

use std::fmt::Write;

use super::palette;

/// Widths of names, which are set in a monospaced face: `textLength` makes these true whatever face is found.
pub const ADVANCE: f64 = 7.2;
pub const LINE: f64 = 15.0;

/// A rectangle, in pixels; y grows downwards.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rect {
    pub x: f64,
    pub y: f64,
    pub w: f64,
    pub h: f64,
}

impl Rect {
    /// Around a centre.
    pub fn around((x, y): (f64, f64), w: f64, h: f64) -> Rect {
        Rect { x: x - w / 2.0, y: y - h / 2.0, w, h }
    }
    pub fn right(&self) -> f64 {
        self.x + self.w
    }
    pub fn bottom(&self) -> f64 {
        self.y + self.h
    }
    pub fn centre(&self) -> (f64, f64) {
        (self.x + self.w / 2.0, self.y + self.h / 2.0)
    }
    pub fn meets(&self, other: &Rect) -> bool {
        self.x < other.right() && other.x < self.right() && self.y < other.bottom() && other.y < self.bottom()
    }
    pub fn lies_in(&self, frame: &Rect) -> bool {
        self.x >= frame.x && self.y >= frame.y && self.right() <= frame.right() && self.bottom() <= frame.bottom()
    }
    /// The point of it that is nearest to another.
    pub fn nearest(&self, (x, y): (f64, f64)) -> (f64, f64) {
        (x.clamp(self.x, self.right()), y.clamp(self.y, self.bottom()))
    }
    /// Whether a segment passes through it (Liang and Barsky 1984).
    pub fn is_crossed(&self, [(ax, ay), (bx, by)]: [(f64, f64); 2]) -> bool {
        let (dx, dy) = (bx - ax, by - ay);
        let (mut enter, mut leave) = (0.0f64, 1.0f64);
        for (p, q) in [(-dx, ax - self.x), (dx, self.right() - ax), (-dy, ay - self.y), (dy, self.bottom() - ay)] {
            if p == 0.0 {
                if q <= 0.0 {
                    return false;
                }
            } else if p < 0.0 {
                enter = enter.max(q / p);
            } else {
                leave = leave.min(q / p);
            }
        }
        enter < leave
    }
}

/// Columns that a name takes; wide scripts take two.
pub fn columns(name: &str) -> usize {
    name.chars().map(|c| if c >= '\u{1100}' { 2 } else { 1 }).sum()
}

/// At most so many columns, the middle left out: the ends of file names tell them apart.
pub fn shorten(name: &str, most: usize) -> String {
    if columns(name) <= most {
        return name.to_owned();
    }
    let take = |chars: &mut dyn Iterator<Item = char>, room: usize| -> Vec<char> {
        let mut used = 0;
        chars
            .take_while(|c| {
                used += columns(c.encode_utf8(&mut [0; 4]));
                used <= room
            })
            .collect()
    };
    let head = take(&mut name.chars(), (most - 1) / 3);
    let tail = take(&mut name.chars().rev(), (most - 1) * 2 / 3);
    head.into_iter().chain(['…']).chain(tail.into_iter().rev()).collect()
}

pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

/// A drawing under way.
#[derive(Clone)]
pub struct Svg {
    pub width: f64,
    pub height: f64,
    body: String,
}

impl Svg {
    pub fn new(width: f64, height: f64) -> Svg {
        Svg { width, height, body: String::new() }
    }
    pub fn line(&mut self, class: &str, [(ax, ay), (bx, by)]: [(f64, f64); 2]) {
        self.put(format_args!("<line class=\"{class}\" x1=\"{ax:.1}\" y1=\"{ay:.1}\" x2=\"{bx:.1}\" y2=\"{by:.1}\"/>"));
    }
    /// A line through points; closed, a surface.
    pub fn path(&mut self, class: &str, points: &[(f64, f64)], closed: bool) {
        let step = |(i, (x, y)): (usize, &(f64, f64))| format!("{}{x:.1} {y:.1}", if i == 0 { 'M' } else { 'L' });
        let d: String = points.iter().enumerate().map(step).collect();
        self.put(format_args!("<path class=\"{class}\" d=\"{d}{}\"/>", if closed { "Z" } else { "" }));
    }
    pub fn rect(&mut self, class: &str, r: Rect) {
        let Rect { x, y, w, h } = r;
        self.put(format_args!(
            "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{w:.1}\" height=\"{h:.1}\"/>"
        ));
    }
    /// A mark that says its figures when pointed at.
    pub fn circle(&mut self, class: &str, (x, y): (f64, f64), r: f64, title: &str) {
        let title = escape(title);
        self.put(format_args!(
            "<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{r}\"><title>{title}</title></circle>"
        ));
    }
    /// `anchor`: start, middle or end.
    pub fn text(&mut self, class: &str, (x, y): (f64, f64), anchor: &str, text: &str) {
        let text = escape(text);
        self.put(format_args!(
            "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>"
        ));
    }
    /// A name from a left end, exactly as wide as `columns` says.
    pub fn name(&mut self, class: &str, (x, y): (f64, f64), name: &str) {
        let (width, text) = (columns(name) as f64 * ADVANCE, escape(name));
        self.put(format_args!(
            "<text class=\"name {class}\" x=\"{x:.1}\" y=\"{y:.1}\" textLength=\"{width:.1}\" \
             lengthAdjust=\"spacingAndGlyphs\">{text}</text>"
        ));
    }
    /// A vertical axis's title.
    pub fn upright(&mut self, (x, y): (f64, f64), text: &str) {
        let text = escape(text);
        self.put(format_args!("<text class=\"quiet\" transform=\"translate({x:.1} {y:.1}) rotate(-90)\" text-anchor=\"middle\">{text}</text>"));
    }
    fn put(&mut self, element: std::fmt::Arguments<'_>) {
        _ = writeln!(self.body, "{element}");
    }
}

/// A finished drawing.
#[derive(Clone)]
pub struct Plot {
    /// Of a file, without its end.
    pub name: String,
    pub title: String,
    /// The same in words, for those who do not see it.
    pub description: String,
    pub svg: Svg,
}

impl Plot {
    fn element(&self, id: &str, attributes: &str, style: &str) -> String {
        let Svg { width, height, body } = &self.svg;
        let (title, description) = (escape(&self.title), escape(&self.description));
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"plot\" viewBox=\"0 0 {width:.0} {height:.0}\"{attributes} role=\"img\" \
             aria-labelledby=\"{id}-t {id}-d\">\n<title id=\"{id}-t\">{title}</title>\n<desc id=\"{id}-d\">{description}</desc>\n\
             {style}{body}</svg>\n"
        )
    }

    /// To stand in a page that has the style; `id` is unique there.
    pub fn inline(&self, id: &str) -> String {
        self.element(id, "", "")
    }

    /// A file of its own.
    pub fn file(&self) -> String {
        let size = format!(" width=\"{:.0}\" height=\"{:.0}\"", self.svg.width, self.svg.height);
        let style =
            format!("<style>{}</style>\n<rect class=\"sheet\" width=\"100%\" height=\"100%\"/>\n", palette::css());
        format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{}", self.element("plot", &size, &style))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_and_rectangles() {
        let r = Rect { x: 10.0, y: 10.0, w: 10.0, h: 10.0 };
        assert!(r.is_crossed([(0.0, 15.0), (30.0, 15.0)]) && r.is_crossed([(12.0, 12.0), (13.0, 13.0)]));
        assert!(!r.is_crossed([(0.0, 15.0), (5.0, 15.0)]) && !r.is_crossed([(0.0, 0.0), (30.0, 5.0)]));
        assert!(!r.is_crossed([(0.0, 19.0), (19.0, 0.0)]));
        assert_eq!(r.nearest((0.0, 15.0)), (10.0, 15.0));
    }

    #[test]
    fn long_names_keep_their_ends() {
        assert_eq!(shorten("short.gguf", 20), "short.gguf");
        let name = shorten("a-very-long-name-of-a-model-q4_k_m.gguf", 20);
        assert!(columns(&name) <= 20 && name.starts_with("a-very") && name.ends_with("q4_k_m.gguf"), "{name}");
        assert!(columns(&shorten(&"模".repeat(30), 21)) <= 21);
    }
}
