//! Where an etcd is: its members, the prefix of our keys, and who asks. It must not know what is asked.

use std::fmt;
use std::path::Path;

use percent_encoding::percent_decode_str;

use crate::source::registry;

/// etcd's own.
const PORT: u16 = 2379;

/// A cluster of etcd has 3, 5 or 7 members.
const MOST_MEMBERS: usize = 16;

/// Under which keys are kept unless something else is said.
const PREFIX: &str = "/tidegate";

/// Why something is no URL of an etcd. What stands before an `@` is never in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct EtcdUrlError(String);

/// `etcd://[USER@]HOST[:PORT][,HOST[:PORT]]...[/PREFIX]`, or `etcd+https://...`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdUrl {
    /// `HOST:PORT` of each member.
    pub(super) members: Vec<String>,
    /// With `/` at its end.
    pub(super) prefix: String,
    pub(super) user: Option<String>,
    /// TLS is spoken with its members.
    pub(super) secure: bool,
}

/// What a user is known by. It is in no log.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(pub(super) String);

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(..)")
    }
}

impl Password {
    /// A file's first line.
    ///
    /// # Errors
    /// It cannot be read, or there is none in it.
    pub fn read(path: &Path) -> Result<Self, String> {
        registry::first_line(path, "password").map(Self)
    }

    pub(super) fn reveal(&self) -> &str {
        &self.0
    }
}

impl EtcdUrl {
    /// None: it is no URL of an etcd, but, say, a directory.
    ///
    /// # Errors
    /// It is one, and something is wrong with it.
    pub fn parse(text: &str) -> Option<Result<Self, EtcdUrlError>> {
        let (scheme, rest) = text.split_once("://")?;
        Some(match scheme {
            "etcd" | "etcd+https" => parse(rest, scheme != "etcd").map_err(EtcdUrlError),
            "etcds" | "etcd+tls" | "https" => {
                Err(EtcdUrlError("TLS is spoken with etcd+https://HOST[:PORT]".to_owned()))
            }
            other => Err(EtcdUrlError(format!(
                "'{other}' is no kind of store; there are directories, and etcd://HOST[:PORT][,HOST[:PORT]]...[/PREFIX]"
            ))),
        })
    }

    /// Who asks.
    pub fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }
}

fn parse(rest: &str, secure: bool) -> Result<EtcdUrl, String> {
    // Before anything is said of the text: a password may stand in it.
    let (user, rest) = match rest.rsplit_once('@') {
        Some((user, _)) if user.contains(':') => {
            return Err("a password stands in no URL: everybody can read it there; give it in a file".to_owned());
        }
        Some((user, _)) if user.contains('/') => {
            return Err("'@' is not expected in the prefix, nor '/' in a user's name (%2F)".to_owned());
        }
        Some((user, rest)) => (Some(user), rest),
        None => (None, rest),
    };
    let user = user.map(|user| percent_decode_str(user).decode_utf8().map(std::borrow::Cow::into_owned));
    let user = user.transpose().map_err(|_| "the user's name is not UTF-8")?;
    if user.as_ref().is_some_and(String::is_empty) {
        return Err("there is no user before the '@'".to_owned());
    }
    let (members, prefix) = rest.find('/').map_or((rest, PREFIX), |at| rest.split_at(at));
    if let Some(odd) = rest.chars().find(|c| matches!(c, '?' | '#') || c.is_whitespace() || c.is_control()) {
        return Err(format!("{odd:?} is not expected in it"));
    }
    let members = members.split(',').map(member).collect::<Result<Vec<_>, _>>()?;
    if members.len() > MOST_MEMBERS {
        return Err(format!("{} members: at most {MOST_MEMBERS} are expected", members.len()));
    }
    let prefix = Some(prefix.trim_end_matches('/')).filter(|prefix| !prefix.is_empty()).unwrap_or(PREFIX);
    Ok(EtcdUrl { members, prefix: format!("{prefix}/"), user, secure })
}

/// With its port.
fn member(text: &str) -> Result<String, String> {
    let authority: http::uri::Authority =
        text.parse().map_err(|_| format!("'{text}' is no member of an etcd: expected HOST or HOST:PORT"))?;
    let port = match text.strip_prefix(authority.host()) {
        Some("") => Some(PORT),
        Some(rest) => rest.strip_prefix(':').and_then(|port| port.parse::<u16>().ok()).filter(|port| *port > 0),
        None => None,
    };
    let port = port.ok_or_else(|| format!("'{text}': the port is not one"))?;
    Ok(format!("{}:{port}", authority.host()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<EtcdUrl, String> {
        EtcdUrl::parse(text).unwrap().map_err(|error| error.to_string())
    }

    #[test]
    fn members_prefix_and_user_are_read() {
        let url = read("etcd://a%40b@one,two:1,[::1]:3/mesh/edge/").unwrap();
        assert_eq!(url.members, ["one:2379", "two:1", "[::1]:3"]);
        assert_eq!((url.prefix.as_str(), url.user()), ("/mesh/edge/", Some("a@b")));
        for text in ["etcd://one", "etcd://one/"] {
            assert_eq!(read(text).unwrap().prefix, "/tidegate/");
        }
        assert_eq!(EtcdUrl::parse("some/directory"), None);
        assert_eq!(["etcd://one", "etcd+https://one"].map(|text| read(text).unwrap().secure), [false, true]);
    }

    #[test]
    fn what_is_wrong_is_said_and_no_password_with_it() {
        for (text, reason) in [
            ("etcds://one", "TLS is spoken with etcd+https://"),
            ("https://one", "TLS is spoken with etcd+https://"),
            ("consul://one", "'consul' is no kind of store"),
            ("etcd://me:secret@one", "a password stands in no URL"),
            ("etcd://me:secret/x@y@one", "a password stands in no URL"),
            ("etcd://one/x@y", "'@' is not expected in the prefix"),
            ("etcd://@one", "there is no user"),
            ("etcd://", "'' is no member"),
            ("etcd://one,", "'' is no member"),
            ("etcd://one:0", "'one:0': the port is not one"),
            ("etcd://one:", "the port is not one"),
            ("etcd://one:99999", "the port is not one"),
            ("etcd://one/x?tls=1", "'?' is not expected"),
            (&format!("etcd://{}one", "one,".repeat(MOST_MEMBERS)), "17 members"),
        ] {
            let said = read(text).unwrap_err();
            assert!(said.contains(reason) && !said.contains("secret"), "{text}: {said}");
        }
    }

    #[test]
    fn a_password_is_the_first_line_of_a_file_and_is_not_shown() {
        let path = std::env::temp_dir().join(format!("tidegate-password-{}", std::process::id()));
        std::fs::write(&path, "secret\nmore\n").unwrap();
        let password = Password::read(&path).unwrap();
        assert_eq!((password.reveal(), format!("{password:?}").as_str()), ("secret", "Password(..)"));
        std::fs::write(&path, "\n").unwrap();
        assert!(Password::read(&path).unwrap_err().starts_with("there is no password in "));
        std::fs::remove_file(&path).unwrap();
        assert!(Password::read(&path).unwrap_err().contains("tidegate-password-"));
    }
}
