//! House rules that the compiler and clippy do not know: sizes, first lines, words, unsafe code that says so.
//!
//! Plain text search. Who may use whom is in [`arrows`], what the project is built from in [`dependencies`].

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use walkdir::WalkDir;

use crate::metadata::Metadata;
use crate::{arrows, dependencies, step, workspace};

/// Lines of a source file that are not tests.
const MAX_LINES: usize = 600;

/// Names that say nothing of what a thing is.
const EMPTY_NAMES: [&str; 4] = ["Manager", "Helper", "Util", "Inner"];

/// Checks every file and fails with the whole list of what it found.
pub(crate) fn check() -> Result<()> {
    let mut found = Vec::new();
    for path in files()?.iter().filter(|path| is_text(path)) {
        // A file that git still lists may have been removed from the work tree.
        let Ok(bytes) = fs::read(workspace::path(path)) else { continue };
        let text = String::from_utf8(bytes).with_context(|| path.to_owned())?;
        found.extend(mistakes(path, &text));
    }
    let metadata = Metadata::read()?;
    found.extend(arrows::mistakes(&metadata)?);
    found.extend(dependencies::mistakes(&metadata)?);
    if found.is_empty() {
        return Ok(());
    }
    bail!("tidy:\n  {}", found.join("\n  "))
}

/// The files of the project: those git knows or might come to know; all but build results, where there is no git.
fn files() -> Result<Vec<String>> {
    if workspace::path(".git").exists() {
        let mut git = Command::new("git");
        git.args(["ls-files", "--cached", "--others", "--exclude-standard"]).current_dir(workspace::root());
        return Ok(step::output(&mut git)?.lines().map(str::to_owned).collect());
    }
    let mut files = Vec::new();
    let built = |name: &std::ffi::OsStr| name == "target";
    for entry in WalkDir::new(workspace::root()).into_iter().filter_entry(|entry| !built(entry.file_name())) {
        let entry = entry?;
        if entry.file_type().is_file() {
            files.push(entry.path().strip_prefix(workspace::root())?.to_string_lossy().into_owned());
        }
    }
    Ok(files)
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
    let production = || arrows::production(text).lines();
    let lines = production().count();
    if lines > MAX_LINES && !is_test {
        found.push(format!("{path}: {lines} lines, more than {MAX_LINES}: which part is a file of its own?"));
    }
    for (number, line) in (1..).zip(production()) {
        let code = line.split("//").next().unwrap_or_default();
        if code.contains(&["thread::", "sleep("].concat()) && !is_test {
            found.push(format!("{path}:{number}: nothing waits by sleeping: wait for the event"));
        }
        if let Some(name) = declared_type(code)
            && let Some(empty) = EMPTY_NAMES.iter().find(|empty| name.contains(**empty))
        {
            found.push(format!("{path}:{number}: `{name}`: a name with `{empty}` says nothing"));
        }
    }
    found.extend(unsafe_mistakes(path, text));
    found
}

/// Unsafe code, tests included, needs an attribute that permits it with a reason, and clippy, which wants a comment at
/// each block, must not be silenced.
fn unsafe_mistakes(path: &str, text: &str) -> Vec<String> {
    let code: Vec<&str> = text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect();
    let has_unsafe = code
        .iter()
        .any(|line| ["unsafe {", "unsafe fn", "unsafe impl"].iter().any(|form| line.contains(form)));
    let dense: String = code.concat().split_whitespace().collect();
    let mut found = Vec::new();
    if has_unsafe && !dense.contains(&["[expect(unsafe", "_code,reason="].concat()) {
        found.push(format!(
            "{path}: has unsafe code and does not opt in with `#![expect(unsafe_code, reason = …)]`"
        ));
    }
    if dense.contains(&["undocumented", "_unsafe_blocks"].concat()) {
        found.push(format!("{path}: silences the lint that wants a SAFETY comment at unsafe code"));
    }
    found
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
    }

    #[test]
    fn only_the_attribute_excuses_unsafe_code_and_nothing_excuses_its_comment() {
        let body = "fn f() { unsafe { g() } }\n";
        for excuse in ["x.expect(\"y\");", "// expect(unsafe_code, reason = \"z\")", "#![allow(unsafe_code)]"]
        {
            assert_mistake("a/src/x.rs", &format!("//! x\n{excuse}\n{body}"), "opt in");
        }
        let opted = format!("#![expect(\n    unsafe_code,\n    reason = \"z\"\n)]\n//! x\n{body}");
        assert_eq!(unsafe_mistakes("a/src/x.rs", &opted), Vec::<String>::new());
        let silenced = format!("{opted}#[expect(clippy::{}_unsafe_blocks)]\n", "undocumented");
        assert_mistake("a/src/x.rs", &silenced, "SAFETY");
    }

    #[test]
    fn tests_may_be_long_and_may_sleep() {
        let text = format!("//! x\nthread::sleep(second);\n{}", "\n".repeat(MAX_LINES));
        assert_eq!(mistakes("tests/tests/run.rs", &text), Vec::<String>::new());
    }
}
