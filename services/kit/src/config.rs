//! Settings that every process shares, and parsers for the values of all others.
//!
//! A value that does not parse stops the process before anything is bound: clap prints the name of
//! the setting, and the parsers here say what was expected.

use std::convert::Infallible;
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use tonic::transport::Uri;
use tracing_subscriber::EnvFilter;

mod targets;

pub use targets::{Targets, TargetsError};

/// Where this process can be observed, what it logs, and how long it may take to leave.
#[derive(Clone, Debug, clap::Args)]
#[group(id = "kit")]
pub struct Config {
    /// Address of the operations port: /livez, /readyz, /metrics and /version. Port 0 takes a free
    /// one, which is logged.
    #[arg(long, env = "OPS_LISTEN", default_value = "0.0.0.0:9100", value_name = "ADDRESS")]
    pub ops_listen: SocketAddr,

    /// What is logged: a level, or `target=level` directives separated by commas.
    #[arg(long, env = "RUST_LOG", default_value = "info", value_name = "DIRECTIVES", value_parser = log_directives)]
    pub log: String,

    /// How log lines are written to standard error.
    #[arg(long, env = "LOG_FORMAT", value_enum, default_value_t = LogFormat::Text, value_name = "FORMAT")]
    pub log_format: LogFormat,

    /// OTLP collector (gRPC) that traces are sent to, such as `http://collector:4317`. No traces
    /// are made without it.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL", value_parser = otlp_endpoint)]
    pub otlp_endpoint: Option<String>,

    /// How long a drain may take, from the signal to the end of the process. Keep it below the
    /// grace period of whoever sends the signal.
    #[arg(long, env = "DRAIN_TIMEOUT", default_value = "20s", value_name = "DURATION", value_parser = duration)]
    pub drain_timeout: Duration,

    #[command(flatten)]
    pub trust: crate::auth::Config,
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line, for collectors.
    Json,
}

/// Parses a duration for clap.
///
/// # Errors
/// A sentence with examples, which clap prints behind the name of the setting.
pub fn duration(text: &str) -> Result<Duration, String> {
    let parsed = humantime::parse_duration(text)
        .map_err(|error| format!("expected a duration such as `20s`, `500ms` or `1h 30m`: {error}"))?;
    if parsed.is_zero() { Err("expected a duration longer than zero".into()) } else { Ok(parsed) }
}

/// Parses a size in bytes for clap.
///
/// # Errors
/// A sentence with examples, which clap prints behind the name of the setting.
pub fn byte_size(text: &str) -> Result<u64, String> {
    let parsed = text
        .parse::<bytesize::ByteSize>()
        .map_err(|error| format!("expected a size such as `64KiB`, `8MiB` or `4096`: {error}"))?;
    if parsed.as_u64() == 0 { Err("expected a size of at least 1 byte".into()) } else { Ok(parsed.as_u64()) }
}

fn log_directives(text: &str) -> Result<String, String> {
    EnvFilter::builder()
        .parse(text)
        .map(|_| text.to_owned())
        .map_err(|error| format!("expected `info` or directives such as `info,h2=warn`: {error}"))
}

/// An empty text is let through: charts set the variable always, and leave it empty for "off".
fn otlp_endpoint(text: &str) -> Result<String, String> {
    let uri = text.parse::<Uri>();
    match uri.as_ref().map(Uri::scheme_str) {
        Ok(Some("http" | "https")) => Ok(text.to_owned()),
        _ if text.is_empty() => Ok(String::new()),
        Ok(_) | Err(_) => Err("expected a URL such as `http://collector:4317`".to_owned()),
    }
}

/// A setting that must not be shown: it prints as `***` wherever a configuration is logged.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The text itself, for the one place that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl FromStr for Secret {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    #[derive(Debug, clap::Parser)]
    struct Cli {
        #[command(flatten)]
        kit: Config,
    }

    fn parse(args: &[&str]) -> Result<Config, String> {
        Cli::try_parse_from([&["process"], args].concat())
            .map(|cli| cli.kit)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn defaults_are_those_of_the_manual() {
        let config = parse(&[]).unwrap();
        assert_eq!(config.ops_listen, "0.0.0.0:9100".parse().unwrap());
        assert_eq!(config.log_format, LogFormat::Text);
        assert_eq!(config.drain_timeout, Duration::from_secs(20));
    }

    #[test]
    fn a_wrong_value_is_refused_with_the_name_of_its_setting() {
        for (flag, value, expected) in [
            ("--log", "dashstream=loud", "directives such as"),
            ("--log-format", "xml", "possible values"),
            ("--drain-timeout", "20", "such as `20s`"),
            ("--ops-listen", "localhost", "invalid socket address"),
            ("--otlp-endpoint", "collector:4317", "such as `http://"),
        ] {
            let error = parse(&[flag, value]).unwrap_err();
            assert!(error.contains(flag) && error.contains(expected), "{error}");
        }
    }

    #[test]
    fn units_are_understood() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(byte_size("64KiB"), Ok(65_536));
        assert_eq!(byte_size("4096"), Ok(4_096));
        assert!(byte_size("some").unwrap_err().contains("64KiB"));
    }

    #[test]
    fn a_secret_is_never_printed() {
        let secret: Secret = "hunter2".parse().unwrap();
        assert_eq!(format!("{secret} {secret:?}"), "*** ***");
        assert_eq!(secret.expose(), "hunter2");
    }
}
