//! How services know each other: by a token that all of them have, by certificates of one authority, or both.
//!
//! Where neither is set, whoever reaches a port of a service may do what is done there.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::Response;
use subtle::ConstantTimeEq as _;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Error, Identity, Server, ServerTlsConfig};
use tonic::{Request as Call, Status};

use crate::config::Secret;
use crate::grpc;

/// Shortest token, bytes: nobody guesses it.
const TOKEN_BYTES_MIN: usize = 32;

/// What services show each other over gRPC. To be the same for all of them. Texts that are empty count as not set.
#[derive(Clone, Debug, Default, clap::Args)]
#[group(id = "trust")]
pub struct Config {
    /// Token that services show each other, at least 32 bytes. Calls without it are refused, but for health.
    #[arg(long, env = "SERVICE_TOKEN", hide_env_values = true)]
    pub service_token: Option<Secret>,

    /// A file with that token, instead. White space at its end does not count.
    #[arg(long, env = "SERVICE_TOKEN_FILE", value_name = "FILE")]
    pub service_token_file: Option<PathBuf>,

    /// Certificates (PEM file) of the authorities that services' certificates are trusted by. With it, services
    /// speak mutual TLS to each other: certificate and key are needed as well.
    #[arg(long, env = "GRPC_TLS_CA", value_name = "FILE")]
    pub grpc_tls_ca: Option<PathBuf>,

    /// Certificate (PEM file) that this process shows to other services, as server and as client.
    #[arg(long, env = "GRPC_TLS_CERT", value_name = "FILE")]
    pub grpc_tls_cert: Option<PathBuf>,

    /// Key (PEM file) of that certificate.
    #[arg(long, env = "GRPC_TLS_KEY", value_name = "FILE")]
    pub grpc_tls_key: Option<PathBuf>,

    /// Name that the certificate of every service has. Services are called by address, which changes.
    #[arg(long, env = "GRPC_TLS_NAME", default_value = "dashstream", value_name = "NAME")]
    pub grpc_tls_name: String,
}

/// What this process shows to others and expects of them. A cheap handle.
#[derive(Clone, Default)]
pub struct Trust(Arc<Inner>);

#[derive(Default)]
struct Inner {
    /// The value of the header that carries the token.
    bearer: Option<MetadataValue<Ascii>>,
    tls: Option<Tls>,
}

struct Tls {
    server: ServerTlsConfig,
    client: ClientTlsConfig,
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (token, tls) = (self.0.bearer.is_some(), self.0.tls.is_some());
        f.debug_struct("Trust").field("token", &token).field("tls", &tls).finish()
    }
}

impl Trust {
    /// # Errors
    /// When settings are missing or contradict each other, or a file can't be read; the error names the setting.
    pub fn new(config: &Config) -> anyhow::Result<Self> {
        let bearer = token(config)?.map(|token| bearer(&token)).transpose()?;
        Ok(Self(Arc::new(Inner { bearer, tls: tls(config)? })))
    }

    /// A channel to one replica of a service, `host:port`, connected by its first call and again when it broke.
    ///
    /// # Errors
    /// If the address does not parse.
    pub fn channel_to(&self, address: &str) -> Result<grpc::Channel, Error> {
        Ok(grpc::Channel::new(grpc::endpoint(address, self)?.connect_lazy(), self.badge()))
    }

    /// Whether a call with these headers is one of ours.
    fn knows(&self, headers: &HeaderMap) -> bool {
        let Some(bearer) = &self.0.bearer else { return true };
        let shown = headers.get(header::AUTHORIZATION).map_or(&[][..], |value| value.as_bytes());
        // How long it takes tells nothing of the token.
        bearer.as_bytes().ct_eq(shown).into()
    }

    /// What this process shows with each call.
    pub(crate) fn badge(&self) -> Badge {
        Badge(self.clone())
    }

