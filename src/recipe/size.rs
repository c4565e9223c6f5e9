//! What choices weigh.

use super::Choice;

/// Bytes of weights and how many there are. Headers and padding are the container's business.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    pub bytes: u64,
    pub weights: u64,
}

impl Size {
    /// 0 for nothing.
    pub fn bits_per_weight(self) -> f64 {
        if self.weights == 0 { 0.0 } else { self.bytes as f64 * 8.0 / self.weights as f64 }
    }

    pub fn total<'a>(choices: impl IntoIterator<Item = &'a Choice>) -> Size {
        choices.into_iter().fold(Size::default(), |sum, choice| Size {
            bytes: sum.bytes.saturating_add(choice.size.bytes),
            weights: sum.weights.saturating_add(choice.size.weights),
        })
    }
}
