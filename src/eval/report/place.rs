//! Where labels of points go: beside their points, never over each other, a point or the frame.

use super::svg::Rect;

pub type Segment = [(f64, f64); 2];

#[derive(Clone, Copy, Debug)]
pub struct Placed {
    pub rect: Rect,
    /// From the point to a label that is not beside it.
    pub leader: Option<Segment>,
}

/// Gaps between a point and its label that are tried in turn.
const GAPS: [f64; 7] = [2.0, 6.0, 12.0, 20.0, 32.0, 48.0, 66.0];
/// Directions in the order of preference, sixteenths of a turn from the right, against the clock.
const DIRECTIONS: [i32; 16] = [0, 1, -1, 2, -2, 8, 4, -4, 7, -7, 6, -6, 3, -3, 5, -5];
/// From this distance on a line leads to the label.
const BESIDE: f64 = 10.0;
/// Step of the search over the whole frame.
const STEP: f64 = 4.0;

/// Hard rules hold always; a lower level adds rules for the looks.
#[derive(Clone, Copy, PartialEq, PartialOrd)]
enum Level {
    /// No label on an interval, a drawn line or a leader.
    Clean,
    /// No label on a leader.
    Leaders,
    Hard,
}

struct Scene<'a> {
    marks: &'a [Rect],
    soft: &'a [Rect],
    frame: Rect,
    placed: Vec<Placed>,
}

impl Scene<'_> {
    fn candidate(&self, mark: &Rect, rect: Rect) -> Placed {
        let (from, to) = (mark.centre(), rect.nearest(mark.centre()));
        let distance = (from.0 - to.0).hypot(from.1 - to.1) - mark.w.max(mark.h) / 2.0;
        Placed { rect, leader: (distance > BESIDE).then_some([from, to]) }
    }

    fn allows(&self, new: &Placed, mark: usize, level: Level) -> bool {
        let rect = &new.rect;
        let hard = rect.lies_in(&self.frame)
            && !self.marks.iter().any(|m| m.meets(rect))
            && !self.placed.iter().any(|p| p.rect.meets(rect));
        if !hard || level == Level::Hard {
            return hard;
        }
        let on_leader = self.placed.iter().any(|p| p.leader.is_some_and(|l| rect.is_crossed(l)));
        let leads_over = new.leader.is_some_and(|l| {
            self.placed.iter().any(|p| p.rect.is_crossed(l))
                || self.marks.iter().enumerate().any(|(i, m)| i != mark && m.is_crossed(l))
        });
        !on_leader && !leads_over && (level == Level::Leaders || !self.soft.iter().any(|s| s.meets(rect)))
    }

    /// Around its point, the nearest gap first.
    fn beside(&self, index: usize, (w, h): (f64, f64), level: Level) -> Option<Placed> {
        let mark = &self.marks[index];
        let (x, y) = mark.centre();
        GAPS.iter().find_map(|gap| {
            DIRECTIONS.iter().find_map(|direction| {
                let (sin, cos) = (f64::from(*direction) * std::f64::consts::TAU / 16.0).sin_cos();
                // On the rectangle of centres whose labels touch the point's surroundings.
                let out = cos.abs().max(sin.abs());
                let centre =
                    (x + cos / out * (mark.w / 2.0 + gap + w / 2.0), y - sin / out * (mark.h / 2.0 + gap + h / 2.0));
                let new = self.candidate(mark, Rect::around(centre, w, h));
                self.allows(&new, index, level).then_some(new)
            })
        })
    }

    /// The nearest free place of the frame.
    fn anywhere(&self, index: usize, (w, h): (f64, f64), level: Level) -> Option<Placed> {
        let mark = &self.marks[index];
        let (x, y) = mark.centre();
        let mut best: Option<(f64, Placed)> = None;
        let steps = |length: f64| (0..=(length / STEP).max(0.0) as usize).map(|i| i as f64 * STEP);
        for top in steps(self.frame.h - h) {
            for left in steps(self.frame.w - w) {
                let rect = Rect { x: self.frame.x + left, y: self.frame.y + top, w, h };
                let near = rect.nearest((x, y));
                let distance = (near.0 - x).hypot(near.1 - y);
                if best.is_some_and(|(least, _)| least <= distance) {
                    continue;
                }
                let new = self.candidate(mark, rect);
                if self.allows(&new, index, level) {
                    best = Some((distance, new));
                }
            }
        }
        best.map(|(_, new)| new)
    }
}

