//! Seeded choices that count how many there were.

use crate::engine::sample::Random;

use super::Split;

/// Makes equally likely choices and adds up the logarithm of the number of options: minus the log-likelihood of what was
/// generated, so nobody can predict it better on average.
pub struct Choices {
    random: Random,
    nats: f64,
    split: Split,
}

impl Choices {
    pub fn new(seed: u64, split: Split) -> Choices {
        Choices { random: Random::new(seed), nats: 0.0, split }
    }

    pub fn nats(&self) -> f64 {
        self.nats
    }

    /// 0 to n - 1.
    pub fn below(&mut self, n: usize) -> usize {
        let n = n.max(1);
        self.nats += (n as f64).ln();
        ((u128::from(self.random.next()) * n as u128) >> 64) as usize
    }

    /// Both ends included.
    pub fn between(&mut self, low: usize, high: usize) -> usize {
        low + self.below(high + 1 - low)
    }

    pub fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }

    /// `count` different elements in random order.
    pub fn distinct<T: Clone>(&mut self, list: &[T], count: usize) -> Vec<T> {
        let mut rest = list.to_vec();
        (0..count.min(list.len())).map(|_| rest.swap_remove(self.below(rest.len()))).collect()
    }

    /// Draws again until `accept`; what was thrown away is not counted.
    pub fn until<T>(&mut self, mut draw: impl FnMut(&mut Choices) -> T, mut accept: impl FnMut(&T) -> bool) -> T {
        let before = self.nats;
        loop {
            let drawn = draw(self);
            if accept(&drawn) {
                return drawn;
            }
            self.nats = before;
        }
    }

    /// An invented word of this many syllables. No word occurs in two splits.
    pub fn word(&mut self, syllables: usize) -> String {
        let split = self.split;
        let list = super::words::syllables();
        self.until(|c| (0..syllables).map(|_| *c.pick(list)).collect(), |word: &String| split.holds(word))
    }

    /// One of some fifty syllables, the same in all splits: too few to be divided.
    pub fn syllable(&mut self) -> String {
        let list = super::words::syllables();
        self.until(|c| (*c.pick(list)).to_owned(), |syllable| Split::Train.holds(syllable))
    }

    /// An invented name.
    pub fn name(&mut self) -> String {
        let word = self.word(3);
        word[..1].to_uppercase() + &word[1..]
    }
}
