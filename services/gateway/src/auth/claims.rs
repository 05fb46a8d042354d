//! From the claims of a token to what its bearer may do.
use super::{Access, Refused};
use dashstream_core::filter::Tenants;
use serde_json::{Map, Value};
use std::{
    collections::BTreeSet,
    fmt,
    time::{Duration, SystemTime},
};

/// Most tenants of one token.
const TENANTS_MAX: usize = 1_000;
/// Longest `sub` that is kept, characters.
const SUBJECT_CHARS_MAX: usize = 256;

/// What a token may allow. The names have a prefix, so that they can stand in the same claim as those of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Permission {
    /// Receive records and ask queries.
    Read,
    /// Read the records of all tenants.
    AllTenants,
    /// Set and delete expected schemas.
    WriteSchemas,
    /// See who else watches.
    ListViewers,
}

impl Permission {
    pub const ALL: [Self; 4] = [Self::Read, Self::AllTenants, Self::WriteSchemas, Self::ListViewers];

    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "dashstream:read",
            Self::AllTenants => "dashstream:all-tenants",
            Self::WriteSchemas => "dashstream:write-schemas",
            Self::ListViewers => "dashstream:list-viewers",
        }
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Which claims say it.
#[derive(Clone, Debug)]
pub(super) struct Names {
    pub(super) tenants: String,
    pub(super) permissions: String,
}

impl Names {
    /// # Errors
    /// When a claim has a form that it can't have, or there is no tenant.
    pub(super) fn access(&self, claims: &Map<String, Value>, skew_seconds: u64) -> Result<Access, Refused> {
        let words = words(claims.get(&self.permissions)).ok_or(Refused::Claim("permissions"))?;
        let permissions: BTreeSet<_> =
            Permission::ALL.into_iter().filter(|known| words.contains(known.name())).collect();
        let tenants = if permissions.contains(&Permission::AllTenants) {
            Tenants::All
        } else {
            Tenants::Only(tenants(claims.get(&self.tenants))?)
        };
        Ok(Access {
            subject: subject(claims.get("sub"))?,
            tenants,
            permissions,
            expires: Some(expires(claims.get("exp"), skew_seconds).ok_or(Refused::Claim("exp"))?),
        })
    }
}

/// A list of words, or one text with spaces between them as OAuth has it.
fn words(claim: Option<&Value>) -> Option<BTreeSet<String>> {
    match claim {
        None => Some(BTreeSet::new()),
        Some(Value::String(text)) => Some(text.split_ascii_whitespace().map(str::to_owned).collect()),
        Some(Value::Array(list)) => list.iter().map(|word| word.as_str().map(str::to_owned)).collect(),
        Some(Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_)) => None,
    }
}

/// A list of names, or one name. Here a space is part of a name.
fn tenants(claim: Option<&Value>) -> Result<BTreeSet<String>, Refused> {
    let names: Option<BTreeSet<_>> = match claim {
        None => return Err(Refused::NoTenants),
        Some(Value::String(name)) => Some([name.clone()].into()),
        Some(Value::Array(list)) => list.iter().map(|name| name.as_str().map(str::to_owned)).collect(),
        Some(Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_)) => None,
    };
    let names = names.filter(|names| !names.contains("")).ok_or(Refused::Claim("tenants"))?;
    match names.len() {
        0 => Err(Refused::NoTenants),
        1..=TENANTS_MAX => Ok(names),
        _ => Err(Refused::TooManyTenants),
    }
}

fn subject(claim: Option<&Value>) -> Result<String, Refused> {
    match claim {
        None => Ok(String::new()),
        Some(Value::String(subject)) => Ok(subject.chars().take(SUBJECT_CHARS_MAX).collect()),
        Some(Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => {
            Err(Refused::Claim("sub"))
        }
    }
}

/// When the token ceases to be taken, differing clocks allowed for.
fn expires(claim: Option<&Value>, skew_seconds: u64) -> Option<SystemTime> {
    let seconds = claim?.as_f64().filter(|seconds| seconds.is_finite() && *seconds >= 0.0)?;
    // Centuries are as good as what does not fit.
    let seconds = (seconds as u64).min(1 << 40).saturating_add(skew_seconds);
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}
