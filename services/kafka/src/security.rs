//! How a connection is protected: what the settings say, once they are known not to contradict each other.
use crate::connection::{Connection, EndpointAlgorithm, Error, Mechanism, Protocol};
use dashstream_kit::config::Secret;
use rdkafka::ClientConfig;
use std::{fs, path::PathBuf};

/// How a connection is protected, with what that needs and nothing else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Security {
    Plaintext,
    Ssl(Tls),
    SaslPlaintext(Login),
    SaslSsl(Tls, Login),
}

/// What TLS needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// The system's authorities unless given.
    ca: Option<PathBuf>,
    certificate: Option<Certificate>,
    endpoint: EndpointAlgorithm,
}

/// What is shown to the brokers.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Certificate {
    certificate: PathBuf,
    key: PathBuf,
    password: Option<Secret>,
}

/// What a login needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    mechanism: Mechanism,
    username: String,
    password: Secret,
}

impl Security {
    /// What the settings of a connection say. Reads the files that they name.
    ///
    /// # Errors
    /// When they contradict each other, or a file can't be read.
    pub fn of(connection: &Connection) -> Result<Self, Error> {
        Ok(match connection.security_protocol {
            Protocol::Plaintext => {
                refuse(&login_settings(connection), "plaintext", "sasl_ssl")?;
                refuse(&tls_settings(connection), "plaintext", "ssl")?;
                Self::Plaintext
            }
            Protocol::Ssl => {
                refuse(&login_settings(connection), "ssl", "sasl_ssl")?;
                Self::Ssl(Tls::of(connection)?)
            }
            Protocol::SaslPlaintext => {
                refuse(&tls_settings(connection), "sasl_plaintext", "sasl_ssl")?;
                Self::SaslPlaintext(Login::of(connection)?)
            }
            Protocol::SaslSsl => Self::SaslSsl(Tls::of(connection)?, Login::of(connection)?),
        })
    }

    /// Says it to librdkafka.
    pub fn apply(&self, config: &mut ClientConfig) {
        let (protocol, tls, login) = match self {
            Self::Plaintext => ("plaintext", None, None),
            Self::Ssl(tls) => ("ssl", Some(tls), None),
            Self::SaslPlaintext(login) => ("sasl_plaintext", None, Some(login)),
            Self::SaslSsl(tls, login) => ("sasl_ssl", Some(tls), Some(login)),
        };
        config.set("security.protocol", protocol);
        if let Some(tls) = tls {
            tls.apply(config);
        }
        if let Some(login) = login {
            login.apply(config);
        }
    }
}

impl Tls {
    fn of(connection: &Connection) -> Result<Self, Error> {
        let password = filled(connection.ssl_key_password.as_ref(), Secret::expose);
        let certificate = match (&connection.ssl_certificate, &connection.ssl_key) {
            (Some(certificate), Some(key)) => {
                Some(Certificate { certificate: certificate.clone(), key: key.clone(), password })
            }
            (Some(_), None) => return Err(missing("KAFKA_SSL_KEY", "KAFKA_SSL_CERTIFICATE is set")),
            (None, Some(_)) => return Err(missing("KAFKA_SSL_CERTIFICATE", "KAFKA_SSL_KEY is set")),
            (None, None) if password.is_some() => {
                return Err(missing("KAFKA_SSL_KEY", "KAFKA_SSL_KEY_PASSWORD is set"));
            }
            (None, None) => None,
        };
        for (setting, path) in [
            ("KAFKA_SSL_CA", &connection.ssl_ca),
            ("KAFKA_SSL_CERTIFICATE", &connection.ssl_certificate),
            ("KAFKA_SSL_KEY", &connection.ssl_key),
        ] {
            path.as_ref().map(|path| read(setting, path)).transpose()?;
        }
        Ok(Self { ca: connection.ssl_ca.clone(), certificate, endpoint: connection.ssl_endpoint_algorithm })
    }

    fn apply(&self, config: &mut ClientConfig) {
        // Linked statically, OpenSSL does not know where this system has its authorities; librdkafka looks.
        let ca = self.ca.as_ref().map_or("probe".into(), |path| path.to_string_lossy());
        let endpoint = match self.endpoint {
            EndpointAlgorithm::Https => "https",
            EndpointAlgorithm::None => "none",
        };
        config.set("ssl.ca.location", ca).set("ssl.endpoint.identification.algorithm", endpoint);
        if let Some(own) = &self.certificate {
            config
                .set("ssl.certificate.location", own.certificate.to_string_lossy())
                .set("ssl.key.location", own.key.to_string_lossy());
            if let Some(password) = &own.password {
                config.set("ssl.key.password", password.expose());
            }
        }
    }
}

