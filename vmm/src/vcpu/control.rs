//! What the vCPUs of a machine have been told, all together, and how the machine ended.
//!
//! ```text
//!              Run                     Pause
//!   parked ───────────► in the guest ─────────► parked
//!      └───────── Stop ──────┴──► ended
//! ```
//! Lock order: `turn`, `books`, a mailbox.

use std::time::Instant;

use super::actor::Cpu;
use super::mailbox::Command;
use super::mailbox::Mailbox;
use super::mailbox::News;
use super::mailbox::Token;
use super::sync::Arc;
use super::sync::Condvar;
use super::sync::Mutex;
use super::sync::mpsc;
use crate::handle::Ending;

type MailboxOf<C> = Mailbox<<C as Cpu>::Question, <C as Cpu>::Kicker>;

/// Shared by the vCPUs' threads and everything that tells them something.
pub(crate) struct Control<C: Cpu> {
    /// Whoever changes whether the machine runs holds it until it is so. No vCPU's thread may ask for it.
    turn: Mutex<()>,
    books: Mutex<Books<C>>,
    over: Condvar,
}

struct Books<C: Cpu> {
    running: bool,
    ending: Option<Ending>,
    /// Of the vCPUs whose threads have not ended.
    mailboxes: Vec<(u8, Arc<MailboxOf<C>>)>,
    /// To whoever waits for vCPUs to park.
    pausing: Option<mpsc::Sender<News>>,
}

impl<C: Cpu> Control<C> {
    /// Of a paused machine without vCPUs.
    pub(crate) fn new() -> Arc<Self> {
        let books = Books { running: false, ending: None, mailboxes: Vec::new(), pausing: None };
        Arc::new(Self { turn: Mutex::new(()), books: Mutex::new(books), over: Condvar::new() })
    }

    /// Lets the vCPUs run. False if the machine has ended.
    pub(crate) fn resume(&self) -> bool {
        let _turn = self.turn.lock();
        let mut books = self.books.lock();
        if books.ending.is_some() {
            return false;
        }
        books.running = true;
        books.mailboxes.iter().for_each(|(_, mailbox)| mailbox.send(Command::Run));
        true
    }

    /// Returns once every vCPU is out of the guest. False if the machine has ended.
    pub(crate) fn pause(&self) -> bool {
        let _turn = self.turn.lock();
        let (sender, news) = mpsc::channel();
        let vcpus = {
            let mut books = self.books.lock();
            if books.ending.is_some() {
                return false;
            }
            books.running = false;
            for (_, mailbox) in &books.mailboxes {
                mailbox.send(Command::Pause(Token(sender.clone())));
            }
            books.pausing = Some(sender);
            books.mailboxes.len()
        };
        let parked = (0..vcpus).all(|_| news.recv() == Ok(News::Parked));
        let mut books = self.books.lock();
        books.pausing = None;
        parked && books.ending.is_none()
    }

    /// Ends the machine for good; the first reason given is the one reported. Callable from a vCPU's thread.
    pub(crate) fn end(&self, ending: Ending) {
        let mut books = self.books.lock();
        if books.ending.is_some() {
            return;
        }
        books.ending = Some(ending);
        books.mailboxes.iter().for_each(|(_, mailbox)| mailbox.send(Command::Stop));
        if let Some(pausing) = books.pausing.take() {
            let _ = pausing.send(News::Ended);
        }
        self.over.notify_all();
    }

    /// Blocks until the machine has ended and no vCPU's thread touches it any more.
    pub(crate) fn wait(&self) -> Ending {
        let mut books = self.books.lock();
        loop {
            match &books.ending {
                Some(ending) if books.mailboxes.is_empty() => return ending.clone(),
                _ => self.over.wait(&mut books),
            }
        }
    }

    /// As [`Control::wait`], but not for ever: at `deadline`, the vCPUs whose threads have not ended.
    pub(crate) fn wait_until(&self, deadline: Instant) -> Vec<u8> {
        let mut books = self.books.lock();
        while !books.mailboxes.is_empty() {
            if self.over.wait_until(&mut books, deadline).timed_out() {
                break;
            }
        }
        books.mailboxes.iter().map(|(id, _)| *id).collect()
    }

    /// How it ended, if it has; otherwise whether it may run.
    pub(crate) fn status(&self) -> Result<bool, Ending> {
        let books = self.books.lock();
        match &books.ending {
            Some(ending) => Err(ending.clone()),
            None => Ok(books.running),
        }
    }

    /// Asks one vCPU, in the guest or not. What was asked is dropped if there is none such (any more).
    pub(crate) fn ask(&self, vcpu: u8, question: C::Question) {
        let books = self.books.lock();
        match books.mailboxes.iter().find(|(id, _)| *id == vcpu) {
            Some((_, mailbox)) => mailbox.send(Command::Ask(question)),
            None => drop(books),
        }
    }

    /// A place for one more vCPU, which does as the others have been told.
    pub(super) fn seat(self: &Arc<Self>, id: u8) -> Seat<C> {
        let mailbox = Arc::new(Mailbox::new());
        let mut books = self.books.lock();
        match (&books.ending, books.running) {
            (Some(_), _) => mailbox.send(Command::Stop),
            (None, true) => mailbox.send(Command::Run),
            (None, false) => {}
        }
        books.mailboxes.push((id, mailbox.clone()));
        Seat { id, control: self.clone(), mailbox, alive: false }
    }
}

/// A vCPU's place in the books, until its thread ends or turns out not to start.
pub(super) struct Seat<C: Cpu> {
    id: u8,
    control: Arc<Control<C>>,
    pub(super) mailbox: Arc<MailboxOf<C>>,
    /// Its thread has started and may not end unless it is told to.
    pub(super) alive: bool,
}

impl<C: Cpu> Seat<C> {
    pub(super) fn end(&self, ending: Ending) {
        self.control.end(ending);
    }
}

impl<C: Cpu> Drop for Seat<C> {
    fn drop(&mut self) {
        if self.alive {
            self.end(Ending::VcpuError(format!("vCPU {}: its thread panicked", self.id)));
        }
        self.mailbox.close();
        let mut books = self.control.books.lock();
        books.mailboxes.retain(|(_, mailbox)| !Arc::ptr_eq(mailbox, &self.mailbox));
        if books.mailboxes.is_empty() {
            self.control.over.notify_all();
        }
    }
}
