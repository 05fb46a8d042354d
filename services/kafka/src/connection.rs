//! The settings with which every client of ours reaches Kafka, and the one place that makes a client's
//! configuration of them.
use crate::security::Security;
use clap::builder::NonEmptyStringValueParser;
use dashstream_kit::config::Secret;
use rdkafka::{ClientConfig, error::KafkaError, types::RDKafkaConfRes};
use std::{io, path::PathBuf, str::FromStr};

/// How Kafka is reached.
#[derive(Clone, Debug, clap::Args)]
#[group(id = "kafka-connection")]
pub struct Connection {
    /// Brokers to begin with: `host:port`, comma-separated.
    #[arg(id = "kafka-brokers", long, env = "KAFKA_BROKERS", default_value = "127.0.0.1:9092",
          value_parser = NonEmptyStringValueParser::new())]
    pub brokers: String,

    /// How connections are protected. With `plaintext` and `sasl_plaintext` everything can be read on the way; with
    /// the mechanism `PLAIN` that is the password, too.
    #[arg(
        id = "kafka-security-protocol",
        long,
        env = "KAFKA_SECURITY_PROTOCOL",
        value_enum,
        default_value = "plaintext"
    )]
    pub security_protocol: Protocol,

    /// Certificates (PEM file) of the authorities that the brokers' certificates are trusted by, instead of the
    /// system's.
    #[arg(id = "kafka-ssl-ca", long, env = "KAFKA_SSL_CA", value_name = "FILE")]
    pub ssl_ca: Option<PathBuf>,

    /// Certificate (PEM file) that this process shows to the brokers. Needs its key as well.
    #[arg(id = "kafka-ssl-certificate", long, env = "KAFKA_SSL_CERTIFICATE", value_name = "FILE")]
    pub ssl_certificate: Option<PathBuf>,

    /// Key (PEM file) of the certificate that this process shows to the brokers.
    #[arg(id = "kafka-ssl-key", long, env = "KAFKA_SSL_KEY", value_name = "FILE")]
    pub ssl_key: Option<PathBuf>,

    /// Password of that key, where it has one. Empty for none.
    #[arg(id = "kafka-ssl-key-password", long, env = "KAFKA_SSL_KEY_PASSWORD", hide_env_values = true)]
    pub ssl_key_password: Option<Secret>,

    /// What a broker's certificate must name: `https`, the host that was connected to; `none`, nothing, so that
    /// whoever has any certificate of the authority can pose as a broker.
    #[arg(
        id = "kafka-ssl-endpoint-algorithm",
        long,
        env = "KAFKA_SSL_ENDPOINT_ALGORITHM",
        value_enum,
        default_value = "https"
    )]
    pub ssl_endpoint_algorithm: EndpointAlgorithm,

    /// How this process logs in, with `sasl_plaintext` and `sasl_ssl`.
    #[arg(id = "kafka-sasl-mechanism", long, env = "KAFKA_SASL_MECHANISM", value_enum, ignore_case = true)]
    pub sasl_mechanism: Option<Mechanism>,

    /// User to log in as. Empty for none.
    #[arg(id = "kafka-sasl-username", long, env = "KAFKA_SASL_USERNAME")]
    pub sasl_username: Option<String>,

    /// Password to log in with. Empty for none.
    #[arg(id = "kafka-sasl-password", long, env = "KAFKA_SASL_PASSWORD", hide_env_values = true)]
    pub sasl_password: Option<Secret>,

    /// File that has the password instead, and nothing else but perhaps the end of its line. Read at the start.
    #[arg(id = "kafka-sasl-password-file", long, env = "KAFKA_SASL_PASSWORD_FILE", value_name = "FILE")]
    pub sasl_password_file: Option<PathBuf>,

    /// Addresses that brokers are reached at. Unless given, IPv4 where a broker to begin with is `localhost` or
    /// `127.*`, as such brokers seldom listen on `::1`; otherwise any.
    #[arg(id = "kafka-broker-address-family", long, env = "KAFKA_BROKER_ADDRESS_FAMILY", value_enum)]
    pub address_family: Option<AddressFamily>,

    /// Further settings of librdkafka, `name=value` comma-separated, such as `reconnect.backoff.max.ms=1000`. Not
    /// those that have a setting here.
    #[arg(
        id = "kafka-settings",
        long,
        env = "KAFKA_SETTINGS",
        value_delimiter = ',',
        hide_env_values = true
    )]
    pub settings: Vec<Setting>,
}

/// How connections are protected, by the names that Kafka has for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Protocol {
    /// Neither TLS nor a login.
    Plaintext,
    /// TLS; a certificate of ours where the brokers ask for one.
    Ssl,
    /// A login, without TLS.
    SaslPlaintext,
    /// A login over TLS.
    SaslSsl,
}

/// How a login is made, by the names that Kafka has for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Mechanism {
    #[value(name = "PLAIN")]
    Plain,
    #[value(name = "SCRAM-SHA-256")]
    ScramSha256,
    #[value(name = "SCRAM-SHA-512")]
    ScramSha512,
}

/// What a broker's certificate must name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum EndpointAlgorithm {
    Https,
    None,
}

/// Addresses that brokers are reached at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum AddressFamily {
    Any,
    V4,
    V6,
}

