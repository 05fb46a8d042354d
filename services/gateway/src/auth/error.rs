//! Why a caller is refused.
use super::Permission;
use axum::http::StatusCode;
use tonic::{Code, Status};

/// Says nothing of the token itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("no token: expected `Authorization: Bearer <token>`")]
    Missing,
    #[error("the Authorization header is not `Bearer <token>`")]
    Scheme,
    #[error("the token is longer than 16 KiB")]
    TooLong,
    #[error("the token is not a signed JSON Web Token of a known algorithm")]
    Malformed,
    #[error("the token asks for extensions that are not known here (`crit`)")]
    Critical,
    #[error("the token is signed with an algorithm that its key is not for")]
    Algorithm,
    #[error("the token is signed with a key that is not known")]
    UnknownKey,
    #[error("the token's signature is wrong")]
    Signature,
    #[error("the token has expired")]
    Expired,
    #[error("the token is not valid yet")]
    NotYetValid,
    #[error("the token is of another issuer")]
    Issuer,
    #[error("the token is for another audience")]
    Audience,
    #[error("the token's claim `{0}` is missing or has a form that it can't have")]
    Claim(&'static str),
    #[error("the token names no tenant")]
    NoTenants,
    #[error("the token names more than 1,000 tenants")]
    TooManyTenants,
    #[error("the token is another subject's than the session's")]
    Subject,
    #[error("the token does not allow it: expected the permission `{0}`")]
    Permission(Permission),
    #[error("the token names none of these tenants")]
    Tenant,
    #[error("the keys of tokens are not known now: try again")]
    KeysUnavailable,
}

impl Refused {
    /// For metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Missing => "no_token",
            Self::Scheme | Self::TooLong | Self::Malformed | Self::Critical | Self::Claim(_) => {
                "malformed_token"
            }
            Self::Algorithm => "algorithm",
            Self::UnknownKey => "unknown_key",
            Self::Signature => "signature",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::Issuer => "issuer",
            Self::Audience => "audience",
            Self::NoTenants | Self::TooManyTenants | Self::Tenant => "tenant",
            Self::Subject => "subject",
            Self::Permission(_) => "permission",
            Self::KeysUnavailable => "keys_unavailable",
        }
    }

    /// Whether another token is what helps, or none would.
    fn kind(self) -> Kind {
        match self {
            Self::Permission(_) | Self::NoTenants | Self::Tenant => Kind::Denied,
            Self::KeysUnavailable => Kind::Unavailable,
            Self::Missing
            | Self::Scheme
            | Self::TooLong
            | Self::Malformed
            | Self::Critical
            | Self::Algorithm
            | Self::UnknownKey
            | Self::Signature
            | Self::Expired
            | Self::NotYetValid
            | Self::Issuer
            | Self::Audience
            | Self::Claim(_)
            | Self::TooManyTenants
            | Self::Subject => Kind::Unauthenticated,
        }
    }

    pub fn status(self) -> StatusCode {
        match self.kind() {
            Kind::Unauthenticated => StatusCode::UNAUTHORIZED,
            Kind::Denied => StatusCode::FORBIDDEN,
            Kind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// As websocket clients are told.
    pub fn code(self) -> dashstream_proto::session::v1::ErrorCode {
        use dashstream_proto::session::v1::ErrorCode;
        match self.kind() {
            Kind::Unauthenticated => ErrorCode::Unauthenticated,
            Kind::Denied => ErrorCode::PermissionDenied,
            Kind::Unavailable => ErrorCode::Unavailable,
        }
    }
}

enum Kind {
    Unauthenticated,
    Denied,
    Unavailable,
}

impl From<Refused> for Status {
    fn from(refused: Refused) -> Self {
        let code = match refused.kind() {
            Kind::Unauthenticated => Code::Unauthenticated,
            Kind::Denied => Code::PermissionDenied,
            Kind::Unavailable => Code::Unavailable,
        };
        Self::new(code, refused.to_string())
    }
}
