//! One pass through the layers: what all of them are handed.

use super::Engine;
use super::tap::Tap;

pub struct Pass<'a, 'e> {
    pub engine: &'a Engine<'e>,
    pub tap: &'a mut dyn Tap,
    spare: Vec<Vec<f32>>,
}

impl<'a, 'e> Pass<'a, 'e> {
    pub fn new(engine: &'a Engine<'e>, tap: &'a mut dyn Tap) -> Self {
        Pass { engine, tap, spare: Vec::new() }
    }

    /// `n` values that mean nothing: all of them must be written. What a layer gave back serves the next: a large vector that
    /// is new costs the system as much as some of what is computed in it.
    pub fn take(&mut self, n: usize) -> Vec<f32> {
        let capacity = |i: &usize| self.spare[*i].capacity();
        let fits = (0..self.spare.len()).filter(|i| capacity(i) >= n).min_by_key(capacity);
        let mut out = fits.map_or_else(Vec::new, |i| self.spare.swap_remove(i));
        out.resize(n, 0.0);
        out
    }

    pub fn give(&mut self, used: Vec<f32>) {
        self.spare.push(used);
    }
}
