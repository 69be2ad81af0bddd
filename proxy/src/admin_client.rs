//! Asks another process over its admin interface. It must not know what the answer means.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use anyhow::Context;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is asked.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Call<'a> {
    pub(crate) method: &'a str,
    pub(crate) path: &'a str,
    pub(crate) headers: &'a [(&'a str, String)],
    pub(crate) body: &'a [u8],
}

/// Status and body of the answer of the process whose admin interface is at `admin` (`host:port`).
///
/// # Errors
/// Nobody is there, or it does not speak HTTP.
pub(crate) fn call(admin: &str, call: &Call<'_>) -> anyhow::Result<(u16, String)> {
    let unreachable = || format!("cannot reach the admin interface at {admin}");
    let address = admin.to_socket_addrs().with_context(unreachable)?.next().with_context(unreachable)?;
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE).with_context(unreachable)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut head =
        format!("{} {} HTTP/1.0\r\nhost: {admin}\r\ncontent-length: {}\r\n", call.method, call.path, call.body.len());
    for (name, value) in call.headers {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all(format!("{head}\r\n").as_bytes()).with_context(unreachable)?;
    stream.write_all(call.body).with_context(unreachable)?;
    // An answer to HTTP/1.0 is as long as its connection.
    let mut answer = String::new();
    stream.read_to_string(&mut answer).with_context(unreachable)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("it does not answer in HTTP")?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).context("it does not answer in HTTP")?;
    Ok((status, body.to_owned()))
}
