//! Who may use whom: crates by `cargo metadata`, modules of a crate by the paths in its source. `xtask/tidy.toml` has
//! the arrows that there may be.
//!
//! The paths are found in the text, by their starts: `crate::`, and as many `super::` as lead to the crate's root.
//! What a macro makes up is not seen.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;
use walkdir::WalkDir;

use crate::metadata::{Metadata, Package};
use crate::workspace;

const RULES: &str = "xtask/tidy.toml";
/// Modules that only tests use may use everything.
const FOR_TESTS: [&str; 2] = ["testing", "tests"];

/// The arrows that there may be.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rules {
    /// Each crate, and which others of the workspace it may use.
    crates: BTreeMap<String, Vec<String>>,
    /// Crates that one of ours must not use, with the reason.
    never: Vec<Never>,
    /// Of a crate each module, and which others it may use. Modules that use none may be left out.
    modules: BTreeMap<String, BTreeMap<String, Vec<String>>>,
    /// Arrows that are there and should not be.
    debts: Vec<Debt>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Never {
    user: String,
    used: Vec<String>,
    why: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Debt {
    krate: String,
    from: String,
    to: String,
}

/// Which module of a crate uses which other, and the first place where it does.
type Arrows = BTreeMap<(String, String), String>;

/// All arrows that there must not be.
pub(crate) fn mistakes(metadata: &Metadata) -> Result<Vec<String>> {
    let rules: Rules = toml::from_str(&workspace::read(RULES)?).context(RULES)?;
    let mut found = Vec::new();
    for package in metadata.ours() {
        found.extend(crate_mistakes(&rules, package));
        if rules.modules.contains_key(&package.name) {
            found.extend(module_mistakes(&rules, &package.name, &arrows(package)?));
        }
    }
    found.extend(rules.modules.iter().filter_map(|(name, allowed)| circle(name, allowed)));
    Ok(found)
}

fn crate_mistakes(rules: &Rules, package: &Package) -> Vec<String> {
    let name = &package.name;
    let Some(allowed) = rules.crates.get(name) else {
        return vec![format!("{RULES}: [crates] has no line for {name}")];
    };
    let mut found = Vec::new();
    for dependency in package.dependencies.iter().filter(|dependency| dependency.name != *name) {
        let used = &dependency.name;
        if dependency.source.is_none() && !allowed.contains(used) {
            found.push(format!("{name} uses {used}: not an arrow of [crates] in {RULES}"));
        }
        for never in rules.never.iter().filter(|never| never.user == *name && never.used.contains(used)) {
            found.push(format!("{name} uses {used}: {}", never.why));
        }
    }
    found
}

fn module_mistakes(rules: &Rules, name: &str, arrows: &Arrows) -> Vec<String> {
    let none = BTreeMap::new();
    let modules = rules.modules.get(name).unwrap_or(&none);
    let is_allowed =
        |from: &str, to: &str| modules.get(from).is_some_and(|to_| to_.iter().any(|it| it == to));
    let mut debts: BTreeSet<(String, String)> = BTreeSet::new();
    debts.extend(
        rules.debts.iter().filter(|debt| debt.krate == name).map(|debt| (debt.from.clone(), debt.to.clone())),
    );
    let mut found = Vec::new();
    for ((from, to), place) in arrows {
        let is_debt = debts.remove(&(from.clone(), to.clone()));
        if !is_debt && !is_allowed(from, to) {
            found.push(format!("{place}: {from} uses {to}: not an arrow of [modules.{name}] in {RULES}"));
        }
    }
    let paid = debts
        .iter()
        .map(|(from, to)| format!("{RULES}: {name}: {from} no longer uses {to}: remove the debt"));
    found.extend(paid);
    found
}

/// A circle among the arrows of a crate that are allowed, as a mistake of the rules: only debts may close one.
fn circle(name: &str, allowed: &BTreeMap<String, Vec<String>>) -> Option<String> {
    let mut left = allowed.clone();
    // A module that uses none of the remaining modules is in no cycle.
    while let Some(end) = left
        .iter()
        .find(|(_, used)| !used.iter().any(|used| left.contains_key(used)))
        .map(|(end, _)| end.clone())
    {
        left.remove(&end);
    }
    let members: Vec<_> = left.into_keys().collect();
    (!members.is_empty())
        .then(|| format!("{RULES}: [modules.{name}] has a circle, among these: {}", members.join(", ")))
}

fn arrows(package: &Package) -> Result<Arrows> {
    let source = package.folder().join("src");
    let root = fs::read_to_string(source.join("lib.rs")).with_context(|| package.name.clone())?;
    let names = root_names(&root);
    let mut arrows = Arrows::new();
    for entry in WalkDir::new(&source).sort_by_file_name() {
        let path = entry?.into_path();
        let module = module_path(path.strip_prefix(&source)?);
        let Some(from) = module.first().filter(|from| !is_for_tests(&module, from)) else { continue };
        if path.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        let text = fs::read_to_string(&path)?;
        for (line, name) in used_from_root(production(&text), module.len()) {
            let Some(to) = names.get(&name).filter(|to| *to != from && !FOR_TESTS.contains(&to.as_str()))
            else {
                continue;
            };
            let place =
                || format!("{}:{line}", path.strip_prefix(workspace::root()).unwrap_or(&path).display());
            arrows.entry((from.clone(), to.clone())).or_insert_with(place);
        }
    }
    Ok(arrows)
}

fn is_for_tests(module: &[String], from: &str) -> bool {
    FOR_TESTS.contains(&from) || module.iter().any(|part| FOR_TESTS.contains(&part.as_str()))
}

/// The modules that lead to a file below `src`: none for the crate's root and for programs.
fn module_path(file: &Path) -> Vec<String> {
    let mut parts: Vec<String> = file.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if let Some(last) = parts.last_mut() {
        *last = last.trim_end_matches(".rs").to_owned();
    }
    if parts.last().is_some_and(|last| last == "mod") {
        parts.pop();
    }
    let is_root = parts.first().is_some_and(|first| ["lib", "main", "bin"].contains(&first.as_str()));
    if is_root { Vec::new() } else { parts }
}

/// What the root of a crate names: its modules, and what it exports of them under its own name, with the module.
fn root_names(root: &str) -> BTreeMap<String, String> {
    let mut names = BTreeMap::new();
    let mut exports = Vec::new();
    for line in root.lines() {
        let line = line.trim_start_matches("pub ").trim_start_matches("pub(crate) ");
        if let Some(module) = line.strip_prefix("mod ").and_then(|rest| rest.strip_suffix(';')) {
            names.insert(module.to_owned(), module.to_owned());
        } else if let Some(path) = line.strip_prefix("use ").and_then(|rest| rest.strip_suffix(';')) {
            let path = path.trim_start_matches("crate::");
            if let (Some((module, _)), Some((_, name))) = (path.split_once("::"), path.rsplit_once("::")) {
                exports.push((name.rsplit(' ').next().unwrap_or_default().to_owned(), module.to_owned()));
            }
        }
    }
    let modules = names.clone();
    names.extend(exports.into_iter().filter(|(_, module)| modules.contains_key(module)));
    names
}

/// The text of a file before its tests.
pub(crate) fn production(text: &str) -> &str {
    text.split_once("\n#[cfg(test)]\nmod tests {").map_or(text, |(production, _)| production)
}

/// What `text` uses by paths from the crate's root, with the line, in a module so many levels below the root.
fn used_from_root(text: &str, depth: usize) -> Vec<(usize, String)> {
    let code: Vec<&str> = text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect();
    let code = code.join("\n");
    let up = "super::".repeat(depth);
    let mut found = Vec::new();
    for start in ["crate::", up.as_str()] {
        for (at, _) in code.match_indices(start) {
            let before = code[..at].chars().next_back();
            let rest = &code[at + start.len()..];
            // Not the end of a longer path, and not the middle of more `super::` than lead to the root.
            let is_longer = before.is_some_and(|c| c.is_alphanumeric() || "_:$".contains(c));
            if is_longer || rest.starts_with("super::") {
                continue;
            }
            let line = code[..at].matches('\n').count() + 1;
            found.extend(first_names(rest).into_iter().map(|name| (line, name)));
        }
    }
    found
}

/// The names a path goes on with: one, or those of a group in braces.
fn first_names(rest: &str) -> Vec<String> {
    let name = |text: &str| -> String {
        text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
    };
    let Some(group) = rest.strip_prefix('{') else { return vec![name(rest)] };
    let mut names = Vec::new();
    let (mut depth, mut from) = (0, 0);
    for (at, character) in group.char_indices() {
        match character {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                names.push(name(&group[from..at]));
                from = at + 1;
                if character == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::Dependency;

    fn used(text: &str, depth: usize) -> Vec<String> {
        used_from_root(text, depth).into_iter().map(|(_, name)| name).collect()
    }

    fn rules() -> Rules {
        toml::from_str(
            "[crates]\na = [\"b\"]\n[[never]]\nuser = \"a\"\nused = [\"tokio\"]\nwhy = \"it blocks\"\n\
             [modules.a]\nupper = [\"lower\"]\n[[debts]]\nkrate = \"a\"\nfrom = \"lower\"\nto = \"upper\"\n",
        )
        .unwrap()
    }

    #[test]
    fn paths_from_the_root_are_found_however_they_are_written() {
        assert_eq!(used("use crate::plan::Plan;\nlet x = crate::host::open();", 1), ["plan", "host"]);
        assert_eq!(used("use crate::{plan, host::{a, b}};", 1), ["plan", "host"]);
        assert_eq!(used("use crate::{\n    plan::{self, Plan},\n    host,\n};", 1), ["plan", "host"]);
        assert_eq!(used("use super::plan::Plan;", 1), ["plan"]);
        assert_eq!(used("use super::super::plan::Plan;", 2), ["plan"]);
    }

    #[test]
    fn what_is_no_path_from_the_root_is_not_found() {
        assert_eq!(used("use super::plan::Plan;", 2), [""; 0]);
        assert_eq!(used("use super::super::x;", 1), [""; 0]);
        assert_eq!(used("// crate::plan\nuse my_crate::plan;\nuse $crate::plan;", 1), [""; 0]);
    }

    #[test]
    fn a_line_is_counted_from_one() {
        assert_eq!(used_from_root("//! x\n\nuse crate::plan;", 1), [(3, "plan".to_owned())]);
    }

    #[test]
    fn names_of_the_root_lead_to_the_module_they_are_of() {
        let names = root_names("pub mod handle;\nmod kvm;\npub use handle::VmHandle;\npub use other::net;\n");
        assert_eq!(names.get("VmHandle").map(String::as_str), Some("handle"));
        assert_eq!(names.get("kvm").map(String::as_str), Some("kvm"));
        assert_eq!(names.get("net"), None);
    }

    #[test]
    fn a_files_place_is_its_module() {
        assert_eq!(module_path(Path::new("plan/size.rs")), ["plan", "size"]);
        assert_eq!(module_path(Path::new("plan/mod.rs")), ["plan"]);
        assert_eq!(module_path(Path::new("failure.rs")), ["failure"]);
        assert_eq!(module_path(Path::new("lib.rs")), [""; 0]);
        assert_eq!(module_path(Path::new("bin/kiai.rs")), [""; 0]);
    }

    #[test]
    fn a_crate_uses_whom_it_may() {
        let on = |name: &str, source: Option<&str>| Dependency {
            name: name.into(),
            source: source.map(str::to_owned),
            ..Dependency::default()
        };
        let package = |dependencies| Package { name: "a".into(), dependencies, ..Package::default() };
        let mistakes = |dependencies| crate_mistakes(&rules(), &package(dependencies));
        assert_eq!(mistakes(vec![on("a", None), on("b", None), on("serde", Some("registry"))]), [""; 0]);
        assert!(mistakes(vec![on("c", None)])[0].contains("a uses c"));
        assert!(mistakes(vec![on("tokio", Some("registry"))])[0].contains("it blocks"));
        assert!(crate_mistakes(&Rules::default(), &package(vec![]))[0].contains("no line for a"));
    }

    #[test]
    fn a_module_uses_whom_it_may_and_a_debt_that_is_paid_is_said() {
        let arrow = |from: &str, to: &str| ((from.to_owned(), to.to_owned()), "x.rs:1".to_owned());
        let mistakes = |arrows: Vec<_>| module_mistakes(&rules(), "a", &arrows.into_iter().collect());
        let debt = || arrow("lower", "upper");
        assert_eq!(mistakes(vec![arrow("upper", "lower"), debt()]), [""; 0]);
        assert!(mistakes(vec![arrow("upper", "other"), debt()])[0].starts_with("x.rs:1: upper uses other"));
        assert!(mistakes(vec![])[0].contains("remove the debt"));
    }

    #[test]
    fn a_circle_among_what_is_allowed_is_found() {
        let allowed = |lines: &str| toml::from_str::<BTreeMap<String, Vec<String>>>(lines).unwrap();
        assert_eq!(circle("a", &allowed("x = [\"y\"]\ny = [\"z\"]\nw = [\"x\", \"z\"]")), None);
        let found = circle("a", &allowed("x = [\"y\"]\ny = [\"z\"]\nz = [\"y\"]\n")).unwrap();
        assert!(found.contains("y, z"), "{found}");
    }
}
