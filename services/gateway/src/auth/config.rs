//! Settings of authentication.
use super::{claims::Names, keys::Rules};
use anyhow::{Context, bail};
use clap::ValueEnum;
use dashstream_kit::config::{Secret, duration};
use std::{net::IpAddr, path::PathBuf, time::Duration};

/// Shortest secret for HS256, bytes: as long as what it makes.
const SECRET_BYTES_MIN: usize = 32;
/// Longest time by which clocks may be said to differ.
const SKEW_MAX: Duration = Duration::from_secs(600);

/// How callers are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Not at all: whoever reaches the ports may read everything.
    None,
    /// By tokens signed with a shared secret.
    Hs256,
    /// By tokens signed with the keys of an issuer (RS256, ES256, EdDSA).
    Jwks,
}

impl Mode {
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Hs256 => "hs256",
            Self::Jwks => "jwks",
        }
    }
}

/// Who may connect. Texts that are empty count as not set.
#[derive(Clone, Debug, clap::Args)]
#[group(id = "auth")]
pub struct Auth {
    /// How callers are known. There is no default: that everybody may read everything must be said.
    #[arg(id = "auth-mode", long = "auth", env = "GATEWAY_AUTH", value_enum, value_name = "HOW")]
    pub mode: Mode,

    /// For hs256: the secret that tokens are signed with, at least 32 bytes.
    #[arg(long, env = "GATEWAY_JWT_SECRET", hide_env_values = true)]
    pub jwt_secret: Option<Secret>,

    /// For hs256: a file with the secret, instead. White space at its end does not count.
    #[arg(long, env = "GATEWAY_JWT_SECRET_FILE", value_name = "FILE")]
    pub jwt_secret_file: Option<PathBuf>,

    /// For jwks: where the issuer's keys are (a JSON Web Key Set): `https`, or `http` on this machine.
    #[arg(long, env = "GATEWAY_JWKS_URL", value_name = "URL")]
    pub jwks_url: Option<String>,

    /// For jwks: a file with the keys, instead.
    #[arg(long, env = "GATEWAY_JWKS_FILE", value_name = "FILE")]
    pub jwks_file: Option<PathBuf>,

    /// How often the keys are read again. They are besides when a token names one that is not known. If they can't
    /// be, those known are used for ten times as long.
    #[arg(long, env = "GATEWAY_JWKS_REFRESH", default_value = "5m", value_parser = duration)]
    pub jwks_refresh: Duration,

    /// What a token's `iss` must be. Must be set for jwks.
    #[arg(long, env = "GATEWAY_JWT_ISSUER", value_name = "ISSUER")]
    pub jwt_issuer: Option<String>,

    /// What a token's `aud` must be or have, one of these, comma-separated. Must be set for jwks.
    #[arg(long, env = "GATEWAY_JWT_AUDIENCE", value_delimiter = ',', value_name = "AUDIENCES")]
    pub jwt_audience: Vec<String>,

    /// By how much the issuer's clock may differ; at most ten minutes.
    #[arg(long, env = "GATEWAY_JWT_SKEW", default_value = "30s", value_parser = skew)]
    pub jwt_skew: Duration,

    /// The claim with the tenants whose records may be read: a name or a list of names.
    #[arg(long, env = "GATEWAY_TENANTS_CLAIM", default_value = "tenants", value_name = "CLAIM")]
    pub tenants_claim: String,

    /// The claim with what else is allowed: a list, or a text with spaces between. Known are `dashstream:read` (needed
    /// for anything), `dashstream:all-tenants`, `dashstream:write-schemas` and `dashstream:list-viewers`.
    #[arg(long, env = "GATEWAY_PERMISSIONS_CLAIM", default_value = "scope", value_name = "CLAIM")]
    pub permissions_claim: String,
}

fn skew(text: &str) -> Result<Duration, String> {
    let skew = duration(text)?;
    if skew > SKEW_MAX { Err("expected at most ten minutes".to_owned()) } else { Ok(skew) }
}

/// Where the keys of an issuer are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Url(reqwest::Url),
    File(PathBuf),
}

fn given<T: AsRef<str>>(text: &Option<T>) -> Option<&T> {
    text.as_ref().filter(|text| !text.as_ref().is_empty())
}

fn file(path: &Option<PathBuf>) -> Option<&PathBuf> {
    path.as_ref().filter(|path| !path.as_os_str().is_empty())
}

impl Auth {
    /// The secret of hs256.
    pub(super) fn secret(&self) -> anyhow::Result<Secret> {
        let named = self.jwt_secret.as_ref().filter(|secret| !secret.expose().is_empty());
        let secret = match (named, file(&self.jwt_secret_file)) {
            (Some(secret), None) => secret.clone(),
            (None, Some(path)) => {
                let text = std::fs::read_to_string(path)
                    .with_context(|| format!("GATEWAY_JWT_SECRET_FILE: read {}", path.display()))?;
                text.trim_end().parse()?
            }
            (None, None) => {
                bail!("GATEWAY_AUTH is hs256: expected GATEWAY_JWT_SECRET or GATEWAY_JWT_SECRET_FILE")
            }
            (Some(_), Some(_)) => {
                bail!("expected one of GATEWAY_JWT_SECRET and GATEWAY_JWT_SECRET_FILE, not both")
            }
        };
        let bytes = secret.expose().len();
        if bytes < SECRET_BYTES_MIN {
            bail!("the secret of GATEWAY_JWT_SECRET has {bytes} bytes: expected at least {SECRET_BYTES_MIN}");
        }
        Ok(secret)
    }

    /// Where the keys of jwks are.
    pub(super) fn source(&self) -> anyhow::Result<Source> {
        match (given(&self.jwks_url), file(&self.jwks_file)) {
            (Some(url), None) => {
                let url = url.parse::<reqwest::Url>().context("GATEWAY_JWKS_URL is not a URL")?;
                if url.scheme() == "https" || url.scheme() == "http" && is_here(&url) {
                    return Ok(Source::Url(url));
                }
                bail!(
                    "GATEWAY_JWKS_URL: expected https, or http on this machine: else anybody on the way makes keys"
                )
            }
            (None, Some(path)) => Ok(Source::File(path.clone())),
            (None, None) => bail!("GATEWAY_AUTH is jwks: expected GATEWAY_JWKS_URL or GATEWAY_JWKS_FILE"),
            (Some(_), Some(_)) => bail!("expected one of GATEWAY_JWKS_URL and GATEWAY_JWKS_FILE, not both"),
        }
    }

    pub(super) fn rules(&self) -> anyhow::Result<Rules> {
        let audiences: Vec<_> = self.jwt_audience.iter().filter(|name| !name.is_empty()).cloned().collect();
        let issuer = given(&self.jwt_issuer).cloned();
        if self.mode == Mode::Jwks && issuer.is_none() {
            bail!("GATEWAY_AUTH is jwks: expected GATEWAY_JWT_ISSUER");
        }
        if self.mode == Mode::Jwks && audiences.is_empty() {
            bail!("GATEWAY_AUTH is jwks: expected GATEWAY_JWT_AUDIENCE, or tokens made for others are taken");
        }
        Ok(Rules { issuer, audiences, skew_seconds: self.jwt_skew.as_secs() })
    }

    pub(super) fn names(&self) -> Names {
        Names { tenants: self.tenants_claim.clone(), permissions: self.permissions_claim.clone() }
    }
}

fn is_here(url: &reqwest::Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}
