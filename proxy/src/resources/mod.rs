//! `tidegate apply`, `get`, `delete` and `diff`: resources of a control plane with a store, over its admin interface.
//! It must not know how they are kept.

mod lines;

use std::fmt::Write as _;
use std::io::Read as _;
use std::path::Path;

use anyhow::Context;
use serde_json::Value;
use tidegate_control::server::ResourceType;
use tidegate_xds::Format;

use crate::admin_client::{Call, call};
use crate::cli::{ApplyFlags, DeleteFlags, DiffFlags, GetFlags, StoreFlags};

/// What `apply` prints: a line for each resource that it changed.
///
/// # Errors
/// What the control plane has against it; nothing has changed then.
pub fn apply(flags: &ApplyFlags) -> anyhow::Result<String> {
    let path = if flags.dry_run { "/resources?dry_run" } else { "/resources" };
    let of = flags.if_version.as_ref().map(|version| ("if-match", format!("\"{version}\"")));
    let answer = post(&flags.store, path, of, &flags.file)?;
    Ok(summary(&answer, if flags.dry_run { " (dry run)" } else { "" }))
}

/// What `diff` prints, and whether there is a difference.
///
/// # Errors
/// What the control plane has against the change.
pub fn diff(flags: &DiffFlags) -> anyhow::Result<(String, bool)> {
    let answer = post(&flags.store, "/resources?dry_run", None, &flags.file)?;
    let answer: Value = serde_json::from_str(&answer).context("the answer is no JSON")?;
    let mut text = String::new();
    for changed in answer["changed"].as_array().into_iter().flatten() {
        let side = |side: &Value| if side.is_null() { String::new() } else { format!("{side:#}\n") };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{} '{}'", word(&changed["type"]), word(&changed["name"]));
        text += &lines::diff(&side(&changed["before"]), &side(&changed["after"]));
    }
    let differs = !text.is_empty();
    Ok((text, differs))
}

/// One resource as JSON, or a line for each.
///
/// # Errors
/// There is no such resource, or nobody to ask.
pub fn get(flags: &GetFlags) -> anyhow::Result<String> {
    let kind = flags.kind.as_deref().map(known).transpose()?;
    if let (Some(kind), Some(name)) = (kind, &flags.name) {
        let group = flags.group.as_deref().map(|group| format!("?group={}", encoded(group))).unwrap_or_default();
        return ask(&flags.store, "GET", &(place(kind, name) + &group), Vec::new(), b"");
    }
    let groups: Value = serde_json::from_str(&ask(&flags.store, "GET", "/resources", Vec::new(), b"")?)?;
    let mut text = String::new();
    let is_asked = |group: &&Value| flags.group.as_ref().is_none_or(|asked| group["group"] == **asked);
    for group in groups.as_array().into_iter().flatten().filter(is_asked) {
        let _ = writeln!(text, "{} (version {})", word(&group["group"]), word(&group["version"]));
        let all = group["resources"].as_array().into_iter().flatten();
        for one in all.filter(|one| kind.is_none_or(|kind| one["type"] == kind)) {
            let [kind, name, version, origin] = ["type", "name", "version", "origin"].map(|key| word(&one[key]));
            let _ = writeln!(text, "  {kind:<24} {version}  {name}  {origin}");
        }
    }
    match &flags.group {
        Some(group) if text.is_empty() => anyhow::bail!("there is no group '{group}'"),
        _ => Ok(text),
    }
}

/// A type by its short or its full name, in short.
fn known(kind: &str) -> anyhow::Result<&'static str> {
    let found = ResourceType::all().find(|one| one.short() == kind || one.message() == kind);
    let all = || ResourceType::all().map(ResourceType::short).collect::<Vec<_>>().join(", ");
    Ok(found.with_context(|| format!("there is no type '{kind}', only {}", all()))?.short())
}

/// What `delete` prints.
///
/// # Errors
/// There is no such resource, another version of it, or something still names it.
pub fn delete(flags: &DeleteFlags) -> anyhow::Result<String> {
    let of = flags.if_version.as_ref().map(|version| ("if-match", format!("\"{version}\"")));
    let answer = ask(&flags.store, "DELETE", &place(&flags.kind, &flags.name), of.into_iter().collect(), b"")?;
    Ok(summary(&answer, ""))
}

