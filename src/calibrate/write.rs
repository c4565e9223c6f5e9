//! Writes a statistics file, part by part, each in its place.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use super::layout::{self, Part, Quantity, Section};
use super::stats::About;
use crate::container::output::{Output, check_space, publish};
use crate::error::Result;

/// Takes bytes, a piece at a time.
pub type Out<'a> = &'a mut dyn FnMut(&[u8]) -> Result<()>;

/// Bytes that are hashed at a time, enough for all threads.
const PIECE: usize = 16 << 20;

/// A file under a temporary name that only its owner can read, until [`Writer::finish`]. What is never written is zero.
pub struct Writer {
    output: Output,
    about: About,
    sections: Vec<Section>,
    /// Bytes of every part: `[site][part]`.
    places: Vec<BTreeMap<Part, Range<usize>>>,
    /// Where the data begin.
    start: u64,
}

impl Writer {
    /// Claims the temporary file, with what a killed run left in it.
    pub fn open(path: &Path, about: About) -> Result<Writer> {
        let sections = layout::sections(&about.sites, about.gram)?;
        let about = About { hash: blake3::hash(b"").to_hex().to_string(), ..about };
        let start = layout::header(&about, &sections)?.len() as u64;
        let places = layout::index(about.sites.len(), &sections);
        Ok(Writer { output: Output::resume_private(path)?, about, sections, places, start })
    }

    /// Length of the file.
    pub fn bytes(&self) -> u64 {
        self.start + self.sections.last().map_or(0, |s| s.bytes.end as u64)
    }

    /// Begins with nothing but zeros.
    pub fn clear(&self, path: &Path) -> Result<()> {
        self.output.clear()?;
        check_space(path, self.bytes())?;
        self.output.reserve(self.bytes())
    }

    /// Writes the bytes that `produce` hands out, one piece after the other, if the file has such a part.
    pub fn put(&self, site: usize, part: Part, produce: &dyn Fn(Out<'_>) -> Result<()>) -> Result<()> {
        let Some(place) = self.places[site].get(&part) else { return Ok(()) };
        let mut at = self.start + place.start as u64;
        let end = self.start + place.end as u64;
        produce(&mut |bytes| {
            debug_assert!(at + bytes.len() as u64 <= end);
            self.output.write_at(at, bytes)?;
            at += bytes.len() as u64;
            Ok(())
        })
    }

    /// BLAKE3 of some text and of some parts, in the file's order.
    pub fn digest(&self, text: &str, wanted: impl Fn(&Section) -> bool) -> Result<String> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(text.as_bytes());
        let mut buffer = vec![0; PIECE];
        for section in self.sections.iter().filter(|s| wanted(s)) {
            for from in section.bytes.clone().step_by(buffer.len()) {
                let piece = buffer.len().min(section.bytes.end - from);
                self.output.read_at(self.start + from as u64, &mut buffer[..piece])?;
                hasher.update_rayon(&buffer[..piece]);
            }
        }
        Ok(hasher.finalize().to_hex().to_string())
    }

    /// Completes the file and gives it its name.
    pub fn finish(mut self) -> Result<About> {
        let description = layout::description(&self.about)?;
        self.about.hash = self.digest(layout::covered(&description), |s| s.part.1 != Quantity::Gram)?;
        self.output.write_at(0, &layout::header(&self.about, &self.sections)?)?;
        publish(vec![self.output])?;
        Ok(self.about)
    }
}
