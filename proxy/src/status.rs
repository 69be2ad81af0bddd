//! `tidegate status`: asks a running process how it is, over its admin interface. It must not know what the answer means.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use anyhow::Context;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The answer to `/status` of the process whose admin interface is at `admin` (`host:port`).
///
/// # Errors
/// Nobody is there, or it is not one of ours.
pub fn ask(admin: &str, format: &str) -> anyhow::Result<String> {
    let unreachable = || format!("cannot reach the admin interface at {admin}");
    let address = admin.to_socket_addrs().with_context(unreachable)?.next().with_context(unreachable)?;
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE).with_context(unreachable)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // An answer to HTTP/1.0 is as long as its connection.
    write!(stream, "GET /status?format={format} HTTP/1.0\r\nhost: {admin}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).with_context(unreachable)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("it does not answer in HTTP")?;
    let status = head.split(' ').nth(1).unwrap_or_default();
    anyhow::ensure!(status == "200", "{admin} has no /status (it answered {status}): is it tidegate?");
    Ok(body.to_owned())
}
