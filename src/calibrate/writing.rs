//! Statistics on their way to the file, while the next are gathered.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Builder, Scope};

use super::collect::Sums;
use super::layout::{Quantity, Split};
use super::stats::About;
use super::write::Writer;
use crate::error::{At, Error, Result};

enum Message {
    Put(usize, Split, Sums),
    /// Tell when all before is written.
    Settle(SyncSender<Result<()>>),
}

/// A thread that writes. It holds the sums of one site; whoever brings the next waits for it.
pub struct Writing(SyncSender<Message>);

impl Writing {
    /// Errors: there is no thread to be had.
    pub fn start<'s>(scope: &'s Scope<'s, '_>, writer: &'s Writer, about: &'s About) -> Result<Writing> {
        let (send, receive) = sync_channel(0);
        let started =
            Builder::new().name("statistics".into()).spawn_scoped(scope, move || run(&receive, writer, about));
        started.map_err(|e| Error::limits(format!("cannot start a thread: {e}")))?;
        Ok(Writing(send))
    }

    /// Errors are those of [`Writing::settle`].
    pub fn put(&self, site: usize, split: Split, sums: Sums) -> Result<()> {
        self.0.send(Message::Put(site, split, sums)).map_err(|_| gone())
    }

    /// Waits until everything is in the file.
    ///
    /// Errors: the first that it met.
    pub fn settle(&self) -> Result<()> {
        let (send, receive) = sync_channel(1);
        self.0.send(Message::Settle(send)).map_err(|_| gone())?;
        receive.recv().map_err(|_| gone())?
    }
}

fn gone() -> Error {
    Error::limits("the thread that writes statistics has ended")
}

fn run(messages: &Receiver<Message>, writer: &Writer, about: &About) {
    let mut went = Ok(());
    for message in messages {
        match message {
            Message::Put(site, split, sums) if went.is_ok() => {
                let mut put = |q| writer.put(site, (split, q), &|out| sums.write(q, out));
                went = Quantity::ALL.into_iter().try_for_each(&mut put).at(|| about.sites[site].key.clone());
            }
            // The file is lost; what is gathered meanwhile too.
            Message::Put(..) => {}
            Message::Settle(told) => {
                // Who asked and went away does not want to know.
                let _ = told.send(std::mem::replace(&mut went, Ok(())));
            }
        }
    }
}
