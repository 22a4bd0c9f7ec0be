//! House rules that the compiler and clippy do not know: sizes, first lines, words, who may name whom.
//!
//! Plain text search over the files git knows. A rule that needs more than that belongs in a lint.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{step, workspace};

/// Lines of a source file that are not tests.
const MAX_LINES: usize = 600;

/// Who must not name what: a folder, a text, and why.
const DIRECTIONS: [(&str, &str, &str); 8] = [
    ("vmm/devices/", "kvm_", "devices know no hypervisor"),
    ("vmm/devices/", "tokio", "asynchronous code stops at the runtime"),
    ("vmm/", "oci_", "the VMM knows no containers"),
    ("vmm/", "kiai_runtime", "the VMM does not know who uses it"),
    ("runtime/", "kvm_", "only the VMM talks to KVM"),
    ("agent/", "kiai_vmm", "the guest's side links nothing of the host's"),
    ("agent/", "kiai_devices", "the guest's side links nothing of the host's"),
    ("protocol/", "tokio", "the contract does no I/O"),
];

/// Names that say nothing of what a thing is.
const EMPTY_NAMES: [&str; 4] = ["Manager", "Helper", "Util", "Inner"];

/// Checks every file and fails with the whole list of what it found.
pub(crate) fn check() -> Result<()> {
    let listing = step::output(
        Command::new("git")
            .args(["ls-files", "--cached", "--others", "--exclude-standard"])
            .current_dir(workspace::root()),
    )?;
    let mut found = Vec::new();
    for path in listing.lines().filter(|path| is_text(path)) {
        // A file that git still lists may have been removed from the work tree.
        let Ok(bytes) = fs::read(workspace::path(path)) else { continue };
        let text = String::from_utf8(bytes).with_context(|| path.to_owned())?;
        found.extend(mistakes(path, &text));
    }
    if found.is_empty() {
        return Ok(());
    }
    bail!("tidy:\n  {}", found.join("\n  "))
}

fn is_text(path: &str) -> bool {
    let extension = Path::new(path).extension().and_then(|extension| extension.to_str());
    matches!(extension, Some("rs" | "toml" | "md" | "proto" | "config" | "txt" | "yml" | "yaml" | "sh"))
}

fn mistakes(path: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        for (word, why) in forbidden_words() {
            if line.contains(&word) {
                found.push(format!("{path}:{number}: `{word}`: {why}"));
            }
        }
    }
    if path.ends_with(".rs") {
        found.extend(source_mistakes(path, text));
    }
    found
}

/// Put together here, so that this file does not contain them.
fn forbidden_words() -> [(String, &'static str); 6] {
    [
        (["FIX", "ME"].concat(), "mend it, or open an issue"),
        (["X", "XX:"].concat(), "mend it, or open an issue"),
        (["to", "do!("].concat(), "nothing unfinished is called done"),
        (["unimple", "mented!("].concat(), "nothing unfinished is called done"),
        (["#[ig", "nore]"].concat(), "a test that does not run proves nothing; say why in the attribute"),
        (["/wo", "rk/"].concat(), "a path of one machine"),
    ]
}

fn source_mistakes(path: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let opening = text.lines().find(|line| !line.starts_with("#!["));
    if !opening.is_some_and(|line| line.starts_with("//!")) {
        found.push(format!("{path}:1: the file opens with `//!`, which says what it does"));
    }
    let is_test = path.starts_with("tests/") && !path.starts_with("tests/lab/") || path.contains("/tests");
    let (production, _tests) = text.split_once("\n#[cfg(test)]\nmod tests {").unwrap_or((text, ""));
    let production = || production.lines();
    let lines = production().count();
    if lines > MAX_LINES && !is_test {
        found.push(format!("{path}: {lines} lines, more than {MAX_LINES}: which part is a file of its own?"));
    }
    for (number, line) in (1..).zip(production()) {
        let code = line.split("//").next().unwrap_or_default();
        if code.contains(&["thread::", "sleep("].concat()) && !is_test {
            found.push(format!("{path}:{number}: nothing waits by sleeping: wait for the event"));
        }
        for (folder, name, why) in DIRECTIONS {
            if path.starts_with(folder) && names(code, name) {
                found.push(format!("{path}:{number}: names `{name}`: {why}"));
            }
        }
        if let Some(name) = declared_type(code)
            && let Some(empty) = EMPTY_NAMES.iter().find(|empty| name.contains(**empty))
        {
            found.push(format!("{path}:{number}: `{name}`: a name with `{empty}` says nothing"));
        }
    }
    let has_unsafe = production()
        .map(|line| line.split("//").next().unwrap_or_default())
        .any(|code| ["unsafe {", "unsafe fn", "unsafe impl"].iter().any(|form| code.contains(form)));
    if has_unsafe && !text.contains("expect(") && !text.contains("unsafe_code") {
        found.push(format!(
            "{path}: has unsafe code and does not opt in with `#![expect(unsafe_code, reason = …)]`"
        ));
    }
    found
}

/// Whether `code` has an identifier that starts with `name`; not one that merely contains it.
fn names(code: &str, name: &str) -> bool {
    code.match_indices(name).any(|(at, _)| {
        !code[..at].chars().next_back().is_some_and(|before| before.is_alphanumeric() || before == '_')
    })
}

/// The name of a type that this line declares.
fn declared_type(code: &str) -> Option<&str> {
    let mut words = code.split_whitespace().skip_while(|word| word.starts_with("pub"));
    if !matches!(words.next()?, "struct" | "enum" | "trait" | "union" | "type") {
        return None;
    }
    words.next()?.split(|character: char| !character.is_alphanumeric() && character != '_').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn assert_mistake(path: &str, text: &str, expected: &str) {
        let found = mistakes(path, text);
        assert!(found.iter().any(|mistake| mistake.contains(expected)), "{expected} is not in {found:?}");
    }

    #[test]
    fn a_tidy_file_passes() {
        let text = "//! What it does.\n\npub(crate) struct Vcpu;\n\n#[cfg(test)]\nmod tests {\n    // thread::sleep(\n}\n";
        assert_eq!(mistakes("vmm/src/vcpu.rs", text), Vec::<String>::new());
    }

    #[test]
    fn each_rule_finds_its_mistake() {
        assert_mistake("a/src/x.rs", "use std::fs;\n", "opens with");
        assert_mistake("a/src/x.rs", &format!("//! x\n{}", "\n".repeat(MAX_LINES)), "lines");
        assert_mistake("a/src/x.rs", "//! x\nstd::thread::sleep(second);\n", "sleeping");
        assert_mistake("a/src/x.rs", "//! x\npub(crate) struct DeviceManager {\n", "Manager");
        assert_mistake("a/src/x.rs", "//! x\nfn f() { unsafe { g() } }\n", "opt in");
        assert_mistake("a/README.md", &["FIX", "ME later"].concat(), "mend it");
        assert_mistake("vmm/devices/src/x.rs", "//! x\nuse kvm_ioctls::Kvm;\n", "kvm_");
    }

    #[test]
    fn a_comment_or_a_longer_word_names_nothing() {
        let text = "//! x\n// like kvm_regs\nlet not_kvm_at_all = 1;\n";
        assert_eq!(mistakes("vmm/devices/src/x.rs", text), Vec::<String>::new());
    }

    #[test]
    fn tests_may_be_long_and_may_sleep() {
        let text = format!("//! x\nthread::sleep(second);\n{}", "\n".repeat(MAX_LINES));
        assert_eq!(mistakes("tests/tests/run.rs", &text), Vec::<String>::new());
    }
}
