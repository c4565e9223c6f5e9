//! A bound on a card's memory, within which what was freed serves what comes next: a driver that allocates waits for all kernels.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::runner::{Arg, Product, Runner, Shape};
use super::source::Unit;
use crate::device::Precision;
use crate::error::{Error, Result};

/// A runner that allocates at most so much of another's memory.
pub struct Memory<'r> {
    runner: Box<dyn Runner + Send + 'r>,
    limit: usize,
    blocks: Mutex<Blocks>,
}

#[derive(Default)]
struct Blocks {
    /// Bytes of those in use, by address, and of all together.
    used: HashMap<u64, usize>,
    taken: usize,
    /// Addresses of those that were freed, by size.
    spare: BTreeMap<usize, Vec<u64>>,
    kept: usize,
}

/// Small sizes are rounded up to multiples of this; others to what drivers hand out, pages of 2 MiB.
const STEP: usize = 256;
pub const LARGE: usize = 1 << 20;
pub const PAGE: usize = 2 << 20;
/// One in so many bytes is left to others.
const RESERVE: usize = 16;
/// What is lost where a block serves a smaller array: a share of one in so many.
pub const SLACK: usize = 8;

/// What an array of so many bytes takes.
pub fn taken(bytes: usize) -> usize {
    let step = if bytes < LARGE { STEP } else { PAGE };
    bytes.max(1).checked_next_multiple_of(step).unwrap_or(usize::MAX)
}

impl<'r> Memory<'r> {
    /// At most what is free now but for a little: compiled kernels take some too, and so do libraries.
    pub fn new(runner: impl Runner + Send + 'r, limit: Option<usize>) -> Result<Memory<'r>> {
        let room = runner.room()?;
        let limit = limit.unwrap_or(usize::MAX).min(room - room / RESERVE);
        Ok(Memory { limit, runner: Box::new(runner), blocks: Mutex::default() })
    }

    fn blocks(&self) -> MutexGuard<'_, Blocks> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Blocks {
    /// Gives back what was freed, the largest first, until it is no more than `most` bytes.
    fn shrink(&mut self, runner: &dyn Runner, most: usize) {
        while self.kept > most
            && let Some((&size, places)) = self.spare.iter_mut().next_back()
        {
            if let Some(at) = places.pop() {
                runner.free(at);
                self.kept -= size;
            }
            if places.is_empty() {
                self.spare.remove(&size);
            }
        }
    }

    /// A block that was freed, at most [`SLACK`] larger.
    fn reuse(&mut self, bytes: usize) -> Option<(u64, usize)> {
        let (&size, places) = self.spare.range_mut(bytes..=bytes.saturating_add(bytes / SLACK)).next()?;
        let at = places.pop()?;
        if places.is_empty() {
            self.spare.remove(&size);
        }
        self.kept -= size;
        Some((at, size))
    }

    fn give_back(&mut self, runner: &dyn Runner) {
        std::mem::take(&mut self.spare).into_values().flatten().for_each(|at| runner.free(at));
        self.kept = 0;
    }
}

impl Runner for Memory<'_> {
    fn room(&self) -> Result<usize> {
        Ok(self.limit.saturating_sub(self.blocks().taken))
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        let mut blocks = self.blocks();
        let size = taken(bytes);
        let (at, size) = match blocks.reuse(size) {
            Some(found) => found,
            None => {
                let left = self.limit.saturating_sub(blocks.taken);
                if size > left {
                    let message = format!(
                        "an array of {bytes} bytes: of the {} of the card that may be used {left} are left",
                        self.limit
                    );
                    return Err(Error::limits(message).help("raise --vram, or use --device cpu"));
                }
                blocks.shrink(self.runner.as_ref(), left - size);
                let at = match self.runner.allocate(size) {
                    // Free, but in pieces that are too small.
                    Err(_) if blocks.kept > 0 => {
                        blocks.give_back(self.runner.as_ref());
                        self.runner.allocate(size)?
                    }
                    at => at?,
                };
                (at, size)
            }
        };
        blocks.taken += size;
        blocks.used.insert(at, size);
        Ok(at)
    }

