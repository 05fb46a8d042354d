use super::*;
use clap::Parser as _;
use std::path::Path;

#[derive(Debug, clap::Parser)]
struct Cli {
    #[command(flatten)]
    connection: Connection,
}

fn parse(args: &[&str]) -> Connection {
    // The environment of whoever runs the tests is not asked.
    let command = <Cli as clap::CommandFactory>::command().mut_args(|arg| arg.env(None));
    let matches = command.try_get_matches_from([&["process"], args].concat()).unwrap();
    <Cli as clap::FromArgMatches>::from_arg_matches(&matches).unwrap().connection
}

fn config(args: &[&str]) -> Result<ClientConfig, Error> {
    parse(args).client_config("tests", &[("linger.ms", "5"), ("client.rack", "a")])
}

fn file(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

#[test]
fn the_command_line_is_sound() {
    <Cli as clap::CommandFactory>::command().debug_assert();
    assert!(Cli::try_parse_from(["process", "--kafka-brokers", ""]).is_err());
}

/// The settings of a login, with some of them left out.
fn login<'a>(without: &[&str]) -> Vec<&'a str> {
    let all = [
        "--kafka-security-protocol=sasl_plaintext",
        "--kafka-sasl-mechanism=scram-sha-256",
        "--kafka-sasl-username=ingest",
        "--kafka-sasl-password=hunter2",
    ];
    all.into_iter().filter(|setting| !without.iter().any(|name| setting.contains(name))).collect()
}

#[test]
fn settings_that_contradict_each_other_are_refused_by_name_and_without_secrets() {
    let folder = tempfile::tempdir().unwrap();
    let pem = file(folder.path(), "a.pem", "a certificate");
    let empty = file(folder.path(), "empty", "\n");
    let [ca, certificate, key] = ["ca", "certificate", "key"].map(|of| format!("--kafka-ssl-{of}={pem}"));
    let (ca, certificate, key) = (ca.as_str(), certificate.as_str(), key.as_str());
    let (missing, unfilled) =
        (format!("--kafka-ssl-ca={pem}.not"), format!("--kafka-sasl-password-file={empty}"));
    let directory = format!("--kafka-ssl-ca={}", folder.path().display());
    let absent = format!("--kafka-sasl-password-file={empty}.not");
    let (ssl, sasl_ssl) = ("--kafka-security-protocol=ssl", "--kafka-security-protocol=sasl_ssl");
    let key_password = "--kafka-ssl-key-password=hunter2";
    for (args, expected) in [
        (
            vec![ca],
            "KAFKA_SSL_CA is set, but plaintext makes no use of it; expected KAFKA_SECURITY_PROTOCOL=ssl",
        ),
        (vec![key_password], "KAFKA_SSL_KEY_PASSWORD is set, but plaintext"),
        (vec!["--kafka-sasl-password=hunter2"], "KAFKA_SASL_PASSWORD is set, but plaintext"),
        (vec![ssl, "--kafka-sasl-username=ingest"], "KAFKA_SASL_USERNAME is set, but ssl"),
        ([login(&[]), vec![ca]].concat(), "KAFKA_SSL_CA is set, but sasl_plaintext"),
        (vec![ssl, certificate], "KAFKA_SSL_KEY is needed: KAFKA_SSL_CERTIFICATE is set"),
        (vec![ssl, key], "KAFKA_SSL_CERTIFICATE is needed: KAFKA_SSL_KEY is set"),
        (vec![ssl, key_password], "KAFKA_SSL_KEY is needed: KAFKA_SSL_KEY_PASSWORD is set"),
        (vec![ssl, &missing], "KAFKA_SSL_CA: read "),
        (vec![ssl, &directory], "KAFKA_SSL_CA: read "),
        (vec![sasl_ssl], "KAFKA_SASL_MECHANISM is needed"),
        (login(&["mechanism"]), "KAFKA_SASL_MECHANISM is needed"),
        (login(&["username"]), "KAFKA_SASL_USERNAME is needed"),
        (login(&["password"]), "KAFKA_SASL_PASSWORD or a filled KAFKA_SASL_PASSWORD_FILE is needed"),
        ([login(&["password"]), vec!["--kafka-sasl-password="]].concat(), "KAFKA_SASL_PASSWORD or"),
        ([login(&["password"]), vec![&*unfilled]].concat(), "KAFKA_SASL_PASSWORD or a filled"),
        ([login(&["password"]), vec![&*absent]].concat(), "KAFKA_SASL_PASSWORD_FILE: read "),
        (
            [login(&[]), vec![&*unfilled]].concat(),
            "KAFKA_SASL_PASSWORD and KAFKA_SASL_PASSWORD_FILE are both set",
        ),
        (vec!["--kafka-settings=sasl.password=hunter2"], "has a setting of its own, KAFKA_SASL_PASSWORD"),
        (vec!["--kafka-settings=sasl.passwrd=hunter2"], "sasl.passwrd: librdkafka has no such setting"),
        (vec!["--kafka-settings=linger.ms=hunter2"], "linger.ms: librdkafka does not take this value"),
    ] {
        let connection = parse(&args);
        let error = config(&args).unwrap_err().to_string();
        assert!(error.contains(expected), "{args:?}: {error}");
        for shown in [error, format!("{connection:?}")] {
            assert!(!shown.contains("hunter2"), "{shown}");
        }
    }
}

#[test]
fn what_is_said_to_librdkafka_is_what_was_set() {
    let folder = tempfile::tempdir().unwrap();
    let pem = file(folder.path(), "a.pem", "a certificate");
    let password = file(folder.path(), "password", "hunter2\r\n");
    let [ca, certificate, key] = ["ca", "certificate", "key"].map(|of| format!("--kafka-ssl-{of}={pem}"));
    let from_file = format!("--kafka-sasl-password-file={password}");
    let (ssl, sasl_ssl) = ("--kafka-security-protocol=ssl", "--kafka-security-protocol=sasl_ssl");
    for (args, name, expected) in [
        (vec![], "security.protocol", Some("plaintext")),
        (vec![], "ssl.ca.location", None),
        (vec!["--kafka-brokers=a:1,b:2"], "bootstrap.servers", Some("a:1,b:2")),
        (vec![ssl], "security.protocol", Some("ssl")),
        (vec![ssl], "ssl.ca.location", Some("probe")),
        (vec![ssl], "ssl.endpoint.identification.algorithm", Some("https")),
        (
            vec![ssl, "--kafka-ssl-endpoint-algorithm=none"],
            "ssl.endpoint.identification.algorithm",
            Some("none"),
        ),
        (vec![ssl, &*ca], "ssl.ca.location", Some(&*pem)),
        (vec![ssl, &certificate, &key], "ssl.certificate.location", Some(&*pem)),
        (vec![ssl, &certificate, &key], "ssl.key.location", Some(&*pem)),
        (vec![ssl, &certificate, &key, "--kafka-ssl-key-password=x"], "ssl.key.password", Some("x")),
        (vec![ssl, &certificate, &key, "--kafka-ssl-key-password="], "ssl.key.password", None),
        (login(&[]), "security.protocol", Some("sasl_plaintext")),
        (login(&[]), "sasl.mechanism", Some("SCRAM-SHA-256")),
        (login(&[]), "sasl.username", Some("ingest")),
        (login(&[]), "sasl.password", Some("hunter2")),
        ([login(&["password"]), vec![&*from_file]].concat(), "sasl.password", Some("hunter2")),
        ([login(&["protocol"]), vec![sasl_ssl]].concat(), "security.protocol", Some("sasl_ssl")),
        ([login(&["protocol"]), vec![sasl_ssl, &*ca]].concat(), "ssl.ca.location", Some(&*pem)),
        // The caller's defaults, and what wins over them.
        (vec![], "linger.ms", Some("5")),
        (vec!["--kafka-settings=linger.ms=7,client.id=mine"], "linger.ms", Some("7")),
        (vec!["--kafka-settings=linger.ms=7,client.id=mine"], "client.id", Some("mine")),
        (vec![], "client.id", Some("tests")),
    ] {
        let config = config(&args).unwrap_or_else(|error| panic!("{args:?}: {error}"));
        assert_eq!(config.get(name), expected, "{args:?}: {name}");
    }
}

#[test]
fn brokers_nearby_are_reached_over_ipv4_and_others_however_they_can_be() {
    for (args, family) in [
        (vec![], "v4"),
        (vec!["--kafka-brokers=kafka:9092, localhost:9092"], "v4"),
        (vec!["--kafka-brokers=kafka-0:9092,kafka-1:9092"], "any"),
        (vec!["--kafka-brokers=[::1]:9092"], "any"),
        (vec!["--kafka-broker-address-family=v6"], "v6"),
        (vec!["--kafka-brokers=kafka:9092", "--kafka-broker-address-family=v4"], "v4"),
    ] {
        assert_eq!(config(&args).unwrap().get("broker.address.family"), Some(family), "{args:?}");
    }
}
