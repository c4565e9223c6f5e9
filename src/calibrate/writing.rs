//! Statistics on their way to the file, while the next are gathered.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Builder, Scope, ScopedJoinHandle};

use super::collect::Sums;
use super::layout::{Quantity, Split};
use super::stats::About;
use super::write::Writer;
use crate::error::{At, Error, Result};

enum Message {
    Put(usize, Split, Sums),
    /// Tell when all before is written.
    Settle(SyncSender<()>),
}

/// A thread that writes, and ends at the first error. It holds the sums of one site; whoever brings the next waits for it.
pub struct Writing<'s> {
    send: SyncSender<Message>,
    thread: Option<ScopedJoinHandle<'s, Result<()>>>,
}

impl<'s> Writing<'s> {
    /// Errors: there is no thread to be had.
    pub fn start(scope: &'s Scope<'s, '_>, writer: &'s Writer, about: &'s About) -> Result<Writing<'s>> {
        let (send, receive) = sync_channel(0);
        let name = Builder::new().name("statistics".into());
        let thread = name.spawn_scoped(scope, move || run(&receive, writer, about));
        let thread = thread.map_err(|e| Error::limits(format!("cannot start a thread: {e}")))?;
        Ok(Writing { send, thread: Some(thread) })
    }

    /// Errors: what could not be written before.
    pub fn put(&mut self, site: usize, split: Split, sums: Sums) -> Result<()> {
        self.send.send(Message::Put(site, split, sums)).map_err(|_| self.why())
    }

    /// Waits until everything is in the file.
    ///
    /// Errors: what could not be written.
    pub fn settle(&mut self) -> Result<()> {
        let (send, receive) = sync_channel(1);
        self.send.send(Message::Settle(send)).map_err(|_| self.why())?;
        receive.recv().map_err(|_| self.why())
    }

    /// Why the thread has ended.
    fn why(&mut self) -> Error {
        match self.thread.take().map(ScopedJoinHandle::join) {
            Some(Ok(Err(e))) => e,
            _ => Error::limits("the thread that writes statistics has ended"),
        }
    }
}

fn run(messages: &Receiver<Message>, writer: &Writer, about: &About) -> Result<()> {
    for message in messages {
        match message {
            Message::Put(site, split, sums) => {
                let put = |q| writer.put(site, (split, q), &|out| sums.write(q, out));
                Quantity::ALL.into_iter().try_for_each(put).at(|| about.sites[site].key.clone())?;
            }
            // Who asked and went away does not want to know.
            Message::Settle(told) => drop(told.send(())),
        }
    }
    Ok(())
}
