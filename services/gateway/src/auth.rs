//! Who a caller is and what of the stream it may read.
use axum::http::{HeaderMap, header};
use dashstream_core::filter::Tenants;
use dashstream_kit::{Kit, config::Secret};
use std::{collections::BTreeSet, sync::Arc, time::SystemTime};

mod claims;
pub mod config;
mod crypto;
mod error;
pub mod gate;
mod jwks;
mod keys;

pub use claims::Permission;
pub use error::Refused;

use claims::Names;
use config::{Auth, Mode};
use keys::{Head, Key, Rules};

/// What the subprotocol begins with that carries a token: a browser can set no other header of an upgrade.
pub const TOKEN_SUBPROTOCOL: &str = "dashstream.bearer.";

/// What a caller may do, as its token says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// Who it is: the token's `sub`; empty where nobody asks.
    pub subject: String,
    /// Whose records it may read.
    pub tenants: Tenants,
    pub permissions: BTreeSet<Permission>,
    /// From when on it may do nothing.
    pub expires: Option<SystemTime>,
}

impl Access {
    /// Of everybody, where nobody is asked for a token.
    fn everything() -> Self {
        let permissions = Permission::ALL.into();
        Self { subject: String::new(), tenants: Tenants::All, permissions, expires: None }
    }

    /// Whether its time is up.
    pub fn is_over(&self, now: SystemTime) -> bool {
        self.expires.is_some_and(|expires| now >= expires)
    }

    /// # Errors
    /// [`Refused::Permission`], with the one that is missing.
    pub fn require(&self, permission: Permission) -> Result<(), Refused> {
        if self.permissions.contains(&permission) { Ok(()) } else { Err(Refused::Permission(permission)) }
    }
}

/// Judges tokens. A cheap handle.
#[derive(Clone, Debug)]
pub struct Authenticator(Arc<Judge>);

#[derive(Debug)]
enum Judge {
    Nobody,
    Tokens { keys: Keys, rules: Rules, names: Names },
}

#[derive(Debug)]
enum Keys {
    Secret(Key),
    Set(jwks::Cache),
}

impl Authenticator {
    /// Keys that are fetched are kept up to date by a task of `kit`, which is not ready before it has some.
    ///
    /// # Errors
    /// When settings are missing or contradict each other; the error names them.
    pub fn new(settings: &Auth, kit: &Kit) -> anyhow::Result<Self> {
        crypto::install();
        let keys = match settings.mode {
            Mode::None => return Ok(Self(Arc::new(Judge::Nobody))),
            Mode::Hs256 => Keys::Secret(Key::secret(settings.secret()?.expose().as_bytes())),
            Mode::Jwks => {
                let cache = jwks::Cache::new(settings.source()?, settings.jwks_refresh)?;
                let latch = kit.readiness.latch("keys of tokens");
                kit.tasks.spawn("keys of tokens", cache.clone().keep_fresh(latch, kit.tasks.stop_token()));
                Keys::Set(cache)
            }
        };
        let (rules, names) = (settings.rules()?, settings.names());
        Ok(Self(Arc::new(Judge::Tokens { keys, rules, names })))
    }

    /// Whether callers need a token.
    pub fn is_on(&self) -> bool {
        matches!(*self.0, Judge::Tokens { .. })
    }

    /// What the bearer of `token` may do. Reading is the least of it: a token that does not allow that is refused.
    ///
    /// # Errors
    /// Why it is refused. Nothing of the token is repeated.
    pub async fn access(&self, token: Option<&Secret>) -> Result<Access, Refused> {
        let Judge::Tokens { keys, rules, names } = &*self.0 else { return Ok(Access::everything()) };
        let token = token.ok_or(Refused::Missing)?.expose();
        let head = Head::of(token)?;
        let claims = match keys {
            Keys::Secret(key) => key.claims(token, rules),
            Keys::Set(cache) => cache.find(&head).await?.claims(token, rules),
        }?;
        let access = names.access(&claims, rules.skew_seconds)?;
        access.require(Permission::Read)?;
        Ok(access)
    }
}

/// The token of a request: of its `Authorization` header, or of its websocket subprotocols.
///
/// # Errors
/// When there is an `Authorization` header that is not `Bearer` and a token.
pub fn token_of(headers: &HeaderMap) -> Result<Option<Secret>, Refused> {
    let secret = |text: &str| text.parse::<Secret>().ok();
    if let Some(value) = headers.get(header::AUTHORIZATION) {
        let (scheme, token) =
            value.to_str().ok().and_then(|text| text.split_once(' ')).ok_or(Refused::Scheme)?;
        return if scheme.eq_ignore_ascii_case("bearer") {
            Ok(secret(token.trim()))
        } else {
            Err(Refused::Scheme)
        };
    }
    let offered = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter();
    let offered = offered.filter_map(|value| value.to_str().ok()).flat_map(|list| list.split(','));
    Ok(offered.filter_map(|name| name.trim().strip_prefix(TOKEN_SUBPROTOCOL)).find_map(secret))
}

#[cfg(test)]
mod tests;
