//! The kernel command line, as a list of words with the reason for each.

use super::LoadError;
use crate::layout;

/// Words every guest gets.
const BASE: &[&str] = &[
    // The kernel log goes to COM1, but only what matters: each character is a VM exit.
    "console=ttyS0",
    "quiet",
    // A panic resets at once, through the keyboard controller port: the VMM sees it as the guest's end.
    "panic=-1",
    "reboot=k",
    // Nothing else is on the bus or behind the legacy ports.
    "8250.nr_uarts=1",
    "pci=lastbus=0",
    // The host is trusted for randomness; waiting for jitter entropy costs boot time.
    "random.trust_cpu=on",
    // The TSC is the host's; no watchdog clocksource exists to check it against.
    "tsc=reliable",
    // CPUs come online later. A kernel that boots on one would take the locks out of its instructions, one place of
    // eight thousand after the other, and put them back with the second CPU: six milliseconds each time.
    "noreplace-smp",
    // Who waits for a grace period of RCU (a CPU that comes online, a mount or a namespace that goes) does not wait for
    // three ticks of the timer: 80 ms of a start with four CPUs, and 8 ms with one.
    "rcupdate.rcu_expedited=1",
    "cryptomgr.notests",
    // Memory that is plugged in is for movable pages, so that it can be unplugged again, as long as there is a
    // quarter that is not: page tables and the like need room too.
    "memory_hotplug.online_policy=auto-movable",
];

/// Joins the base, the number of CPUs to start and the caller's words.
pub(crate) fn build(vcpus: u8, extra: &[String]) -> Result<String, LoadError> {
    let mut line = BASE.join(" ");
    line.push_str(&format!(" maxcpus={vcpus}"));
    for word in extra {
        if word.is_empty() || !word.bytes().all(|b| (0x21..0x7f).contains(&b)) {
            return Err(LoadError::CommandLine(format!("{word:?} is not one printable word")));
        }
        line.push(' ');
        line.push_str(word);
    }
    if line.len() >= layout::COMMAND_LINE_SIZE {
        let most = layout::COMMAND_LINE_SIZE - 1;
        return Err(LoadError::CommandLine(format!("{} bytes, at most {most}", line.len())));
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_words_come_last() {
        let line = build(2, &["debug".into()]).unwrap();
        assert!(line.starts_with("console=ttyS0 ") && line.ends_with(" maxcpus=2 debug"));
    }

    #[test]
    fn refuses_what_would_break_the_line() {
        for word in ["", "a b", "a\n", "\u{7f}", "ä"] {
            assert!(build(1, &[word.into()]).is_err(), "{word:?}");
        }
        assert!(build(1, &["x".repeat(2048)]).is_err());
    }
}
