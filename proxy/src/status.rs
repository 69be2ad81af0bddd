//! `tidegate status`: asks a running process how it is, over its admin interface. It must not know what the answer means.

use crate::admin_client::{Call, call};

/// The answer to `/status` of the process whose admin interface is at `admin` (`host:port`).
///
/// # Errors
/// Nobody is there, or it is not one of ours.
pub fn ask(admin: &str, format: &str) -> anyhow::Result<String> {
    let path = format!("/status?format={format}");
    let (status, body) = call(admin, &Call { method: "GET", path: &path, ..Call::default() })?;
    anyhow::ensure!(status == 200, "{admin} has no /status (it answered {status}): is it tidegate?");
    Ok(body)
}