    /// Where a service is, as URL.
    pub(crate) fn url(&self, address: &str) -> String {
        let scheme = if self.0.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{address}")
    }

    pub(crate) fn of_client(&self, endpoint: Endpoint) -> Result<Endpoint, Error> {
        match &self.0.tls {
            Some(tls) => endpoint.tls_config(tls.client.clone()),
            None => Ok(endpoint),
        }
    }

    pub(crate) fn of_server(&self, server: Server) -> Result<Server, Error> {
        match &self.0.tls {
            Some(tls) => server.tls_config(tls.server.clone()),
            None => Ok(server),
        }
    }
}

/// Refuses calls that do not show the token.
pub(crate) async fn check(State(trust): State<Trust>, request: Request, next: Next) -> Response {
    if trust.knows(request.headers()) {
        return next.run(request).await;
    }
    Status::unauthenticated("this port is for services that show the SERVICE_TOKEN").into_http()
}

/// Shows the token with every call.
#[derive(Clone, Debug)]
pub struct Badge(Trust);

impl Interceptor for Badge {
    fn call(&mut self, mut call: Call<()>) -> Result<Call<()>, Status> {
        if let Some(bearer) = &self.0.0.bearer {
            call.metadata_mut().insert("authorization", bearer.clone());
        }
        Ok(call)
    }
}

fn given(path: &Option<PathBuf>) -> Option<&Path> {
    path.as_deref().filter(|path| !path.as_os_str().is_empty())
}

fn token(config: &Config) -> anyhow::Result<Option<Secret>> {
    let named = config.service_token.as_ref().filter(|token| !token.expose().is_empty());
    let token = match (named, given(&config.service_token_file)) {
        (None, None) => return Ok(None),
        (Some(token), None) => token.clone(),
        (None, Some(path)) => {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("SERVICE_TOKEN_FILE: read {}", path.display()))?;
            text.trim_end().parse()?
        }
        (Some(_), Some(_)) => bail!("expected one of SERVICE_TOKEN and SERVICE_TOKEN_FILE, not both"),
    };
    let bytes = token.expose().len();
    if bytes < TOKEN_BYTES_MIN {
        bail!("SERVICE_TOKEN has {bytes} bytes: expected at least {TOKEN_BYTES_MIN}");
    }
    Ok(Some(token))
}

fn bearer(token: &Secret) -> anyhow::Result<MetadataValue<Ascii>> {
    let bearer = MetadataValue::try_from(format!("Bearer {}", token.expose()));
    // The cause would repeat nothing of it, but says nothing of use either.
    let mut bearer = bearer.map_err(|_| anyhow::anyhow!("SERVICE_TOKEN: expected printable ASCII"))?;
    bearer.set_sensitive(true);
    Ok(bearer)
}

fn tls(config: &Config) -> anyhow::Result<Option<Tls>> {
    let paths = (given(&config.grpc_tls_ca), given(&config.grpc_tls_cert), given(&config.grpc_tls_key));
    let (ca, cert, key) = match paths {
        (None, None, None) => return Ok(None),
        (Some(ca), Some(cert), Some(key)) => (ca, cert, key),
        (..) => bail!("GRPC_TLS_CA, GRPC_TLS_CERT and GRPC_TLS_KEY need each other: one of them is missing"),
    };
    let read = |name: &str, path: &Path| {
        std::fs::read(path).with_context(|| format!("{name}: read {}", path.display()))
    };
    let ca = Certificate::from_pem(read("GRPC_TLS_CA", ca)?);
    let identity = Identity::from_pem(read("GRPC_TLS_CERT", cert)?, read("GRPC_TLS_KEY", key)?);
    let name = config.grpc_tls_name.as_str();
    Ok(Some(Tls {
        server: ServerTlsConfig::new().identity(identity.clone()).client_ca_root(ca.clone()),
        client: ClientTlsConfig::new().identity(identity).ca_certificate(ca).domain_name(name),
    }))
}

#[cfg(test)]
mod tests;