/// Places a label of `sizes[i]` for each `marks[i]` inside `frame`, if possible not over `soft` (marks without sizes are
/// obstacles only). With `anywhere` a label may go far from its point, where a leader finds it. None: there is no room.
/// The same input gives the same places.
pub fn place(marks: &[Rect], soft: &[Rect], sizes: &[(f64, f64)], frame: Rect, anywhere: bool) -> Vec<Option<Placed>> {
    let mut scene = Scene { marks, soft, frame, placed: Vec::new() };
    let mut out = vec![None; sizes.len()];
    let crowd = |i: usize| {
        let (x, y) = marks[i].centre();
        let near = |m: &&Rect| (m.centre().0 - x).hypot(m.centre().1 - y) < 60.0;
        marks.iter().filter(near).count()
    };
    // Those with most neighbours choose first.
    let mut order: Vec<usize> = (0..sizes.len().min(marks.len())).collect();
    order.sort_by_key(|i| (std::cmp::Reverse(crowd(*i)), *i));
    for i in order {
        let levels = [Level::Clean, Level::Leaders];
        let near = || levels.iter().find_map(|level| scene.beside(i, sizes[i], *level));
        let far = || {
            let levels = [Level::Leaders, Level::Hard];
            levels.iter().find_map(|level| scene.anywhere(i, sizes[i], *level)).filter(|_| anywhere)
        };
        if let Some(new) = near().or_else(far) {
            scene.placed.push(new);
            out[i] = Some(new);
        }
    }
    out
}

/// Spreads labels of height `step` along a line from `from` to `to`, each as near to its wish as the others allow; where they
/// do not fit, they stand closer than `step`. Returns their centres.
pub fn spread(wishes: &[f64], step: f64, from: f64, to: f64) -> Vec<f64> {
    let mut order: Vec<usize> = (0..wishes.len()).collect();
    order.sort_by(|a, b| wishes[*a].total_cmp(&wishes[*b]).then(a.cmp(b)));
    let step = step.min((to - from) / wishes.len().max(1) as f64);
    let mut at: Vec<f64> = order.iter().map(|i| wishes[*i].clamp(from + step / 2.0, to - step / 2.0)).collect();
    for i in 1..at.len() {
        at[i] = at[i].max(at[i - 1] + step);
    }
    let mut end = to - step / 2.0;
    for y in at.iter_mut().rev() {
        *y = y.min(end);
        end = *y - step;
    }
    let mut out = vec![0.0; wishes.len()];
    order.iter().zip(at).for_each(|(i, y)| out[*i] = y);
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FRAME: Rect = Rect { x: 64.0, y: 12.0, w: 680.0, h: 360.0 };

    fn marks(points: &[(f64, f64)]) -> Vec<Rect> {
        let at = |(x, y): &(f64, f64)| (FRAME.x + x * FRAME.w, FRAME.y + y * FRAME.h);
        points.iter().map(|p| Rect::around(at(p), 11.0, 11.0)).collect()
    }

    fn check(marks: &[Rect], placed: &[Option<Placed>]) {
        let rects: Vec<Rect> = placed.iter().flatten().map(|p| p.rect).collect();
        for (i, a) in rects.iter().enumerate() {
            assert!(a.lies_in(&FRAME), "{a:?} leaves the frame");
            assert!(!rects[..i].iter().any(|b| a.meets(b)), "two labels meet at {a:?}");
            assert!(!marks.iter().any(|m| a.meets(m)), "a label lies on a point at {a:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn labels_never_meet(
            points in prop::collection::vec((0.0..1.0f64, 0.0..1.0f64, 1usize..40), 1..40),
            squeeze in prop::sample::select(vec![1.0, 0.3, 0.05, 0.0]),
        ) {
            let near: Vec<(f64, f64)> = points.iter().map(|p| (0.5 + (p.0 - 0.5) * squeeze, 0.5 + (p.1 - 0.5) * squeeze)).collect();
            let marks = marks(&near);
            let names: Vec<(f64, f64)> = points.iter().map(|p| (p.2 as f64 * 7.2 + 4.0, 15.0)).collect();
            check(&marks, &place(&marks, &[], &names, FRAME, false));
            // Numbers always find a place.
            let numbers = vec![(18.4, 15.0); points.len()];
            let placed = place(&marks, &[], &numbers, FRAME, true);
            prop_assert!(placed.iter().all(Option::is_some));
            check(&marks, &placed);
        }

        #[test]
        fn spread_labels_keep_their_distance(wishes in prop::collection::vec(-50.0..450.0f64, 0..40), height in 100.0..700.0f64) {
            let at = spread(&wishes, 15.0, 0.0, height);
            let least = 15f64.min(height / wishes.len().max(1) as f64) - 1e-6;
            let mut sorted = at.clone();
            sorted.sort_by(f64::total_cmp);
            prop_assert!(sorted.windows(2).all(|w| w[1] - w[0] >= least), "{sorted:?}");
            prop_assert!(sorted.iter().all(|y| *y >= -1e-6 && *y <= height + 1e-6));
        }
    }

    #[test]
    fn a_lonely_label_stands_right_of_its_point() {
        let marks = marks(&[(0.5, 0.5)]);
        let placed = place(&marks, &[], &[(60.0, 15.0)], FRAME, false)[0].unwrap();
        assert!(placed.leader.is_none() && placed.rect.x > marks[0].right() && placed.rect.x < marks[0].right() + 4.0);
    }

    #[test]
    fn intervals_are_left_free_where_there_is_room() {
        let marks = marks(&[(0.5, 0.5)]);
        let bar = Rect { x: marks[0].right(), y: FRAME.y, w: 30.0, h: FRAME.h };
        let placed = place(&marks, &[bar], &[(60.0, 15.0)], FRAME, false)[0].unwrap();
        assert!(!placed.rect.meets(&bar));
    }
}