    fn free(&self, at: u64) {
        let mut blocks = self.blocks();
        if let Some(size) = blocks.used.remove(&at) {
            blocks.taken -= size;
            blocks.kept += size;
            blocks.spare.entry(size).or_default().push(at);
        }
    }

    fn upload(&self, at: u64, bytes: &[u8]) -> Result<()> {
        self.runner.upload(at, bytes)
    }

    fn download(&self, at: u64, bytes: &mut [u8]) -> Result<()> {
        self.runner.download(at, bytes)
    }

    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        self.runner.copy(from, to, bytes)
    }

    unsafe fn launch(&self, unit: &Unit, kernel: &str, shape: Shape, args: &[Arg]) -> Result<()> {
        // SAFETY: the caller's word.
        unsafe { self.runner.launch(unit, kernel, shape, args) }
    }

    fn finish(&self) -> Result<()> {
        self.runner.finish()
    }

    fn precision(&self) -> Precision {
        self.runner.precision()
    }

    unsafe fn multiply(&self, product: &Product) -> Result<()> {
        // SAFETY: the caller's word.
        unsafe { self.runner.multiply(product) }
    }

    fn factors(&self) -> bool {
        self.runner.factors()
    }

    unsafe fn cholesky(&self, at: u64, n: usize, work: &dyn Runner) -> Result<Result<(), usize>> {
        // SAFETY: the caller's word.
        unsafe { self.runner.cholesky(at, n, work) }
    }
}

impl Drop for Memory<'_> {
    fn drop(&mut self) {
        let blocks = self.blocks.get_mut().unwrap_or_else(PoisonError::into_inner);
        blocks.give_back(self.runner.as_ref());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::device::cuda::Buffer;

    /// Addresses that name nothing, and what was asked for.
    #[derive(Default)]
    struct Counter(Mutex<(u64, Vec<usize>, usize)>);

    impl Runner for &Counter {
        fn room(&self) -> Result<usize> {
            Ok(10_000)
        }
        fn allocate(&self, bytes: usize) -> Result<u64> {
            let mut all = self.0.lock().unwrap();
            all.0 += 1;
            all.1.push(bytes);
            Ok(all.0)
        }
        fn free(&self, _: u64) {
            self.0.lock().unwrap().2 += 1;
        }
        fn upload(&self, _: u64, _: &[u8]) -> Result<()> {
            Ok(())
        }
        fn download(&self, _: u64, _: &mut [u8]) -> Result<()> {
            Ok(())
        }
        fn copy(&self, _: u64, _: u64, _: usize) -> Result<()> {
            Ok(())
        }
        unsafe fn launch(&self, _: &Unit, _: &str, _: Shape, _: &[Arg]) -> Result<()> {
            Ok(())
        }
        fn finish(&self) -> Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_was_freed_serves_what_comes_next_and_the_bound_holds() {
        let counter = Counter::default();
        let memory = Memory::new(&counter, Some(4096)).unwrap();
        assert_eq!(memory.room().unwrap(), 4096);
        drop(Buffer::new(&memory, 2000).unwrap());
        let again = Buffer::new(&memory, 1900).unwrap();
        assert_eq!((counter.0.lock().unwrap().1.clone(), memory.room().unwrap()), (vec![2048], 2048));
        // Too large a block for this one: a new one.
        drop(again);
        let small = Buffer::new(&memory, 100).unwrap();
        assert_eq!(counter.0.lock().unwrap().1, [2048, 256]);
        // What is kept makes room.
        let large = Buffer::new(&memory, 3000).unwrap();
        assert_eq!((counter.0.lock().unwrap().2, memory.room().unwrap()), (1, 4096 - 256 - 3072));
        let error = Buffer::new(&memory, 1000).err().unwrap().to_string();
        assert!(error.contains("an array of 1000 bytes") && error.contains("768 are left"), "{error}");
        drop((small, large));
        drop(memory);
        assert_eq!(counter.0.lock().unwrap().2, 3);
        // No more than there is, less what others may need.
        assert_eq!(Memory::new(&counter, Some(1 << 40)).unwrap().room().unwrap(), 10_000 - 10_000 / RESERVE);
    }
}
