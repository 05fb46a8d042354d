//! Tokens that are taken, and all the ways in which they are not.
use super::{
    config::Source,
    keys::{KeySet, TOKEN_BYTES_MAX},
    *,
};
use axum::{Router, http::HeaderMap, routing::get};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::{
    hmac,
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair},
};
use serde_json::{Value, json};
use std::{
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

fn encode(text: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(text)
}

fn signed(header: &Value, claims: &Value, sign: impl Fn(&[u8]) -> Vec<u8>) -> String {
    let message = format!("{}.{}", encode(header.to_string()), encode(claims.to_string()));
    let signature = encode(sign(message.as_bytes()));
    format!("{message}.{signature}")
}

fn hs256(secret: &[u8], claims: &Value) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    let sign = |message: &[u8]| hmac::sign(&key, message).as_ref().to_vec();
    signed(&json!({ "alg": "HS256", "typ": "JWT" }), claims, sign)
}

fn now() -> u64 {
    jsonwebtoken::get_current_timestamp()
}

fn claims() -> Value {
    json!({
        "iss": "https://issuer.example", "aud": ["dashstream", "other"], "sub": "ann", "exp": now() + 60,
        "nbf": now() - 60, "tenants": ["a", "b"], "scope": "openid dashstream:read",
    })
}

fn with(change: &Value) -> Value {
    let mut claims = claims();
    for (name, value) in change.as_object().unwrap() {
        claims[name] = value.clone();
    }
    claims.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    claims
}

fn judging(keys: Keys) -> Authenticator {
    crypto::install();
    let issuer = Some("https://issuer.example".to_owned());
    let rules = Rules { issuer, audiences: vec!["dashstream".to_owned()], skew_seconds: 30 };
    let names = Names { tenants: "tenants".to_owned(), permissions: "scope".to_owned() };
    Authenticator(Arc::new(Judge::Tokens { keys, rules, names }))
}

async fn judge(authenticator: &Authenticator, token: &str) -> Result<Access, Refused> {
    authenticator.access(Some(&token.parse().unwrap())).await
}

#[tokio::test]
async fn a_token_that_says_all_that_it_must_is_taken() {
    let secret = judging(Keys::Secret(Key::secret(SECRET)));
    let access = judge(&secret, &hs256(SECRET, &claims())).await.unwrap();
    assert_eq!(access.subject, "ann");
    assert_eq!(access.tenants, Tenants::Only(["a".to_owned(), "b".to_owned()].into()));
    assert_eq!(access.permissions, [Permission::Read].into());
    let left = access.expires.unwrap().duration_since(SystemTime::now()).unwrap();
    assert!((85..=90).contains(&left.as_secs()), "expiry and skew: {left:?}");

    let scope = json!({ "scope": ["dashstream:read", "dashstream:all-tenants"], "tenants": null });
    assert_eq!(judge(&secret, &hs256(SECRET, &with(&scope))).await.unwrap().tenants, Tenants::All);
    for (why, change) in [
        ("one audience as a text", json!({ "aud": "dashstream" })),
        ("one tenant as a text", json!({ "tenants": "a b" })),
        ("no nbf", json!({ "nbf": null })),
        ("clocks may differ", json!({ "exp": now() - 20, "nbf": now() + 20 })),
        ("no subject", json!({ "sub": null })),
    ] {
        judge(&secret, &hs256(SECRET, &with(&change))).await.expect(why);
    }
}

