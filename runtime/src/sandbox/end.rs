//! The end of the microVM, for every task that waits for it.

use kiai_vmm::Ending;
use kiai_vmm::VmHandle;
use tokio::sync::watch;

/// How a microVM ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxEnd {
    /// The end that the machine reports.
    pub ending: Ending,
    /// The end was asked for.
    pub expected: bool,
    /// The last lines of the guest's console.
    pub console: String,
}

impl SandboxEnd {
    /// A report for people: how the microVM ended, and the last lines of the guest's console.
    pub fn report(&self) -> String {
        format!(
            "the microVM ended: {}\n\nthe guest's console ended with:\n{}\n",
            self.ending,
            tail(&self.console)
        )
    }
}

/// The last lines of a console, few enough to read. The line in which the kernel says why it panicked comes first if
/// the trace that follows it is longer than that.
pub(super) fn tail(console: &str) -> String {
    const LINES: usize = 40;
    let lines: Vec<&str> = console.lines().map(str::trim_end).collect();
    let shown = lines.len().saturating_sub(LINES);
    let last = lines[shown..].join("\n");
    match lines.iter().rposition(|line| line.contains("Kernel panic - ")) {
        Some(reason) if reason < shown => format!("{}\n…\n{last}", lines[reason]),
        _ => last,
    }
}

/// Tells when and how the microVM ends. Clones tell the same.
#[derive(Clone)]
pub struct EndWatch {
    end: std::sync::Arc<watch::Sender<Option<SandboxEnd>>>,
    expected: std::sync::Arc<std::sync::atomic::AtomicBool>,
}

impl EndWatch {
    /// Watches a machine, on a thread of its own.
    pub(super) fn of(vm: &VmHandle) -> std::io::Result<Self> {
        let watched = Self { end: watch::channel(None).0.into(), expected: std::sync::Arc::default() };
        let (vm, end) = (vm.clone(), watched.clone());
        std::thread::Builder::new().name("vm-end".into()).spawn(move || {
            let ending = vm.wait();
            end.report(ending, &vm);
            // A guest that ended by itself leaves its devices running; stopping them ends the streams.
            vm.stop();
        })?;
        Ok(watched)
    }

    /// A machine that was to stop has ended, whether its threads have or not.
    pub(super) fn abandon(&self, vm: &VmHandle) {
        self.report(Ending::Stopped, vm);
    }

    /// The first end counts.
    fn report(&self, ending: Ending, vm: &VmHandle) {
        let asked = self.expected.load(std::sync::atomic::Ordering::Acquire);
        let expected = ending == Ending::Stopped || asked;
        let console = vm.console_tail();
        self.end.send_if_modified(|end| {
            let first = end.is_none();
            end.get_or_insert(SandboxEnd { ending, expected, console });
            first
        });
    }

    /// Marks an end from now on as one that was asked for.
    pub(super) fn expect(&self) {
        self.expected.store(true, std::sync::atomic::Ordering::Release);
    }

    /// How the microVM ended; none while it runs.
    pub fn ended(&self) -> Option<SandboxEnd> {
        self.end.borrow().clone()
    }

    /// Waits for the microVM's end.
    pub async fn wait(&self) -> SandboxEnd {
        let mut end = self.end.subscribe();
        match end.wait_for(Option::is_some).await.map(|ended| ended.clone()) {
            Ok(Some(ended)) => ended,
            // Cannot be while `self` holds the sender.
            _ => SandboxEnd { ending: Ending::Stopped, expected: false, console: String::new() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REASON: &str = "[    3.1] Kernel panic - not syncing: sysrq triggered crash";

    fn console(trace: usize) -> String {
        let trace = (0..trace).map(|line| format!("[    3.2]  ? function_{line}\r\n"));
        format!("[    0.0] Linux\r\n{REASON}\r\n{}", trace.collect::<String>())
    }

    #[test]
    fn the_reason_of_a_panic_stands_before_a_trace_that_is_longer_than_what_is_shown() {
        let shown = tail(&console(60));
        assert!(shown.starts_with(&format!("{REASON}\n…\n[    3.2]  ? function_20\n")), "{shown}");
        assert!(shown.ends_with("function_59"));
    }

    #[test]
    fn the_reason_of_a_panic_is_shown_once() {
        let shown = tail(&console(10));
        assert_eq!(shown.matches(REASON).count(), 1, "{shown}");
        assert!(shown.starts_with("[    0.0] Linux\n"));
    }

    #[test]
    fn a_console_without_a_panic_is_shown_by_its_end() {
        let lines: Vec<String> = (0..50).map(|line| line.to_string()).collect();
        assert_eq!(tail(&lines.join("\n")), lines[10..].join("\n"));
        assert_eq!(tail(""), "");
    }
}
