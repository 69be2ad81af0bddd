//! `tidegate check`: what is wrong with a configuration, what is known and without effect, and which safe defaults change
//! what it does. It must not know how anything is served.

use std::fmt::Write;
use std::path::Path;

use tidegate_filters::context::Defaults;
use tidegate_xds::FieldError;

use crate::config::bootstrap::Bootstrap;
use crate::server;

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
            for error in &errors {
                // Writing to a string cannot fail.
                let _ = writeln!(text, "{name}{}: {}", line_of(error), without_place(error));
            }
            let _ =
                writeln!(text, "{name}: refused, {} error{}", errors.len(), if errors.len() == 1 { "" } else { "s" });
        }
        Ok(bootstrap) => {
            for (path, reason) in &bootstrap.without_effect {
                let _ = writeln!(text, "{name}: without effect: {path}: {reason}");
            }
            for changed in bootstrap.changed_defaults(defaults) {
                let _ = writeln!(text, "{name}: safe default: {changed}");
            }
            let _ = writeln!(text, "{name}: OK");
        }
    }
    Report { text, refused }
}

fn line_of(error: &FieldError) -> String {
    error.location.map(|place| format!(":{}:{}", place.line, place.column)).unwrap_or_default()
}

fn without_place(error: &FieldError) -> FieldError {
    FieldError { location: None, ..error.clone() }
}