#[tokio::test]
async fn a_token_that_does_not_is_refused_with_the_reason() {
    let secret = judging(Keys::Secret(Key::secret(SECRET)));
    for (change, expected) in [
        (json!({ "exp": now() - 31 }), Refused::Expired),
        (json!({ "nbf": now() + 35 }), Refused::NotYetValid),
        (json!({ "exp": null }), Refused::Claim("exp")),
        (json!({ "exp": "tomorrow" }), Refused::Claim("exp")),
        (json!({ "nbf": "yesterday" }), Refused::Claim("nbf")),
        (json!({ "iss": "https://evil.example" }), Refused::Issuer),
        (json!({ "iss": null }), Refused::Claim("iss")),
        (json!({ "aud": "other" }), Refused::Audience),
        (json!({ "aud": null }), Refused::Claim("aud")),
        (json!({ "tenants": null }), Refused::NoTenants),
        (json!({ "tenants": [] }), Refused::NoTenants),
        (json!({ "tenants": [""] }), Refused::Claim("tenants")),
        (json!({ "tenants": ["a", 1] }), Refused::Claim("tenants")),
        (
            json!({ "tenants": (0..1_001).map(|i| i.to_string()).collect::<Vec<_>>() }),
            Refused::TooManyTenants,
        ),
        (json!({ "scope": null }), Refused::Permission(Permission::Read)),
        (json!({ "scope": "dashstream:reader" }), Refused::Permission(Permission::Read)),
        (json!({ "scope": 1 }), Refused::Claim("permissions")),
        (json!({ "sub": 1 }), Refused::Claim("sub")),
    ] {
        let token = hs256(SECRET, &with(&change));
        assert_eq!(judge(&secret, &token).await, Err(expected), "{change:.80}");
    }
    let good = hs256(SECRET, &claims());
    let (head, rest) = good.split_once('.').unwrap();
    let none = encode(r#"{"alg":"none"}"#);
    let critical = encode(r#"{"alg":"HS256","crit":["b64"],"b64":false}"#);
    for (why, token, expected) in [
        ("another secret", hs256(b"0123456789abcdef0123456789abcdeX", &claims()), Refused::Signature),
        ("no signature", format!("{head}.{}.", rest.split_once('.').unwrap().0), Refused::Signature),
        ("the algorithm none", format!("{none}.{rest}"), Refused::Malformed),
        ("extensions", format!("{critical}.{rest}"), Refused::Critical),
        ("no token", "secret".to_owned(), Refused::Malformed),
        ("too long", "x".repeat(TOKEN_BYTES_MAX + 1), Refused::TooLong),
    ] {
        assert_eq!(judge(&secret, &token).await, Err(expected), "{why}");
    }
    assert_eq!(secret.access(None).await, Err(Refused::Missing));
}

/// Keys of an issuer, and tokens signed with them.
struct Issuer {
    ed25519: Ed25519KeyPair,
    p256: EcdsaKeyPair,
}

impl Issuer {
    fn new() -> Self {
        let random = SystemRandom::new();
        let ed25519 = Ed25519KeyPair::generate_pkcs8(&random).unwrap();
        let p256 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        Self {
            ed25519: Ed25519KeyPair::from_pkcs8(ed25519.as_ref()).unwrap(),
            p256: EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, p256.as_ref(), &random).unwrap(),
        }
    }

    fn keys(&self, prefix: &str) -> Value {
        let (x, y) = self.p256.public_key().as_ref()[1..].split_at(32);
        let ed = encode(self.ed25519.public_key());
        json!({ "keys": [
            { "kty": "OKP", "crv": "Ed25519", "kid": format!("{prefix}-ed"), "alg": "EdDSA", "use": "sig", "x": ed },
            { "kty": "EC", "crv": "P-256", "kid": format!("{prefix}-ec"), "x": encode(x), "y": encode(y) },
            { "kty": "oct", "kid": "secret", "k": encode(SECRET) },
            { "kty": "EC", "crv": "P-256", "kid": "for-encryption", "use": "enc", "x": encode(x), "y": encode(y) },
            { "kty": "of tomorrow", "kid": "new" },
        ] })
    }

    fn eddsa(&self, header: &Value) -> String {
        signed(header, &claims(), |message| self.ed25519.sign(message).as_ref().to_vec())
    }

    fn es256(&self, header: &Value) -> String {
        let random = SystemRandom::new();
        signed(header, &claims(), |message| self.p256.sign(&random, message).unwrap().as_ref().to_vec())
    }
}

/// A server of key sets that counts how often it is asked.
async fn serve(set: Value) -> (Arc<Mutex<Value>>, Arc<AtomicUsize>, Source, Kit) {
    let (set, asked) = (Arc::new(Mutex::new(set)), Arc::new(AtomicUsize::new(0)));
    let (answer, count) = (Arc::clone(&set), Arc::clone(&asked));
    let router = Router::new().route(
        "/keys",
        get(async move || {
            count.fetch_add(1, Ordering::Relaxed);
            answer.lock().unwrap().to_string()
        }),
    );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/keys", listener.local_addr().unwrap());
    let kit = Kit::embedded("issuer");
    let served = async move { axum::serve(listener, router).await };
    kit.tasks.spawn("issuer", served);
    (set, asked, Source::Url(url.parse().unwrap()), kit)
}

#[tokio::test]
async fn each_key_is_for_its_own_algorithm_whatever_a_token_says() {
    let issuer = Issuer::new();
    let (_, _, source, _kit) = serve(issuer.keys("one")).await;
    let set = judging(Keys::Set(jwks::Cache::new(source, Duration::from_secs(300)).unwrap()));
    let header = |algorithm: &str, id: &str| json!({ "alg": algorithm, "kid": id });
    judge(&set, &issuer.eddsa(&header("EdDSA", "one-ed"))).await.unwrap();
    judge(&set, &issuer.es256(&header("ES256", "one-ec"))).await.unwrap();
    judge(&set, &issuer.eddsa(&json!({ "alg": "EdDSA" }))).await.expect("the only key of its algorithm");

    let public = issuer.ed25519.public_key().as_ref().to_vec();
    let key = hmac::Key::new(hmac::HMAC_SHA256, &public);
    let confused = |id: &str, key: &hmac::Key| {
        signed(&header("HS256", id), &claims(), |message| hmac::sign(key, message).as_ref().to_vec())
    };
    let secret = hmac::Key::new(hmac::HMAC_SHA256, SECRET);
    for (why, token, expected) in [
        ("a public key taken for a secret", confused("one-ed", &key), Refused::Algorithm),
        ("a secret among public keys", confused("secret", &secret), Refused::Algorithm),
        ("another kind of key", issuer.eddsa(&header("ES256", "one-ed")), Refused::UnknownKey),
        ("another key", issuer.es256(&header("EdDSA", "one-ed")), Refused::Signature),
        ("a key for encryption", issuer.es256(&header("ES256", "for-encryption")), Refused::UnknownKey),
        ("nobody's key", issuer.es256(&header("ES256", "two-ec")), Refused::UnknownKey),
        ("an algorithm that is not taken", issuer.es256(&header("ES384", "one-ec")), Refused::Algorithm),
    ] {
        assert_eq!(judge(&set, &token).await, Err(expected), "{why}");
    }
}

#[tokio::test]
async fn keys_that_change_are_read_again_by_one_and_not_too_often() {
    let (before, after) = (Issuer::new(), Issuer::new());
    let (set, asked, source, _kit) = serve(before.keys("before")).await;
    let cache = jwks::Cache::new(source, Duration::from_secs(300)).unwrap();
    let authenticator = judging(Keys::Set(cache));
    let old = before.eddsa(&json!({ "alg": "EdDSA", "kid": "before-ed" }));
    let new = after.eddsa(&json!({ "alg": "EdDSA", "kid": "after-ed" }));
    let all = futures_util::future::join_all((0..50).map(|_| judge(&authenticator, &old)));
    assert!(all.await.iter().all(Result::is_ok));
    assert_eq!(asked.load(Ordering::Relaxed), 1, "by one for all");

    *set.lock().unwrap() = after.keys("after");
    assert_eq!(judge(&authenticator, &new).await, Err(Refused::UnknownKey));
    let all = futures_util::future::join_all((0..50).map(|_| judge(&authenticator, &new)));
    assert!(all.await.iter().all(Result::is_err));
    assert_eq!(asked.load(Ordering::Relaxed), 1, "it is too soon");

    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(6)).await;
    tokio::time::resume();
    judge(&authenticator, &new).await.unwrap();
    assert_eq!(judge(&authenticator, &old).await, Err(Refused::UnknownKey), "a key that was taken back");
    assert_eq!(asked.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn without_keys_nobody_is_let_in() {
    let nobody = Source::Url("http://127.0.0.1:9/keys".parse().unwrap());
    let set = judging(Keys::Set(jwks::Cache::new(nobody, Duration::from_secs(300)).unwrap()));
    let token = Issuer::new().eddsa(&json!({ "alg": "EdDSA" }));
    assert_eq!(judge(&set, &token).await, Err(Refused::KeysUnavailable));
}

#[test]
fn a_set_of_no_use_is_refused_with_what_was_expected() {
    for (text, expected) in [
        ("", "not JSON"),
        ("{}", "no list `keys`"),
        (r#"{"keys":[]}"#, "no key for"),
        (r#"{"keys":[{"kty":"oct","k":"AAAA"}]}"#, "no key for"),
        (&json!({ "keys": vec![json!({}); 65] }).to_string(), "at most 64"),
    ] {
        let error = KeySet::parse(text.as_bytes()).unwrap_err();
        assert!(error.contains(expected), "{text:.40}: {error}");
    }
}

#[test]
fn a_token_comes_in_a_header_or_among_the_subprotocols() {
    let token = |name: &'static str, value: &'static str| {
        let mut headers = HeaderMap::new();
        headers.insert(name, value.parse().unwrap());
        token_of(&headers).map(|token| token.map(|token| token.expose().to_owned()))
    };
    let found = |text: &str| Ok(Some(text.to_owned()));
    assert_eq!(token("authorization", "Bearer abc"), found("abc"));
    assert_eq!(token("authorization", "bearer  abc"), found("abc"));
    assert_eq!(token("authorization", "Basic abc"), Err(Refused::Scheme));
    assert_eq!(token("authorization", "abc"), Err(Refused::Scheme));
    assert_eq!(token("sec-websocket-protocol", "dashstream.v2, dashstream.bearer.abc"), found("abc"));
    assert_eq!(token("sec-websocket-protocol", "dashstream.v2"), Ok(None));
}

#[derive(Debug, clap::Parser)]
struct Cli {
    #[command(flatten)]
    auth: Auth,
}

#[test]
fn settings_that_can_not_be_are_refused_by_name() {
    use clap::Parser as _;
    let unset = Cli::try_parse_from(["gateway"]).unwrap_err().to_string();
    assert!(unset.contains("--auth <HOW>"), "{unset}");
    let kit = Kit::embedded("test");
    let jwks = ["--auth=jwks", "--jwks-url=https://issuer.example/keys"];
    for (args, expected) in [
        (&["--auth=hs256"][..], "GATEWAY_JWT_SECRET"),
        (&["--auth=hs256", "--jwt-secret=short-and-sweet"], "has 15 bytes"),
        (&["--auth=hs256", "--jwt-secret="], "GATEWAY_JWT_SECRET"),
        (&["--auth=hs256", "--jwt-secret=x", "--jwt-secret-file=/y"], "not both"),
        (&["--auth=hs256", "--jwt-secret-file=/nowhere"], "GATEWAY_JWT_SECRET_FILE"),
        (&["--auth=jwks"], "GATEWAY_JWKS_URL"),
        (&["--auth=jwks", "--jwks-url=http://issuer.example/keys"], "https"),
        (&["--auth=jwks", "--jwks-url=https://a", "--jwks-file=b"], "not both"),
        (&jwks, "GATEWAY_JWT_ISSUER"),
        (&[jwks[0], jwks[1], "--jwt-issuer=x"], "GATEWAY_JWT_AUDIENCE"),
    ] {
        let cli = Cli::try_parse_from([&["gateway"], args].concat()).unwrap();
        let error = tokio::runtime::Runtime::new()
            .unwrap()
            .block_on(async { format!("{:#}", Authenticator::new(&cli.auth, &kit).unwrap_err()) });
        assert!(error.contains(expected) && !error.contains("short-and-sweet"), "{args:?}: {error}");
        assert!(!format!("{cli:?}").contains("short-and-sweet"));
    }
}
