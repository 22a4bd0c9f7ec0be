//! A terminal with `kiai` on it, as a person has one.

use std::fs::File;
use std::io::Write;
use std::process::Child;
use std::process::Command;
use std::time::Duration;
use std::time::Instant;

use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

use crate::kiai::Kiai;
use crate::stream::Stream;

const DEADLINE: Duration = Duration::from_secs(300);

/// Our side of the terminal.
pub struct Terminal {
    keyboard: File,
    screen: Stream,
    child: Child,
    deadline: Instant,
}

impl Terminal {
    /// Starts `kiai ARGUMENTS` on a new terminal of `rows` by `columns`.
    pub fn start(kiai: &Kiai, arguments: &[&str], rows: u16, columns: u16) -> Terminal {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = rustix::pty::openpt(flags).unwrap();
        rustix::pty::grantpt(&master).unwrap();
        rustix::pty::unlockpt(&master).unwrap();
        let name = rustix::pty::ptsname(&master, Vec::new()).unwrap();
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let line = File::from(rustix::fs::open(name, flags, Mode::empty()).unwrap());
        rustix::termios::tcsetwinsize(&master, size(rows, columns)).unwrap();

        // Its own session with this terminal, so that a new size is signalled to it.
        let inner = kiai.command(arguments);
        let mut command = Command::new("setsid");
        command.args(["--ctty", "--wait", "kiai"]).args(arguments);
        command.envs(inner.get_envs().filter_map(|(key, value)| Some((key, value?))));
        command.stdin(line.try_clone().unwrap()).stdout(line.try_clone().unwrap()).stderr(line);
        let child = command.spawn().unwrap();
        let keyboard = File::from(master);
        let screen = Stream::of(keyboard.try_clone().unwrap());
        Terminal { keyboard, screen, child, deadline: Instant::now() + DEADLINE }
    }

    /// Types `text`.
    pub fn type_in(&mut self, text: &str) {
        self.keyboard.write_all(text.as_bytes()).unwrap();
    }

    /// Changes the size of the window.
    pub fn resize(&self, rows: u16, columns: u16) {
        rustix::termios::tcsetwinsize(&self.keyboard, size(rows, columns)).unwrap();
    }

    /// Waits until `text` is on the screen; everything that was shown.
    pub fn until(&self, text: &str) -> String {
        self.screen.until(text, self.deadline)
    }

    /// Waits for the end; the exit status and everything that was shown.
    pub fn finish(mut self) -> (Option<i32>, String) {
        let screen = self.screen.to_end(self.deadline);
        let screen = String::from_utf8_lossy(&screen).into_owned();
        assert!(Instant::now() < self.deadline, "the terminal stays open: {screen}");
        (self.child.wait().unwrap().code(), screen)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn size(rows: u16, columns: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}