/// One setting of librdkafka.
#[derive(Clone, PartialEq, Eq)]
pub struct Setting {
    pub name: String,
    pub value: String,
}

impl std::fmt::Debug for Setting {
    /// Without the value, which may be a password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}=***", self.name)
    }
}

impl FromStr for Setting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, value)) if !name.is_empty() => Ok(Self { name: name.into(), value: value.into() }),
            _ => Err("expected name=value".into()),
        }
    }
}

/// Why no client can be made of these settings. It names the setting, and shows no secret.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{setting} is needed: {because}")]
    Missing { setting: &'static str, because: String },
    #[error(
        "{setting} is set, but {protocol} makes no use of it; expected KAFKA_SECURITY_PROTOCOL={expected}"
    )]
    Useless { setting: &'static str, protocol: &'static str, expected: &'static str },
    #[error("KAFKA_SASL_PASSWORD and KAFKA_SASL_PASSWORD_FILE are both set: expected one of them")]
    TwoPasswords,
    #[error("{setting}: read {}: {source}", path.display())]
    Unreadable { setting: &'static str, path: PathBuf, source: io::Error },
    #[error("KAFKA_SETTINGS: {name} has a setting of its own, {setting}")]
    HasItsOwn { name: String, setting: &'static str },
    #[error("KAFKA_SETTINGS: {name}: {why}")]
    Refused { name: String, why: &'static str },
    #[error("make a Kafka client: {0}")]
    Client(#[from] KafkaError),
}

/// What librdkafka calls the settings that are ours by name.
const OWN: [(&str, &str); 16] = [
    ("bootstrap.servers", "KAFKA_BROKERS"),
    ("metadata.broker.list", "KAFKA_BROKERS"),
    ("security.protocol", "KAFKA_SECURITY_PROTOCOL"),
    ("ssl.ca.location", "KAFKA_SSL_CA"),
    ("ssl.certificate.location", "KAFKA_SSL_CERTIFICATE"),
    ("ssl.key.location", "KAFKA_SSL_KEY"),
    ("ssl.key.password", "KAFKA_SSL_KEY_PASSWORD"),
    ("ssl.endpoint.identification.algorithm", "KAFKA_SSL_ENDPOINT_ALGORITHM"),
    ("sasl.mechanism", "KAFKA_SASL_MECHANISM"),
    ("sasl.mechanisms", "KAFKA_SASL_MECHANISM"),
    ("sasl.username", "KAFKA_SASL_USERNAME"),
    ("sasl.password", "KAFKA_SASL_PASSWORD"),
    ("broker.address.family", "KAFKA_BROKER_ADDRESS_FAMILY"),
    ("group.id", "KAFKA_GROUP_ID"),
    ("group.instance.id", "KAFKA_GROUP_INSTANCE_ID"),
    ("session.timeout.ms", "KAFKA_SESSION_TIMEOUT"),
];

impl Connection {
    /// A connection without protection, such as to an embedded broker.
    pub fn plaintext(brokers: String) -> Self {
        Self {
            brokers,
            security_protocol: Protocol::Plaintext,
            ssl_ca: None,
            ssl_certificate: None,
            ssl_key: None,
            ssl_key_password: None,
            ssl_endpoint_algorithm: EndpointAlgorithm::Https,
            sasl_mechanism: None,
            sasl_username: None,
            sasl_password: None,
            sasl_password_file: None,
            address_family: None,
            settings: Vec::new(),
        }
    }

    /// The configuration of a client that calls itself `client_id`. `KAFKA_SETTINGS` win over `defaults`; what the
    /// caller sets on the result wins over both.
    ///
    /// # Errors
    /// When the settings contradict each other, a file can't be read, or librdkafka does not take one.
    pub fn client_config(&self, client_id: &str, defaults: &[(&str, &str)]) -> Result<ClientConfig, Error> {
        let security = Security::of(self)?;
        let mut config = ClientConfig::new();
        config.set("client.id", client_id);
        for (name, value) in defaults {
            config.set(*name, *value);
        }
        for setting in &self.settings {
            if let Some((_, own)) = OWN.iter().find(|(name, _)| *name == setting.name) {
                return Err(Error::HasItsOwn { name: setting.name.clone(), setting: own });
            }
            config.set(&setting.name, &setting.value);
        }
        config.create_native_config().map_err(without_value)?;
        config.set("bootstrap.servers", &self.brokers).set("broker.address.family", self.family());
        security.apply(&mut config);
        Ok(config)
    }

    fn family(&self) -> &'static str {
        let near = |broker: &str| {
            let host = broker.rsplit_once(':').map_or(broker, |(host, _)| host);
            host == "localhost" || host.starts_with("127.")
        };
        match self.address_family {
            Some(AddressFamily::Any) => "any",
            Some(AddressFamily::V4) => "v4",
            Some(AddressFamily::V6) => "v6",
            None if self.brokers.split(',').any(|broker| near(broker.trim())) => "v4",
            None => "any",
        }
    }
}

/// librdkafka's error shows the value of the setting that it refuses, which may be a password.
fn without_value(error: KafkaError) -> Error {
    let KafkaError::ClientConfig(result, _, name, _) = error else { return Error::Client(error) };
    let why = if result == RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN {
        "librdkafka has no such setting"
    } else {
        "librdkafka does not take this value"
    };
    Error::Refused { name, why }
}

#[cfg(test)]
mod tests;
