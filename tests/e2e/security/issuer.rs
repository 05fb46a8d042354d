//! An issuer of tokens: keys of every kind, a server of their public halves, and tokens good and bad.
use axum::{Router, routing::get};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use dashstream_kit::Kit;
use ring::{
    hmac,
    rand::SystemRandom,
    rsa,
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256, RsaKeyPair,
    },
};
use serde_json::{Value, json};
use std::{
    process::Command,
    sync::{Arc, Mutex},
    time::SystemTime,
};

pub(crate) const ISSUER: &str = "https://issuer.example";
pub(crate) const AUDIENCE: &str = "dashstream";

fn encode(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs()
}

/// Claims that are taken, but for what is changed; what is changed to null is left out.
pub(crate) fn claims(change: &Value) -> Value {
    let mut claims = json!({
        "iss": ISSUER, "aud": AUDIENCE, "sub": "ann", "exp": now() + 600, "tenants": ["a"],
        "scope": "dashstream:read dashstream:write-schemas dashstream:list-viewers",
    });
    for (name, value) in change.as_object().expect("an object") {
        claims[name] = value.clone();
    }
    claims.as_object_mut().expect("an object").retain(|_, value| !value.is_null());
    claims
}

/// Keys that go by the ids `<name>-rsa`, `<name>-ec` and `<name>-ed`.
pub(crate) struct Keys {
    name: &'static str,
    rsa: RsaKeyPair,
    p256: EcdsaKeyPair,
    ed25519: Ed25519KeyPair,
}

impl Keys {
    pub(crate) fn new(name: &'static str) -> Self {
        let random = SystemRandom::new();
        let made = Command::new("openssl")
            .args(["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"])
            .output()
            .expect("run openssl");
        let pem = String::from_utf8(made.stdout).expect("PEM is text");
        let rsa = STANDARD.decode(pem.lines().filter(|line| !line.starts_with('-')).collect::<String>());
        let p256 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).expect("a key");
        let ed25519 = Ed25519KeyPair::generate_pkcs8(&random).expect("a key");
        let p256 = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, p256.as_ref(), &random);
        Self {
            name,
            rsa: RsaKeyPair::from_pkcs8(&rsa.expect("base64")).expect("a key"),
            p256: p256.expect("a key"),
            ed25519: Ed25519KeyPair::from_pkcs8(ed25519.as_ref()).expect("a key"),
        }
    }

    fn public(&self) -> Value {
        let rsa = rsa::PublicKeyComponents::<Vec<u8>>::from(self.rsa.public());
        let (x, y) = self.p256.public_key().as_ref()[1..].split_at(32);
        let id = |kind: &str| format!("{}-{kind}", self.name);
        json!({ "keys": [
            { "kty": "RSA", "alg": "RS256", "use": "sig", "kid": id("rsa"), "n": encode(rsa.n), "e": encode(rsa.e) },
            { "kty": "EC", "crv": "P-256", "kid": id("ec"), "x": encode(x), "y": encode(y) },
            { "kty": "OKP", "crv": "Ed25519", "kid": id("ed"), "x": encode(self.ed25519.public_key()) },
        ] })
    }

    /// A token under an algorithm and key id of one's choice, signed with the key of a kind.
    pub(crate) fn sign(&self, algorithm: &str, id: &str, kind: &str, claims: &Value) -> String {
        let header = json!({ "alg": algorithm, "kid": id });
        let message = format!("{}.{}", encode(header.to_string()), encode(claims.to_string()));
        let random = SystemRandom::new();
        let signature = match kind {
            "rsa" => {
                let mut signature = vec![0; self.rsa.public().modulus_len()];
                self.rsa.sign(&RSA_PKCS1_SHA256, &random, message.as_bytes(), &mut signature).expect("sign");
                signature
            }
            "ec" => self.p256.sign(&random, message.as_bytes()).expect("sign").as_ref().to_vec(),
            "ed" => self.ed25519.sign(message.as_bytes()).as_ref().to_vec(),
            // What a verifier would take for a secret if it let the token choose.
            "hmac with the public key" => {
                let key = hmac::Key::new(hmac::HMAC_SHA256, self.rsa.public_key().as_ref());
                hmac::sign(&key, message.as_bytes()).as_ref().to_vec()
            }
            _ => Vec::new(),
        };
        format!("{message}.{}", encode(signature))
    }

    /// A token as it should be.
    pub(crate) fn token(&self, change: &Value) -> String {
        self.sign("ES256", &format!("{}-ec", self.name), "ec", &claims(change))
    }
}

/// Serves the public halves of keys that can be changed.
pub(crate) struct Server {
    set: Arc<Mutex<String>>,
    pub(crate) url: String,
    _kit: Kit,
}

impl Server {
    pub(crate) async fn start(keys: &Keys) -> Self {
        let set = Arc::new(Mutex::new(keys.public().to_string()));
        let answer = Arc::clone(&set);
        let read = async move || answer.lock().expect("nobody panics with this lock").clone();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let url = format!("http://{}/keys", listener.local_addr().expect("an address"));
        let kit = Kit::embedded("issuer");
        let router = Router::new().route("/keys", get(read));
        kit.tasks.spawn("issuer", async move { axum::serve(listener, router).await });
        Self { set, url, _kit: kit }
    }

    pub(crate) fn rotate(&self, keys: &Keys) {
        *self.set.lock().expect("nobody panics with this lock") = keys.public().to_string();
    }
}
