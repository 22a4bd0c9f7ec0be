//! How the microVM ended, for everybody who waits on it.

use kiai_vmm::Ending;
use kiai_vmm::VmHandle;
use tokio::sync::watch;

/// A microVM's end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// How.
    pub ending: Ending,
    /// We had asked for it.
    pub expected: bool,
    /// The last lines of the guest's console.
    pub console: String,
}

impl Ended {
    /// For people: what happened, and what the guest said last.
    pub fn report(&self) -> String {
        format!(
            "the microVM ended: {}\n\nthe guest's console ended with:\n{}\n",
            self.ending,
            tail(&self.console)
        )
    }
}

/// The last lines of a console, few enough to read.
pub(super) fn tail(console: &str) -> String {
    const LINES: usize = 40;
    let lines: Vec<&str> = console.lines().map(str::trim_end).collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}

/// The end to come. Clones see the same.
#[derive(Clone)]
pub struct Endings {
    end: watch::Receiver<Option<Ended>>,
    expected: std::sync::Arc<std::sync::atomic::AtomicBool>,
}

impl Endings {
    /// Waits for the machine's end on a thread of its own.
    pub(super) fn of(vm: &VmHandle) -> std::io::Result<Self> {
        let (told, end) = watch::channel(None);
        let expected = std::sync::Arc::<std::sync::atomic::AtomicBool>::default();
        let vm = vm.clone();
        let asked = expected.clone();
        std::thread::Builder::new().name("vm-end".into()).spawn(move || {
            let ending = vm.wait();
            let expected = ending == Ending::Stopped || asked.load(std::sync::atomic::Ordering::Acquire);
            let console = vm.console_tail();
            told.send_replace(Some(Ended { ending, expected, console }));
            // A guest that ended by itself leaves its devices: their going ends the streams.
            vm.stop();
        })?;
        Ok(Self { end, expected })
    }

    /// From here on an end is what was asked for.
    pub(super) fn expect(&self) {
        self.expected.store(true, std::sync::atomic::Ordering::Release);
    }

    /// The end, if it has come.
    pub fn ended(&self) -> Option<Ended> {
        self.end.borrow().clone()
    }

    /// Waits for the end.
    pub async fn wait(&self) -> Ended {
        let mut end = self.end.clone();
        match end.wait_for(Option::is_some).await.map(|ended| ended.clone()) {
            Ok(Some(ended)) => ended,
            // The thread that tells went away without a word; nobody can say more.
            _ => Ended { ending: Ending::Stopped, expected: false, console: String::new() },
        }
    }
}