/// Sends a file's resources.
fn post(flags: &StoreFlags, path: &str, of: Option<(&str, String)>, file: &Path) -> anyhow::Result<String> {
    let mut body = Vec::new();
    let read = if file == Path::new("-") {
        std::io::stdin().read_to_end(&mut body).map(drop)
    } else {
        std::fs::read(file).map(|read| body = read)
    };
    let hint = match file.is_dir() {
        true => format!("; of a directory: tidegate expand {} | tidegate apply -f -", file.display()),
        false => String::new(),
    };
    read.map_err(|error| anyhow::anyhow!("cannot read {}: {error}{hint}", file.display()))?;
    let kind = match Format::of_path(file) {
        Format::Json => "application/json",
        Format::Yaml => "application/yaml",
    };
    let headers = of.into_iter().chain([("content-type", kind.to_owned())]).collect();
    ask(flags, "POST", path, headers, &body).map_err(|error| anyhow::anyhow!(named(&error.to_string(), file)))
}

/// What is said of the body that was sent is said of the file that it came from.
fn named(reason: &str, file: &Path) -> String {
    let line = |line: &str| match line.strip_prefix("body:") {
        Some(rest) => format!("{}:{}", file.display(), rest.replace(" at body:", &format!(" at {}:", file.display()))),
        None => line.to_owned(),
    };
    reason.lines().map(line).collect::<Vec<_>>().join("\n")
}

fn ask(
    flags: &StoreFlags,
    method: &str,
    path: &str,
    mut headers: Vec<(&str, String)>,
    body: &[u8],
) -> anyhow::Result<String> {
    let token = flags.token_file.as_deref().map(token).transpose()?;
    headers.extend(token.map(|token| ("authorization", format!("Bearer {token}"))));
    let (status, answer) = call(&flags.admin, &Call { method, path, headers: &headers, body })?;
    anyhow::ensure!(status == 200, "{}", answer.trim_end());
    Ok(answer)
}

fn token(path: &Path) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let token = text.lines().map(str::trim).find(|line| !line.is_empty());
    Ok(token.with_context(|| format!("there is no token in {}", path.display()))?.to_owned())
}

fn summary(answer: &str, note: &str) -> String {
    let answer: Value = serde_json::from_str(answer).unwrap_or_default();
    let changed = answer["changed"].as_array().into_iter().flatten();
    let line = |changed: &Value| {
        let (kind, name) = (word(&changed["type"]), word(&changed["name"]));
        let what = match (changed["before"].is_null(), changed["after"].is_null()) {
            (true, _) => "created",
            (_, true) => "deleted",
            _ => "changed",
        };
        format!("{what} {kind} '{name}' {}{note}\n", word(&changed["version"])).replace(" \n", "\n")
    };
    let lines: String = changed.map(line).collect();
    if lines.is_empty() { format!("nothing to change{note}\n") } else { lines }
}

fn word(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// The path of a resource, whatever its name holds.
fn place(kind: &str, name: &str) -> String {
    format!("/resources/{kind}/{}", encoded(name))
}

fn encoded(name: &str) -> String {
    let mut path = String::new();
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => path.push(byte.into()),
            other => path += &format!("%{other:02X}"),
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_anything() {
        assert_eq!(place("Cluster", "outbound|80||a b"), "/resources/Cluster/outbound%7C80%7C%7Ca%20b");
    }

    #[test]
    fn errors_name_the_file() {
        let said = "body:3: there is a Cluster 'a' already, at body:1\nresources.json: body: no";
        let expected = "x/a.yaml:3: there is a Cluster 'a' already, at x/a.yaml:1\nresources.json: body: no";
        assert_eq!(named(said, Path::new("x/a.yaml")), expected);
    }

    #[test]
    fn each_change_is_a_line() {
        let one = r#"{"type": "Cluster", "name": "a", "before": null, "after": {}, "version": "v"}"#;
        let gone = r#"{"type": "Listener", "name": "l", "before": {}, "after": null, "version": null}"#;
        let answer = format!(r#"{{"changed": [{one}, {gone}]}}"#);
        assert_eq!(summary(&answer, ""), "created Cluster 'a' v\ndeleted Listener 'l'\n");
        assert_eq!(summary(r#"{"changed": []}"#, " (dry run)"), "nothing to change (dry run)\n");
    }
}
