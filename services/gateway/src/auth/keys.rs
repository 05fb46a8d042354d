//! Keys that tokens are signed with. Each has exactly one algorithm, told by what kind of key it is and never by
//! a token: so no token can choose how it is judged.
use super::Refused;
use jsonwebtoken::{
    Algorithm, DecodingKey, Validation, decode, decode_header,
    errors::{Error, ErrorKind},
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse},
};
use serde_json::{Map, Value};
use std::{collections::BTreeMap, fmt};

/// Longest token that is looked at, bytes.
pub(super) const TOKEN_BYTES_MAX: usize = 16 << 10;
/// Most keys of one set.
const KEYS_MAX: usize = 64;

/// What every token must say.
#[derive(Clone, Debug, Default)]
pub(super) struct Rules {
    /// The token's `iss`, where one is expected.
    pub(super) issuer: Option<String>,
    /// One of these must be in the token's `aud`; a token with an audience is refused where there are none.
    pub(super) audiences: Vec<String>,
    /// By how much clocks may differ, seconds.
    pub(super) skew_seconds: u64,
}

/// A key and the one algorithm that it is for.
#[derive(Clone)]
pub(super) struct Key {
    algorithm: Algorithm,
    key: DecodingKey,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("algorithm", &self.algorithm).finish_non_exhaustive()
    }
}

impl Key {
    /// A secret that is shared with whoever issues the tokens.
    pub(super) fn secret(secret: &[u8]) -> Self {
        Self { algorithm: Algorithm::HS256, key: DecodingKey::from_secret(secret) }
    }

    /// A public key of a set; `None` when it is of a kind that is not taken, or for another use.
    fn public(jwk: &Jwk) -> Option<Self> {
        // A secret has no place among public keys, and what is not known here is not taken.
        let (algorithm, named) = if let AlgorithmParameters::RSA(_) = &jwk.algorithm {
            (Algorithm::RS256, KeyAlgorithm::RS256)
        } else if let AlgorithmParameters::EllipticCurve(of) = &jwk.algorithm
            && of.curve == EllipticCurve::P256
        {
            (Algorithm::ES256, KeyAlgorithm::ES256)
        } else if let AlgorithmParameters::OctetKeyPair(of) = &jwk.algorithm
            && of.curve == EllipticCurve::Ed25519
        {
            (Algorithm::EdDSA, KeyAlgorithm::EdDSA)
        } else {
            return None;
        };
        let is_named = jwk.common.key_algorithm.is_none_or(|said| said == named);
        let is_for_signatures =
            jwk.common.public_key_use.as_ref().is_none_or(|said| *said == PublicKeyUse::Signature);
        let key = DecodingKey::from_jwk(jwk).ok()?;
        (is_named && is_for_signatures).then_some(Self { algorithm, key })
    }

    /// The claims of a token, once all that every token must say is true.
    ///
    /// # Errors
    /// Why it is refused.
    pub(super) fn claims(&self, token: &str, rules: &Rules) -> Result<Map<String, Value>, Refused> {
        let mut validation = Validation::new(self.algorithm);
        validation.leeway = rules.skew_seconds;
        validation.validate_nbf = true;
        let mut required = vec!["exp"];
        if let Some(issuer) = &rules.issuer {
            validation.set_issuer(&[issuer]);
            required.push("iss");
        }
        if !rules.audiences.is_empty() {
            validation.set_audience(&rules.audiences);
            required.push("aud");
        }
        validation.set_required_spec_claims(&required);
        Ok(decode(token, &self.key, &validation).map_err(|error| refusal(&error))?.claims)
    }
}

/// A plain chain: the library may name more kinds any time.
fn refusal(error: &Error) -> Refused {
    let kind = error.kind();
    if let ErrorKind::MissingRequiredClaim(claim) | ErrorKind::InvalidClaimFormat(claim) = kind {
        let known = ["iss", "aud", "nbf"].into_iter().find(|known| claim == known);
        return Refused::Claim(known.unwrap_or("exp"));
    }
    let is = [
        (matches!(kind, ErrorKind::ExpiredSignature), Refused::Expired),
        (matches!(kind, ErrorKind::ImmatureSignature), Refused::NotYetValid),
        (matches!(kind, ErrorKind::InvalidIssuer), Refused::Issuer),
        (matches!(kind, ErrorKind::InvalidAudience), Refused::Audience),
        (matches!(kind, ErrorKind::InvalidAlgorithm), Refused::Algorithm),
        (matches!(kind, ErrorKind::InvalidSignature), Refused::Signature),
    ];
    is.into_iter().find_map(|(is, refused)| is.then_some(refused)).unwrap_or(Refused::Malformed)
}

/// What a token says of itself before anything of it is believed.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) algorithm: Algorithm,
    pub(super) key_id: Option<String>,
}

impl Head {
    /// # Errors
    /// The token is none, or asks for what nobody here understands.
    pub(super) fn of(token: &str) -> Result<Self, Refused> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(Refused::TooLong);
        }
        // `none` and algorithms that are not known fail here.
        let header = decode_header(token).map_err(|_| Refused::Malformed)?;
        if header.crit.is_some() {
            return Err(Refused::Critical);
        }
        Ok(Self { algorithm: header.alg, key_id: header.kid })
    }
}

/// The public keys of one issuer, by id and algorithm. At most 64.
#[derive(Clone, Debug, Default)]
pub(super) struct KeySet(BTreeMap<(String, &'static str), Key>);

impl KeySet {
    /// Reads a JSON Web Key Set. Keys that are of no use here are left out.
    ///
    /// # Errors
    /// What was expected, where it is no set or has no key of use.
    pub(super) fn parse(text: &[u8]) -> Result<Self, String> {
        let set: Value = serde_json::from_slice(text).map_err(|error| format!("it is not JSON: {error}"))?;
        let keys = set.get("keys").and_then(Value::as_array).ok_or("it has no list `keys`")?;
        if keys.len() > KEYS_MAX {
            return Err(format!("it has {} keys: expected at most {KEYS_MAX}", keys.len()));
        }
        let keys = keys.iter().filter_map(|key| serde_json::from_value::<Jwk>(key.clone()).ok());
        let named = |jwk: Jwk| {
            let key = Key::public(&jwk)?;
            Some(((jwk.common.key_id.unwrap_or_default(), name(key.algorithm)?), key))
        };
        let found: BTreeMap<_, _> = keys.filter_map(named).collect();
        if found.is_empty() {
            return Err("it has no key for RS256, ES256 or EdDSA".to_owned());
        }
        Ok(Self(found))
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The key that a token names. One that names none gets the only key of its algorithm.
    pub(super) fn find(&self, head: &Head) -> Option<&Key> {
        let algorithm = name(head.algorithm)?;
        match &head.key_id {
            Some(id) => self.0.get(&(id.clone(), algorithm)),
            None => {
                let mut of = self.0.values().filter(|key| key.algorithm == head.algorithm);
                of.next().filter(|_| of.next().is_none())
            }
        }
    }
}

/// The algorithms that public keys are for.
pub(super) fn name(algorithm: Algorithm) -> Option<&'static str> {
    [(Algorithm::RS256, "RS256"), (Algorithm::ES256, "ES256"), (Algorithm::EdDSA, "EdDSA")]
        .into_iter()
        .find_map(|(known, name)| (known == algorithm).then_some(name))
}
