//! `tidegate check`: what is wrong with a configuration, what is known and without effect, and which safe defaults change
//! what it does. It must not know how anything is served.

mod resources;

use std::collections::HashSet;
use std::fmt::Write;
use std::path::Path;

use tidegate_control::server::Sets;
use tidegate_control::short::is_short;
use tidegate_control::source::{self, Refused};
use tidegate_filters::context::Defaults;
use tidegate_xds::{FieldError, FieldPath, Format};

use crate::config::bootstrap::Bootstrap;
use crate::server;

/// As many mistakes as are read at most.
const MOST_ERRORS: usize = 100;

/// What `check` says.
pub struct Report {
    pub text: String,
    /// Whether the configuration would be refused.
    pub refused: bool,
}

/// Checks a bootstrap that was read from `file`.
pub fn report(file: &Path, bootstrap: Result<Bootstrap, Vec<FieldError>>, defaults: Defaults) -> Report {
    let mut text = String::new();
    let name = file.display();
    let checked = bootstrap.and_then(|bootstrap| server::validate(&bootstrap, defaults).map(|()| bootstrap));
    let refused = checked.is_err();
    match checked {
        Err(errors) => {
            for error in in_order(&errors) {
                // Writing to a string cannot fail.
                let _ = writeln!(text, "{name}{}: {}", line_of(error), plain(error));
            }
            let _ = writeln!(text, "{name}: refused, {}", many(errors.len()));
        }
        Ok(bootstrap) => {
            for warning in in_order(&bootstrap.warnings) {
                let _ = writeln!(text, "{name}{}: warning: {}", line_of(warning), plain(warning));
            }
            for (path, reason, more) in grouped(&bootstrap.without_effect) {
                let others = if more == 0 { String::new() } else { format!(" (and {more} more like it)") };
                let _ = writeln!(text, "{name}: without effect: {path}{others}: {reason}");
            }
            for changed in bootstrap.changed_defaults(defaults) {
                let _ = writeln!(text, "{name}: safe default: {changed}");
            }
            let _ = writeln!(text, "{name}: OK");
        }
    }
    Report { text, refused }
}

/// Whether it is what a control plane serves: a directory, or a file of the short form.
pub fn is_source(path: &Path) -> bool {
    path.is_dir() || std::fs::read(path).is_ok_and(|text| is_short(&text, Format::of_path(path)))
}

/// Checks what a control plane would serve, and whether the data plane takes it.
pub fn report_source(path: &Path, defaults: Defaults) -> Report {
    let faults = match source::load(path).and_then(|sets| takes(&sets, defaults)) {
        Ok(()) => Vec::new(),
        Err(refused) => refused.faults,
    };
    let mut text: String = faults.iter().map(|fault| format!("{fault}\n")).collect();
    let name = path.display();
    // Writing to a string cannot fail.
    let _ = match faults.len() {
        0 => writeln!(text, "{name}: OK"),
        count => writeln!(text, "{name}: refused, {}", many(count)),
    };
    Report { text, refused: !faults.is_empty() }
}

/// Whether the data plane takes what a control plane would serve.
///
/// # Errors
/// What it would refuse, with places.
pub fn takes(sets: &Sets, defaults: Defaults) -> Result<(), Refused> {
    let mut faults: Vec<String> = sets.all().flat_map(|(_, set)| resources::refused(set, defaults)).collect();
    // What all groups share is found wanting in each of them.
    let mut told = HashSet::new();
    faults.retain(|fault| told.insert(fault.clone()));
    if faults.is_empty() { Ok(()) } else { Err(Refused { faults }) }
}

fn many(errors: usize) -> String {
    match errors {
        1 => "1 error".to_owned(),
        // Reading stops there.
        count @ MOST_ERRORS.. => format!("{count} errors or more"),
        count => format!("{count} errors"),
    }
}

/// In the order of the file.
fn in_order(errors: &[FieldError]) -> Vec<&FieldError> {
    let mut errors: Vec<_> = errors.iter().collect();
    errors.sort_by_key(|error| error.location.map(|place| (place.line, place.column)));
    errors
}

fn line_of(error: &FieldError) -> String {
    error.location.map(|place| format!(":{}:{}", place.line, place.column)).unwrap_or_default()
}

/// Without its place, which stands in front, and without saying its path twice.
fn plain(error: &FieldError) -> FieldError {
    let mut error = FieldError { location: None, ..error.clone() };
    if let Some(path) = error.reason.strip_prefix("not supported yet: ")
        && path == error.path.to_string()
    {
        error.reason = "not supported yet".to_owned();
    }
    error
}

