//! `tidegate expand`: the xDS resources that files of the short form stand for. It must not know how they are made.

use tidegate_control::server::REST;
use tidegate_control::{short, source};

use crate::cli::{ExpandFlags, OutputFormat};

/// What `expand` prints.
///
/// # Errors
/// What keeps the files from being served, and a group that is not there.
pub fn print(flags: &ExpandFlags) -> anyhow::Result<String> {
    // The command line has one of them.
    let Some(path) = flags.path.as_deref().filter(|_| !flags.schema) else {
        return Ok(format!("{:#}\n", short::schema()));
    };
    let sets = source::load(path)?;
    let group = flags.group.as_deref().unwrap_or(REST);
    let found = sets.all().find(|(name, _)| *name == group);
    let names = || sets.all().map(|(name, _)| name).collect::<Vec<_>>().join(", ");
    let (_, set) = found.ok_or_else(|| anyhow::anyhow!("there is no group '{group}'; there are: {}", names()))?;
    let resources = set.to_json();
    Ok(match flags.format {
        OutputFormat::Yaml => short::yaml(&resources),
        OutputFormat::Json => format!("{resources:#}\n"),
    })
}
