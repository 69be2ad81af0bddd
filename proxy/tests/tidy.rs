//! Keeps the house: what every file of the repository promises, checked as text. The rules only ratchet; it must not know what
//! the code does.
#![expect(clippy::unwrap_used, reason = "a test fails loudly")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fs, iter};

use tidegate::config::defaults::TABLE;

/// A source file this long, its tests not counted, is more than one idea.
const LONGEST_FILE: usize = 600;

/// The files that are longer still, with their length. Numbers and lines may only go away.
const TOO_LONG: &[(&str, usize)] = &[];

const LONGEST_ARCHITECTURE: usize = 250;

/// Marks of work that is not finished; spelt so that this file does not hold them.
const UNFINISHED: &[&str] = &[concat!("TO", "DO"), concat!("FIX", "ME")];

/// Folders of one machine, which mean nothing on another.
const MACHINE_PATHS: &[&str] = &[concat!("/wo", "rk/"), concat!("/tmp", "/h/")];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

/// Every text file under version control with its content, or nothing (said aloud) outside a checkout.
fn tracked() -> Vec<(String, String)> {
    let listed = Command::new("git").args(["ls-files", "-z"]).current_dir(root()).output();
    let Some(listed) = listed.ok().filter(|listed| listed.status.success()) else {
        println!("skipped: this is not a git checkout");
        return Vec::new();
    };
    let paths = String::from_utf8(listed.stdout).unwrap();
    let text = |path: &str| Some((path.to_owned(), fs::read_to_string(root().join(path)).ok()?));
    paths.split_terminator('\0').filter_map(text).collect()
}

fn rust_files() -> impl Iterator<Item = (String, String)> {
    tracked().into_iter().filter(|(path, _)| path.ends_with(".rs"))
}

/// Fails with one line for each fault.
fn none(faults: impl IntoIterator<Item = String>) {
    let faults: Vec<String> = faults.into_iter().collect();
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

/// `file:line: what` for each line that holds one of the words.
fn holding(path: &str, text: &str, words: &[&str]) -> Vec<String> {
    let lines = text.lines().enumerate();
    lines
        .filter_map(|(index, line)| {
            let word = words.iter().find(|word| line.contains(**word))?;
            Some(format!("{path}:{}: holds `{word}`", index + 1))
        })
        .collect()
}

/// The lines before the file's tests.
fn length_without_tests(text: &str) -> usize {
    text.lines().take_while(|line| !line.starts_with("#[cfg(test)]")).count()
}

#[test]
fn no_source_file_outgrows_one_idea() {
    let allowed = |path: &str| TOO_LONG.iter().find(|(listed, _)| *listed == path).map(|(_, lines)| *lines);
    none(rust_files().filter(|(path, _)| !path.contains("/tests/")).filter_map(|(path, text)| {
        let lines = length_without_tests(&text);
        match allowed(&path) {
            Some(_) if lines <= LONGEST_FILE => Some(format!("{path}: {lines} lines now: take it out of TOO_LONG")),
            Some(before) if lines > before => Some(format!("{path}: grew from {before} to {lines} lines: split it")),
            None if lines > LONGEST_FILE => Some(format!("{path}: {lines} lines, {LONGEST_FILE} at most: split it")),
            _ => None,
        }
    }));
}

#[test]
fn the_list_of_long_files_names_files() {
    let gone = TOO_LONG.iter().filter(|(path, _)| !root().join(path).exists());
    none(gone.map(|(path, _)| format!("{path}: gone: take it out of TOO_LONG")));
}

#[test]
fn every_module_says_what_it_owns() {
    none(
        rust_files()
            .filter(|(_, text)| !text.starts_with("//!"))
            .map(|(path, _)| format!("{path}: begins without `//!`")),
    );
}

#[test]
fn nothing_is_marked_unfinished() {
    none(tracked().iter().flat_map(|(path, text)| holding(path, text, UNFINISHED)));
}

#[test]
fn no_file_names_a_folder_of_one_machine() {
    none(tracked().iter().flat_map(|(path, text)| holding(path, text, MACHINE_PATHS)));
}

#[test]
fn the_architecture_is_read_in_one_sitting() {
    let lines = read("ARCHITECTURE.md").lines().count();
    assert!(lines < LONGEST_ARCHITECTURE, "ARCHITECTURE.md has {lines} lines");
}

/// The words after each `./dev ` in a text.
fn dev_commands(text: &str) -> BTreeSet<String> {
    let word = |rest: &str| rest.chars().take_while(|c| c.is_ascii_lowercase()).collect::<String>();
    text.split("./dev ").skip(1).map(word).filter(|word| !word.is_empty()).collect()
}

#[test]
fn documents_name_only_commands_that_dev_has() {
    let dev = read("dev");
    let arms: BTreeSet<&str> = dev.lines().filter_map(|line| line.split([')', ' ']).next()).collect();
    let documents =
        tracked().into_iter().filter(|(path, _)| path.ends_with(".md") || path == "dev" || path == ".ci/run");
    none(documents.flat_map(|(path, text)| {
        let unknown = dev_commands(&text).into_iter().filter(|command| !arms.contains(command.as_str()));
        unknown.map(|command| format!("{path}: there is no `./dev {command}`")).collect::<Vec<_>>()
    }));
}

/// The targets of a document's links within the repository.
fn links(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    iter::from_fn(move || {
        let (_, after) = rest.split_once("](")?;
        let (target, after) = after.split_once(')')?;
        rest = after;
        Some(target.split('#').next().unwrap_or_default())
    })
    .filter(|target| !target.is_empty() && !target.contains("://"))
}

#[test]
fn links_within_documents_lead_somewhere() {
    let documents = tracked().into_iter().filter(|(path, _)| path.ends_with(".md"));
    none(documents.flat_map(|(path, text)| {
        let folder = root().join(&path).parent().unwrap().to_owned();
        let dead = links(&text).filter(|target| !folder.join(target).exists());
        dead.map(|target| format!("{path}: the link to {target} leads nowhere")).collect::<Vec<_>>()
    }));
}

#[test]
fn the_readme_shows_every_example_configuration() {
    let readme = read("README.md");
    let examples = tracked()
        .into_iter()
        .map(|(path, _)| path)
        .filter(|path| path.starts_with("configs/") && path.ends_with(".yaml"));
    none(
        examples
            .filter(|path| path.split('/').count() == 2 && !readme.contains(path))
            .map(|path| format!("README.md: no word of {path}")),
    );
}

#[test]
fn the_readme_lists_every_default_that_differs() {
    let rows =
        TABLE.iter().map(|row| format!("| `{}` | {} | {} | {} |\n", row.field, row.envoy, row.tidegate, row.why));
    let table = format!("| field | Envoy | Tidegate | why |\n|---|---|---|---|\n{}", rows.collect::<String>());
    let readme = read("README.md");
    let shown =
        readme.split_once("<!-- defaults:begin -->\n").and_then(|(_, rest)| rest.split_once("<!-- defaults:end -->"));
    let (shown, _) = shown.unwrap();
    assert!(shown == table, "between the markers of README.md there should stand:\n{table}");
}
