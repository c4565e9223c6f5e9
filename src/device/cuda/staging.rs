//! Memory of the host that a card copies from and to by itself: the host goes on with the next part, or with something else.

use std::ffi::c_void;
use std::ptr;

use cudarc::driver::sys::{self, CUevent};

use super::driver::check;
use crate::error::Result;

/// Bytes that a plain copy takes to the card as fast.
pub const SMALL: usize = 64 << 10;
/// Bytes of a half: while a card has one, the host has the other.
const HALF: usize = 16 << 20;
/// Threads that copy a whole half, each a share: one alone is slower than a card's bus.
const THREADS: usize = 4;

/// Used by one thread at a time, while the card's context is current, and dropped so.
pub struct Staging {
    halves: [Half; 2],
    next: usize,
}

struct Half {
    at: *mut u8,
    /// Comes when the card is done with it.
    done: CUevent,
}

// SAFETY: both are handles of the driver, which any thread may use once the context is current there.
unsafe impl Send for Half {}

impl Staging {
    /// Errors: the system does not let go of so much memory.
    pub fn new() -> Result<Staging> {
        Ok(Staging { halves: [Half::new()?, Half::new()?], next: 0 })
    }

    /// Returns when `bytes` are no longer needed; they come to `at` in order with the kernels.
    ///
    /// # Safety
    /// There is room for them on the card.
    pub unsafe fn upload(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        for (n, part) in bytes.chunks(HALF).enumerate() {
            let half = self.take();
            half.wait()?;
            // SAFETY: the half is as long as the longest part, and nobody has it.
            side_by_side(part, unsafe { std::slice::from_raw_parts_mut(half.at, part.len()) });
            let to = at + (n * HALF) as u64;
            // SAFETY: the caller's word; the half stays until the event has come.
            let code = unsafe { sys::cuMemcpyHtoDAsync_v2(to, half.at as *const c_void, part.len(), ptr::null_mut()) };
            check(code, "upload")?;
            half.begun()?;
        }
        Ok(())
    }

    /// Waits for all kernels before.
    ///
    /// # Safety
    /// There are as many bytes at `at` on the card.
    pub unsafe fn download(&mut self, at: u64, bytes: &mut [u8]) -> Result<()> {
        let mut before: Option<(&Half, &mut [u8])> = None;
        for (n, part) in bytes.chunks_mut(HALF).enumerate() {
            let half = &self.halves[n % 2];
            half.wait()?;
            let from = at + (n * HALF) as u64;
            // SAFETY: the caller's word; nobody else has the half until it is copied from below.
            let code = unsafe { sys::cuMemcpyDtoHAsync_v2(half.at.cast(), from, part.len(), ptr::null_mut()) };
            check(code, "download")?;
            half.begun()?;
            if let Some((half, part)) = before.replace((half, part)) {
                half.bring(part)?;
            }
        }
        before.map_or(Ok(()), |(half, part)| half.bring(part))
    }

    fn take(&mut self) -> &Half {
        self.next = 1 - self.next;
        &self.halves[self.next]
    }
}

impl Half {
    fn new() -> Result<Half> {
        let mut half = Half { at: ptr::null_mut(), done: ptr::null_mut() };
        let mut at: *mut c_void = ptr::null_mut();
        // SAFETY: each writes one handle; `Drop` gives back what was had.
        unsafe {
            check(sys::cuMemAllocHost_v2(&mut at, HALF), "allocate memory of the host")?;
            half.at = at.cast();
            check(sys::cuEventCreate(&mut half.done, 0), "make an event")?;
        }
        Ok(half)
    }

    /// Until the card is done with it.
    fn wait(&self) -> Result<()> {
        // SAFETY: the event is there; one that nobody asked for has come.
        check(unsafe { sys::cuEventSynchronize(self.done) }, "wait for a copy")
    }

    fn begun(&self) -> Result<()> {
        // SAFETY: the event is there.
        check(unsafe { sys::cuEventRecord(self.done, ptr::null_mut()) }, "ask for an event")
    }

    fn bring(&self, to: &mut [u8]) -> Result<()> {
        self.wait()?;
        // SAFETY: the half is as long, and the card is done with it.
        side_by_side(unsafe { std::slice::from_raw_parts(self.at, to.len()) }, to);
        Ok(())
    }
}

/// Not by the threads of a pool: one that waits there takes other work, and may come back here.
fn side_by_side(from: &[u8], to: &mut [u8]) {
    let share = to.len().div_ceil(THREADS).max(SMALL);
    std::thread::scope(|scope| {
        let mut parts = to.chunks_mut(share).zip(from.chunks(share));
        let own = parts.next();
        for (to, from) in parts {
            scope.spawn(|| to.copy_from_slice(from));
        }
        if let Some((to, from)) = own {
            to.copy_from_slice(from);
        }
    });
}

impl Drop for Half {
    fn drop(&mut self) {
        let _ = self.done.is_null() || self.wait().is_err();
        // SAFETY: `new` made them, and the card is done with them.
        unsafe {
            if !self.done.is_null() {
                sys::cuEventDestroy_v2(self.done);
            }
            if !self.at.is_null() {
                sys::cuMemFreeHost(self.at.cast());
            }
        }
    }
}
