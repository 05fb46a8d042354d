//! The ways into the broker besides the plain one: over TLS, with a certificate, with a login.

use std::{fs, path::PathBuf};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    certificates::{authority, certificate, openssl},
    folder::Folder,
    net::free_port,
};

/// The user of the mechanism PLAIN, and its password. Others are made by [`crate::Kafka::set_password`].
pub const PLAIN_LOGIN: (&str, &str) = ("plain", "plain-secret");
/// The password of the file `locked.key`.
pub const KEY_PASSWORD: &str = "key-secret";
const SALT: &str = "salt of the tests";

/// A way into the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// TLS, for whoever comes.
    Ssl,
    /// TLS, for those who show a certificate of the broker's authority.
    Mtls,
    /// A login over TLS.
    SaslSsl,
    /// A login.
    SaslPlaintext,
}

const ALL: [Door; 4] = [Door::Ssl, Door::Mtls, Door::SaslSsl, Door::SaslPlaintext];

impl Door {
    /// Listener and protocol.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Ssl => ("SSL", "SSL"),
            Self::Mtls => ("MTLS", "SSL"),
            Self::SaslSsl => ("SASL_SSL", "SASL_SSL"),
            Self::SaslPlaintext => ("SASL_PLAINTEXT", "SASL_PLAINTEXT"),
        }
    }
}

/// All ways into one broker, with the certificates for them.
#[derive(Debug)]
pub(crate) struct Doors {
    ports: [u16; 4],
    folder: Folder,
}

impl Doors {
    /// Makes the certificates: `ca.crt` is the broker's authority, `client.crt` with `client.key` (and the same behind
    /// a password, `locked.key`) lets in, `stranger.crt` is an authority of nobody.
    pub(crate) fn new() -> Self {
        let folder = Folder::new("kafka-doors");
        authority(&folder, "ca");
        authority(&folder, "stranger");
        certificate(&folder, "server");
        certificate(&folder, "client");
        let password = format!("pass:{KEY_PASSWORD}");
        #[rustfmt::skip]
        openssl(&folder, &[
            "pkcs8", "-topk8", "-in", "client.key", "-out", "locked.key", "-v2", "aes-256-cbc", "-passout", &password,
        ]);
        let own = ["server.key", "server.crt"].map(|name| fs::read(folder.join(name)).expect("it was made"));
        fs::write(folder.join("server.pem"), own.concat()).expect("write the broker's certificate");
        Self { ports: ALL.map(|_| free_port()), folder }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub(crate) fn port(&self, door: Door) -> u16 {
        let place = ALL.iter().position(|it| *it == door).expect("all doors have a port");
        self.ports[place]
    }

    /// To be added to the broker's listeners.
    pub(crate) fn listeners(&self) -> String {
        ALL.map(|door| format!(",{}://127.0.0.1:{}", door.names().0, self.port(door))).concat()
    }

    /// To be added to the protocols of the broker's listeners.
    pub(crate) fn protocols(&self) -> String {
        ALL.map(|door| format!(",{}:{}", door.names().0, door.names().1)).concat()
    }

    /// The broker's settings for its listeners.
    pub(crate) fn settings(&self) -> String {
        let (server, ca) = (self.path("server.pem"), self.path("ca.crt"));
        let mut text = format!(
            "\
ssl.keystore.type=PEM
ssl.keystore.location={}
ssl.truststore.type=PEM
ssl.truststore.location={}
listener.name.mtls.ssl.client.auth=required
sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512
",
            server.display(),
            ca.display()
        );
        let modules = "org.apache.kafka.common.security";
        let (user, password) = PLAIN_LOGIN;
        for door in ["sasl_ssl", "sasl_plaintext"] {
            let plain = format!("{modules}.plain.PlainLoginModule required user_{user}=\"{password}\";\n");
            text.push_str(&format!("listener.name.{door}.plain.sasl.jaas.config={plain}"));
            for mechanism in ["scram-sha-256", "scram-sha-512"] {
                let scram = format!("{modules}.scram.ScramLoginModule required;\n");
                text.push_str(&format!("listener.name.{door}.{mechanism}.sasl.jaas.config={scram}"));
            }
        }
        text
    }

    /// Sets a user's password for SCRAM at the broker, whose plain address is `plain`.
    pub(crate) async fn set_password(&self, plain: &str, user: &str, password: &str) {
        for (mechanism, digest, length) in [(1, "SHA256", "32"), (2, "SHA512", "64")] {
            let options =
                ["digest", "pass", "salt", "iter"].into_iter().zip([digest, password, SALT, "4096"]);
            let options: Vec<_> = options.map(|(name, value)| format!("{name}:{value}")).collect();
            let options: Vec<_> = options.iter().flat_map(|option| ["-kdfopt", option]).collect();
            let args = [&["kdf", "-keylen", length], &*options, &["-binary", "PBKDF2"]].concat();
            alter_credentials(plain, user, mechanism, &openssl(&self.folder, &args)).await;
        }
    }
}

/// Sends a request of Kafka's own protocol, which no client library that is here has.
async fn alter_credentials(broker: &str, user: &str, mechanism: u8, salted_password: &[u8]) {
    // AlterUserScramCredentials, version 0; correlation 1; no client's name and no tags; delete none, set one.
    let mut request = vec![0, 51, 0, 0, 0, 0, 0, 1, 0xff, 0xff, 0, 1, 2];
    push_compact(&mut request, user.as_bytes());
    request.push(mechanism);
    request.extend(4096_i32.to_be_bytes());
    push_compact(&mut request, SALT.as_bytes());
    push_compact(&mut request, salted_password);
    request.extend([0, 0]);
    let mut broker = TcpStream::connect(broker).await.expect("connect");
    broker.write_i32(i32::try_from(request.len()).expect("it is short")).await.expect("send");
    broker.write_all(&request).await.expect("send");
    let length = broker.read_i32().await.expect("an answer");
    let mut answer = vec![0; usize::try_from(length).expect("a length")];
    broker.read_exact(&mut answer).await.expect("an answer");
    // Correlation, no tags, throttle time; one user with an error, which is 0 for none.
    let error = 10 + 1 + user.len();
    assert_eq!(answer[error..error + 2], [0, 0], "set a password: {}", String::from_utf8_lossy(&answer));
}

/// Bytes in the protocol's compact form, which for short ones is their length plus one before them.
fn push_compact(body: &mut Vec<u8>, bytes: &[u8]) {
    assert!(bytes.len() < 127, "longer ones need more than one byte for their length");
    body.push(u8::try_from(bytes.len() + 1).expect("it is short"));
    body.extend(bytes);
}
