//! Real servers and channels that know each other, and some that do not.

use std::net::SocketAddr;
use std::process::Command;

use tokio::net::TcpListener;
use tonic::Code;
use tonic::service::Routes;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;

use super::*;
use crate::Kit;
use crate::grpc::{Callers, serve};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

fn with_token(token: &str) -> Config {
    Config { service_token: token.parse().ok(), ..Config::default() }
}

fn kit(config: &Config) -> Kit {
    let mut kit = Kit::embedded("test");
    kit.trust = Trust::new(config).unwrap();
    kit
}

async fn start(kit: &Kit, callers: Callers) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (tasks, kit) = (kit.tasks.clone(), kit.clone());
    tasks.spawn("grpc", async move {
        serve(&kit, listener, tonic_health::pb::FILE_DESCRIPTOR_SET, Routes::default(), callers).await
    });
    address
}

/// Asks for something that only those who are known are told.
async fn ask(kit: &Kit, address: SocketAddr) -> Result<(), Status> {
    let mut client = ServerReflectionClient::new(kit.channel_to(&address.to_string()).unwrap());
    let silent = tokio_stream::once(ServerReflectionRequest::default());
    client.server_reflection_info(silent).await.map(drop)
}

async fn health(kit: &Kit, address: SocketAddr) -> Result<(), Status> {
    let mut client = HealthClient::new(kit.channel_to(&address.to_string()).unwrap());
    client.check(HealthCheckRequest { service: String::new() }).await.map(drop)
}

#[tokio::test]
async fn a_service_is_called_by_those_who_show_its_token_and_by_nobody_else() {
    let (server, stranger) = (kit(&with_token(TOKEN)), kit(&Config::default()));
    let wrong = kit(&with_token(&TOKEN.replace('0', "1")));
    let address = start(&server, Callers::Services).await;
    ask(&server, address).await.unwrap();
    for other in [&stranger, &wrong] {
        let status = ask(other, address).await.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated, "{status}");
        assert!(!status.message().contains(TOKEN), "{status}");
        health(other, address).await.unwrap();
    }
    let open = start(&server, Callers::Anybody).await;
    ask(&stranger, open).await.unwrap();
}

/// An authority, and what it vouches for, made by openssl.
fn authority(folder: &Path, name: &str) -> Config {
    let path = |ending: &str| folder.join(format!("{name}.{ending}"));
    let openssl = |args: &str| {
        let done = Command::new("openssl").args(args.split(' ')).current_dir(folder).output().unwrap();
        assert!(done.status.success(), "{args}: {}", String::from_utf8_lossy(&done.stderr));
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(&format!("req -x509 {key} -keyout {name}-ca.key -out {name}.ca -days 1 -subj /CN={name}"));
    openssl(&format!(
        "req {key} -keyout {name}.key -out {name}.csr -subj /CN=service -addext subjectAltName=DNS:dashstream"
    ));
    openssl(&format!(
        "x509 -req -in {name}.csr -CA {name}.ca -CAkey {name}-ca.key -CAcreateserial -days 1 -copy_extensions copyall -out {name}.cert"
    ));
    Config {
        grpc_tls_ca: Some(path("ca")),
        grpc_tls_cert: Some(path("cert")),
        grpc_tls_key: Some(path("key")),
        grpc_tls_name: "dashstream".to_owned(),
        ..Config::default()
    }
}

#[tokio::test]
async fn a_service_is_called_by_those_of_its_authority_and_by_nobody_else() {
    let folder = std::env::temp_dir().join(format!("dashstream-trust-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (ours, theirs) = (authority(&folder, "ours"), authority(&folder, "theirs"));
    let (server, stranger) = (kit(&ours), kit(&Config::default()));
    let other_name = kit(&Config { grpc_tls_name: "elsewhere".to_owned(), ..ours.clone() });
    let half = Config {
        grpc_tls_cert: theirs.grpc_tls_cert.clone(),
        grpc_tls_key: theirs.grpc_tls_key.clone(),
        ..ours
    };
    let (theirs, half) = (kit(&theirs), kit(&half));
    std::fs::remove_dir_all(&folder).unwrap();

    let address = start(&server, Callers::Services).await;
    ask(&server, address).await.unwrap();
    for (why, caller) in [
        ("no certificate", &stranger),
        ("another authority on both sides", &theirs),
        ("a certificate of another authority", &half),
        ("another name than the server has", &other_name),
    ] {
        assert!(ask(caller, address).await.is_err(), "{why}");
        assert!(health(caller, address).await.is_err(), "{why}");
    }
}

#[test]
fn settings_that_can_not_be_are_refused_by_name() {
    let file = |path: &str| Some(PathBuf::from(path));
    for (config, expected) in [
        (with_token("short"), "SERVICE_TOKEN has 5 bytes"),
        (Config { service_token_file: file("/nowhere"), ..Config::default() }, "SERVICE_TOKEN_FILE"),
        (Config { service_token_file: file("/nowhere"), ..with_token(TOKEN) }, "not both"),
        (Config { grpc_tls_ca: file("/nowhere"), ..Config::default() }, "GRPC_TLS_CERT"),
        (with_token(&format!("{TOKEN}\n")), "printable ASCII"),
    ] {
        let error = format!("{:#}", Trust::new(&config).unwrap_err());
        assert!(error.contains(expected) && !error.contains(TOKEN), "{error}");
    }
    let unset = Config { service_token: "".parse().ok(), grpc_tls_ca: file(""), ..Config::default() };
    assert_eq!(format!("{:?}", Trust::new(&unset).unwrap()), "Trust { token: false, tls: false }");
    assert!(!format!("{:?} {:?}", Trust::new(&with_token(TOKEN)), with_token(TOKEN)).contains(TOKEN));
}
