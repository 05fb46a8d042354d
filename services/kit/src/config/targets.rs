//! The addresses of a fleet of replicas.

use std::fmt;
use std::str::FromStr;

/// Names of the replicas of one service, as `host:port` separated by commas.
///
/// A host may be a name behind which several replicas stand (a headless service, a compose service
/// scaled to two): it is resolved again and again, and each address found counts as a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Targets(Vec<String>);

/// Why a text is no list of targets.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetsError {
    /// Nothing, or nothing between two commas.
    #[error("expected addresses such as `replay-0:7002,replay-1:7002`, found an empty one")]
    Empty,
    /// Not of the form `host:port`.
    #[error("expected `host:port`, found `{0}`")]
    NoPort(String),
    /// Services speak plaintext HTTP/2 to each other.
    #[error("expected `host:port` or `http://host:port`, found `{0}`")]
    Scheme(String),
}

impl Targets {
    /// Each address as `host:port`, in the order given. Never empty.
    pub fn addresses(&self) -> &[String] {
        &self.0
    }
}

impl FromStr for Targets {
    type Err = TargetsError;

    fn from_str(text: &str) -> Result<Self, TargetsError> {
        text.split(',').map(address).collect::<Result<_, _>>().map(Self)
    }
}

fn address(text: &str) -> Result<String, TargetsError> {
    let text = text.trim();
    let bare = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
    if bare.is_empty() {
        return Err(TargetsError::Empty);
    }
    if bare.contains('/') {
        return Err(TargetsError::Scheme(text.to_owned()));
    }
    match bare.rsplit_once(':') {
        Some((host, port)) if is_host(host) && port.parse::<u16>().is_ok_and(|port| port > 0) => {
            Ok(bare.to_owned())
        }
        Some(_) | None => Err(TargetsError::NoPort(text.to_owned())),
    }
}

/// A bare IPv6 address without brackets would lose its last group to the port.
fn is_host(host: &str) -> bool {
    let bracketed = host.starts_with('[') && host.ends_with(']');
    !host.is_empty() && (bracketed || !host.contains(':'))
}

impl fmt::Display for Targets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read_with_or_without_prefix() {
        let targets: Targets = "replay-0:7002, http://replay-1:7002/,[::1]:7002".parse().unwrap();
        assert_eq!(targets.addresses(), ["replay-0:7002", "replay-1:7002", "[::1]:7002"]);
        assert_eq!(targets.to_string(), "replay-0:7002,replay-1:7002,[::1]:7002");
    }

    #[test]
    fn a_wrong_list_is_refused_with_what_was_expected() {
        for (why, text, expected) in [
            ("nothing at all", "", "such as `replay-0:7002"),
            ("nothing behind the comma", "a:1,", "found an empty one"),
            ("a port is needed", "replay", "`host:port`, found `replay`"),
            ("a port is a number", "replay:http", "found `replay:http`"),
            ("nobody listens on port 0", "replay:0", "found `replay:0`"),
            ("a host is needed", ":7002", "found `:7002`"),
            ("brackets are needed", "::1:7002", "found `::1:7002`"),
            ("TLS is not spoken inside", "https://a:1", "found `https://a:1`"),
        ] {
            let error = text.parse::<Targets>().unwrap_err().to_string();
            assert!(error.contains(expected), "{why}: {error}");
        }
    }
}
