//! How the predecessor named things.
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use siphasher::sip::SipHasher13;
use std::borrow::Cow;

/// Longest thread id that was kept whole, bytes.
const THREAD_BYTES_MAX: usize = 256;
/// What was kept of a longer one, bytes.
const THREAD_BYTES_KEPT: usize = 236;
/// Longest thread id that was used as a name, bytes.
const NAME_BYTES_MAX: usize = 128;

/// How a thread's name is made from its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// The id itself: of safe ids always, of others in the oldest version.
    Raw,
    /// `b64_` and the id in base64url.
    B64,
    /// `h_` and a hash of the id; different ids can have the same.
    Hashed,
}

/// The predecessor's namespace: it stands for one topic as one group read it.
///
/// `brokers` is its list of brokers, separated by commas, in any order. An empty `cluster_id` is none.
pub fn namespace(cluster_id: Option<&str>, topic: &str, group: &str, brokers: &str) -> String {
    let mut brokers: Vec<_> = brokers.split(',').map(str::trim).filter(|broker| !broker.is_empty()).collect();
    brokers.sort_unstable();
    let parts = format!("topic={topic};group={group};brokers={}", brokers.join(","));
    match cluster_id.filter(|id| !id.is_empty()) {
        None => format!("v1_{}", URL_SAFE_NO_PAD.encode(parts)),
        Some(id) => format!("v2_{}", URL_SAFE_NO_PAD.encode(format!("cluster={id};{parts}"))),
    }
}

/// What the keys of a namespace begin with.
pub fn prefix(namespace: &str) -> String {
    format!("dashstream-replay:{namespace}")
}

/// The thread id that rows were kept under: without blanks around it, and its end replaced by a hash if it was
/// long. Empty where there is none.
///
/// The cut is at a character's boundary. The predecessor did not survive ids that have none there, so it left no
/// rows of them.
pub(super) fn bounded(thread_id: &str) -> Cow<'_, str> {
    let id = thread_id.trim();
    if id.len() <= THREAD_BYTES_MAX {
        return Cow::Borrowed(id);
    }
    let kept = &id[..id.floor_char_boundary(THREAD_BYTES_KEPT)];
    Cow::Owned(format!("{kept}...{:016x}", hash(id)))
}

/// All names that rows of a [`bounded`] thread id can have, the newest form first. None for an empty id.
pub(super) fn names(thread: &str) -> Vec<(Form, String)> {
    let safe = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
    if thread.is_empty() {
        return Vec::new();
    }
    let raw = (Form::Raw, thread.to_owned());
    if thread.len() <= NAME_BYTES_MAX && thread.bytes().all(safe) {
        return vec![raw];
    }
    let mut names = vec![(Form::B64, format!("b64_{}", URL_SAFE_NO_PAD.encode(thread))), raw];
    if thread.len() > NAME_BYTES_MAX || thread.contains(':') {
        names.push((Form::Hashed, format!("h_{:016x}", hash(thread))));
    }
    names
}

/// SipHash-1-3 with zero keys over the bytes and a closing 0xff. The predecessor used the standard library's
/// default, which was this but promises nothing.
fn hash(text: &str) -> u64 {
    let closed = [text.as_bytes(), &[0xff]].concat();
    SipHasher13::new_with_keys(0, 0).hash(&closed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(thread_id: &str, form: Form) -> Option<String> {
        names(thread_id).into_iter().find(|(found, _)| *found == form).map(|(_, name)| name)
    }

    #[test]
    fn hashes_are_the_predecessors() {
        assert_eq!(format!("{:016x}", hash("")), "30406ea523c53def");
        for (id, expected) in [
            ("a:b", "h_e4d562f6c05edea5"),
            ("thread:with:colons", "h_f855df7581c92419"),
            (&"a".repeat(129), "h_d38557d2ed8c206f"),
        ] {
            assert_eq!(name(id, Form::Hashed).unwrap(), expected, "{id}");
        }
    }

    #[test]
    fn safe_ids_are_their_own_name_and_others_are_encoded() {
        let longest = "a".repeat(128);
        for id in ["Thread_123-abc", "b64_fake", "h_0123456789abcdef", &longest] {
            assert_eq!(names(id), [(Form::Raw, id.to_owned())]);
        }
        assert_eq!(name("a:b", Form::B64).unwrap(), "b64_YTpi");
        assert_eq!(name("thread:with:colons", Form::B64).unwrap(), "b64_dGhyZWFkOndpdGg6Y29sb25z");
        assert_eq!(name("ünïcode", Form::B64).unwrap(), "b64_w7xuw69jb2Rl");
        assert_eq!(name("ünïcode", Form::Raw).unwrap(), "ünïcode");
        assert_eq!(name("ünïcode", Form::Hashed), None);
        assert!(names("").is_empty());
    }

    #[test]
    fn namespaces_are_the_predecessors() {
        assert_eq!(
            namespace(None, "dashstream-quality", "websocket-server-v4", "127.0.0.1:9092"),
            "v1_dG9waWM9ZGFzaHN0cmVhbS1xdWFsaXR5O2dyb3VwPXdlYnNvY2tldC1zZXJ2ZXItdjQ7YnJva2Vycz0xMjcuMC4wLjE6OTA5Mg"
        );
        let golden = "v2_Y2x1c3Rlcj1wcm9kO3RvcGljPXQ7Z3JvdXA9Zzticm9rZXJzPWE6OTA5MixiOjkwOTI";
        assert_eq!(namespace(Some("prod"), "t", "g", " b:9092,,a:9092 "), golden);
        assert_eq!(namespace(Some(""), "t", "g", "a"), namespace(None, "t", "g", "a"));
        assert_eq!(prefix("v1_x"), "dashstream-replay:v1_x");
    }

    #[test]
    fn long_ids_are_cut_and_blanks_are_trimmed() {
        let longest = "x".repeat(256);
        assert_eq!(bounded(&longest), longest);
        let bound = bounded("x".repeat(257).as_str()).into_owned();
        assert_eq!((bound.len(), &bound[..239]), (255, format!("{}...", "x".repeat(236)).as_str()));
        assert_eq!(bounded(&bound), bound, "what was bounded stays so");
        assert_eq!(bounded(" padded\u{3000}"), "padded");
        // 236 is within a character
        assert!(bounded(&"\u{20ac}".repeat(100)).starts_with(&"\u{20ac}".repeat(78)));
    }

    proptest! {
        #[test]
        fn any_id_has_names_of_bounded_length(id in "\\PC{0,200}|.{0,200}|[\u{0}-\u{10ffff}]{0,200}") {
            let thread = bounded(&id);
            prop_assert!(thread.len() <= 256);
            prop_assert_eq!(names(&thread).is_empty(), id.trim().is_empty());
            for (form, name) in names(&thread) {
                let safe = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte));
                prop_assert!(safe || form == Form::Raw, "{}", name);
                prop_assert!(name.len() <= 4 + 256_usize.div_ceil(3) * 4);
            }
        }
    }
}
