//! One vCPU's life: it sleeps or is in the guest, and does what its mailbox says. Nothing here knows KVM.

use super::control::Seat;
use super::mailbox::Command;
use super::mailbox::Kick;
use crate::handle::Ending;

/// What an actor runs.
pub(crate) trait Cpu {
    /// Gets its thread out of [`Cpu::run`].
    type Kicker: Kick;
    /// What it can be asked, with the way for the answer.
    type Question;

    /// The first thing on its thread.
    fn begin(&mut self) -> Result<Self::Kicker, Ending>;
    /// Runs guest code until the thread is kicked (`None`), or the guest is at an end. A kick that comes after
    /// this has returned ends the next run.
    fn run(&mut self) -> Option<Ending>;
    /// It has left the guest, for longer.
    fn parked(&mut self);
    /// Answers.
    fn answer(&mut self, question: Self::Question);
}

/// A vCPU that is yet to live. Fields in the order of their end: no kick may come when the CPU is gone.
pub(super) struct Actor<C: Cpu> {
    seat: Seat<C>,
    cpu: C,
}

impl<C: Cpu> Actor<C> {
    pub(super) fn new(seat: Seat<C>, cpu: C) -> Self {
        Self { seat, cpu }
    }

    /// Returns when it has been told to stop. To be called on a thread of its own.
    pub(super) fn live(mut self) {
        self.seat.alive = true;
        match self.cpu.begin() {
            Ok(kicker) => self.seat.mailbox.set_kicker(kicker),
            Err(ending) => self.seat.end(ending),
        }
        self.obey();
        self.seat.alive = false;
    }

    fn obey(&mut self) {
        let mut running = false;
        loop {
            let command = match self.next(running) {
                Ok(command) => command,
                // It goes on to sleep, and is told to stop.
                Err(ending) => {
                    running = false;
                    self.seat.end(ending);
                    continue;
                }
            };
            match command {
                Command::Run => running = true,
                Command::Pause(token) => {
                    if std::mem::take(&mut running) {
                        self.cpu.parked();
                    }
                    drop(token);
                }
                Command::Ask(question) => self.cpu.answer(question),
                Command::Stop => return,
            }
        }
    }

    /// The next command, or how the guest ended before there was one.
    fn next(&mut self, running: bool) -> Result<Command<C::Question>, Ending> {
        if !running {
            return Ok(self.seat.mailbox.receive());
        }
        loop {
            if let Some(command) = self.seat.mailbox.try_receive() {
                return Ok(command);
            }
            if let Some(ending) = self.cpu.run() {
                return Err(ending);
            }
        }
    }
}