/// One of each kind: fields that differ in nothing but the places in lists are told once, with how many more there are.
fn grouped(fields: &[(FieldPath, &'static str)]) -> Vec<(String, &'static str, usize)> {
    let mut groups: Vec<(String, String, &'static str, usize)> = Vec::new();
    for (path, reason) in fields {
        let path = path.to_string();
        let kind = without_indices(&path);
        match groups.iter_mut().find(|(known, _, why, _)| *known == kind && why == reason) {
            Some((.., more)) => *more += 1,
            None => groups.push((kind, path, reason, 0)),
        }
    }
    groups.into_iter().map(|(_, path, reason, more)| (path, reason, more)).collect()
}

fn without_indices(path: &str) -> String {
    path.split('[').map(|part| part.trim_start_matches(|c: char| c.is_ascii_digit())).collect::<Vec<_>>().join("[")
}

#[cfg(test)]
mod tests {
    use tidegate_xds::Format;

    use super::*;
    use crate::config::bootstrap::Overrides;

    fn said(yaml: &str) -> Report {
        let bootstrap = Bootstrap::read(yaml.as_bytes(), Format::Yaml, &Overrides::default(), Defaults::Safe);
        report(Path::new("a.yaml"), bootstrap, Defaults::Safe)
    }

    #[test]
    fn what_is_wrong_is_told_in_the_order_of_the_file() {
        let report = said("node: {id: a}\ndefault_config_source: {path: x}\nhds_config: {api_type: GRPC}\n");
        assert!(report.refused);
        let lines: Vec<_> = report.text.lines().collect();
        assert!(lines[0].starts_with("a.yaml:2:1: default_config_source: not supported yet"), "{}", report.text);
        assert!(!lines[0].contains("yet: default_config_source"), "{}", report.text);
        assert!(lines[1].starts_with("a.yaml:3:1: hds_config"), "{}", report.text);
        assert_eq!(lines[2], "a.yaml: refused, 2 errors");
    }

    #[test]
    fn what_is_hardly_meant_is_warned_of() {
        let report = said("admin: {}\nnode: {id: a}\nadmin: ~\n---\nmore: 1\n");
        assert!(!report.refused);
        assert_eq!(
            report.text,
            "a.yaml:1:1: warning: `admin` is set again below, which counts\n\
             a.yaml:4:1: warning: only the first document of the text is read\na.yaml: OK\n"
        );
    }

    #[test]
    fn more_errors_than_are_read_are_not_counted() {
        let clusters: String = (0..200).map(|at| format!("  - {{name: c{at}, typ: STATIC}}\n")).collect();
        let report = said(&format!("static_resources:\n  clusters:\n{clusters}"));
        assert!(report.text.ends_with("a.yaml: refused, 100 errors or more\n"), "{}", report.text);
    }

    #[test]
    fn an_unknown_cluster_is_found_where_it_is_named() {
        let yaml = "static_resources:
  listeners:
  - name: l
    address: {socket_address: {address: 127.0.0.1, port_value: 0}}
    filter_chains:
    - filters:
      - name: h
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: h
          http_filters:
          - {name: r, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
          route_config:
            virtual_hosts:
            - name: v
              domains: ['*']
              routes:
              - match: {prefix: /}
                route: {cluster: wbe}
  clusters:
  - {name: web, connect_timeout: 1s}
";
        let report = said(yaml);
        let place = "a.yaml:19:25: resource 'l': static_resources.listeners[0].";
        assert!(report.text.starts_with(place), "{}", report.text);
        assert!(report.text.contains("unknown cluster 'wbe'; did you mean 'web'?\n"), "{}", report.text);
        let good = yaml.replace("wbe", "web");
        assert!(!said(&good).refused, "{}", said(&good).text);
        // A cluster that is wrong itself is the one mistake.
        let report = said(&good.replace("connect_timeout: 1s", "type: EDS"));
        assert!(report.text.ends_with("refused, 1 error\n"), "{}", report.text);
    }

    #[test]
    fn what_is_without_effect_is_told_once() {
        let report = said("node: {metadata: {a: b}}\nperf_tracing_file_path: /x\n");
        assert!(!report.refused, "{}", report.text);
        assert_eq!(report.text.matches("without effect: perf_tracing_file_path: ").count(), 1);
        assert!(report.text.ends_with("a.yaml: OK\n"));
        let path = |text: &str| without_indices(text);
        assert_eq!(path("clusters[3].hosts[12].a"), path("clusters[4].hosts[1].a"));
        let at = |index| FieldPath::root().field("clusters").index(index).field("x");
        assert_eq!(grouped(&[(at(0), "why"), (at(1), "why")]), [("clusters[0].x".to_owned(), "why", 1)]);
    }
}