impl Login {
    fn of(connection: &Connection) -> Result<Self, Error> {
        let because = "KAFKA_SECURITY_PROTOCOL is for a login";
        let mechanism = connection.sasl_mechanism.ok_or_else(|| missing("KAFKA_SASL_MECHANISM", because))?;
        let username = filled(connection.sasl_username.as_ref(), String::as_str);
        let username = username.ok_or_else(|| missing("KAFKA_SASL_USERNAME", because))?;
        let given = filled(connection.sasl_password.as_ref(), Secret::expose);
        let password = match (given, &connection.sasl_password_file) {
            (Some(_), Some(_)) => return Err(Error::TwoPasswords),
            (Some(password), None) => Some(password),
            (None, Some(path)) => filled(Some(&password_in(path)?), Secret::expose),
            (None, None) => None,
        };
        let needed = || missing("KAFKA_SASL_PASSWORD or a filled KAFKA_SASL_PASSWORD_FILE", because);
        Ok(Self { mechanism, username, password: password.ok_or_else(needed)? })
    }

    fn apply(&self, config: &mut ClientConfig) {
        let mechanism = match self.mechanism {
            Mechanism::Plain => "PLAIN",
            Mechanism::ScramSha256 => "SCRAM-SHA-256",
            Mechanism::ScramSha512 => "SCRAM-SHA-512",
        };
        config
            .set("sasl.mechanism", mechanism)
            .set("sasl.username", &self.username)
            .set("sasl.password", self.password.expose());
    }
}

/// Charts set a variable always, and leave it empty for none.
fn filled<T: Clone>(value: Option<&T>, text: impl Fn(&T) -> &str) -> Option<T> {
    value.filter(|value| !text(value).is_empty()).cloned()
}

/// Each setting of TLS, and whether it is set.
fn tls_settings(connection: &Connection) -> [(&'static str, bool); 4] {
    let password = filled(connection.ssl_key_password.as_ref(), Secret::expose);
    [
        ("KAFKA_SSL_CA", connection.ssl_ca.is_some()),
        ("KAFKA_SSL_CERTIFICATE", connection.ssl_certificate.is_some()),
        ("KAFKA_SSL_KEY", connection.ssl_key.is_some()),
        ("KAFKA_SSL_KEY_PASSWORD", password.is_some()),
    ]
}

/// Each setting of a login, and whether it is set.
fn login_settings(connection: &Connection) -> [(&'static str, bool); 4] {
    let username = filled(connection.sasl_username.as_ref(), String::as_str);
    let password = filled(connection.sasl_password.as_ref(), Secret::expose);
    [
        ("KAFKA_SASL_MECHANISM", connection.sasl_mechanism.is_some()),
        ("KAFKA_SASL_USERNAME", username.is_some()),
        ("KAFKA_SASL_PASSWORD", password.is_some()),
        ("KAFKA_SASL_PASSWORD_FILE", connection.sasl_password_file.is_some()),
    ]
}

/// Whoever sets what has no effect believes in a protection that is not there.
fn refuse(
    settings: &[(&'static str, bool)],
    protocol: &'static str,
    expected: &'static str,
) -> Result<(), Error> {
    match settings.iter().find(|(_, is_set)| *is_set) {
        Some((setting, _)) => Err(Error::Useless { setting, protocol, expected }),
        None => Ok(()),
    }
}

fn missing(setting: &'static str, because: &str) -> Error {
    Error::Missing { setting, because: because.to_owned() }
}

fn read(setting: &'static str, path: &PathBuf) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|source| Error::Unreadable { setting, path: path.clone(), source })
}

fn password_in(path: &PathBuf) -> Result<Secret, Error> {
    let setting = "KAFKA_SASL_PASSWORD_FILE";
    let text = fs::read_to_string(path).map_err(|source| Error::Unreadable {
        setting,
        path: path.clone(),
        source,
    })?;
    text.trim_end_matches(['\r', '\n']).parse().map_err(|never: std::convert::Infallible| match never {})
}
