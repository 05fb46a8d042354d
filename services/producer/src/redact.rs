//! Secrets leave a text here, and nowhere else.
use regex::{Regex, RegexSet};
use std::borrow::Cow;

/// Patterns of secrets, and what stands in their place, in the order in which they are applied.
const BUILT_IN: [(&str, &str); 11] = [
    (r"sk-ant-[A-Za-z0-9_-]{20,}", "[ANTHROPIC_KEY]"),
    (r"sk-(?:proj-|svcacct-|admin-)[A-Za-z0-9_-]{20,}|sk-[A-Za-z0-9]{20,}", "[OPENAI_KEY]"),
    (r"(?:AKIA|ABIA|ACCA|ASIA)[A-Z0-9]{16}", "[AWS_KEY]"),
    (r"gh[pousr]_[A-Za-z0-9]{36,}", "[GITHUB_TOKEN]"),
    // Before the bearer's, which would leave the first part's name only.
    (r"eyJ[A-Za-z0-9_-]+\.eyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+", "[JWT_TOKEN]"),
    (r"[Bb]earer(?-u:\s)+[A-Za-z0-9_.-]{20,}", "Bearer [TOKEN]"),
    (r#"(?i-u:api[ _]?key)(?-u:[=:\s])+["']?[A-Za-z0-9_-]{20,}"#, "[API_KEY]"),
    // A slash ends an address, so that a port and a later mail address are no login.
    (r"://[^\s/:@]*:(?:[^\s/@]+|[^\s@/][^\s@]{7,})@", "://[CREDENTIALS]@"),
    // With its body; a block that was cut off ends with the text.
    (r"-----BEGIN [A-Z ]*PRIVATE KEY-----(?s:.*?)(?:-----END [A-Z ]*PRIVATE KEY-----|\z)", "[PRIVATE_KEY]"),
    (r"AIza[A-Za-z0-9_-]{35}", "[GOOGLE_API_KEY]"),
    (r"sk_(?:live|test)_[A-Za-z0-9]{24,}", "[STRIPE_KEY]"),
];

/// A pattern of the application's own that can't be used.
#[derive(Clone, Debug, thiserror::Error)]
#[error("redaction pattern {pattern:?}: expected a regular expression that matches some text: {why}")]
pub struct BadPattern {
    pub pattern: String,
    pub why: String,
}

/// Replaces secrets in texts.
#[derive(Clone, Debug)]
pub(crate) struct Redactor {
    any: RegexSet,
    patterns: Vec<(Regex, String)>,
}

impl Redactor {
    /// The built-in patterns, and then these, each with what stands in its place.
    ///
    /// # Errors
    /// [`BadPattern`]: one is no regular expression, or matches even an empty text.
    pub(crate) fn new(custom: &[(String, String)]) -> Result<Self, BadPattern> {
        let built_in = BUILT_IN.iter().map(|(pattern, with)| (*pattern, *with));
        let custom = custom.iter().map(|(pattern, with)| (pattern.as_str(), with.as_str()));
        let all: Vec<_> = built_in.chain(custom).collect();
        let patterns = all.iter().map(|(pattern, with)| Ok((compiled(pattern)?, (*with).to_owned())));
        let patterns = patterns.collect::<Result<_, _>>()?;
        let any = RegexSet::new(all.iter().map(|(pattern, _)| pattern));
        let any =
            any.map_err(|error| BadPattern { pattern: "all together".into(), why: error.to_string() })?;
        Ok(Self { any, patterns })
    }

    /// The text without its secrets.
    pub(crate) fn redacted<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let mut clean = Cow::Borrowed(text);
        if !self.any.is_match(text) {
            return clean;
        }
        for (pattern, with) in &self.patterns {
            if let Cow::Owned(replaced) = pattern.replace_all(&clean, regex::NoExpand(with)) {
                clean = Cow::Owned(replaced);
            }
        }
        clean
    }
}

fn compiled(pattern: &str) -> Result<Regex, BadPattern> {
    let bad = |why: String| BadPattern { pattern: pattern.into(), why };
    let regex = Regex::new(pattern).map_err(|error| bad(error.to_string()))?;
    if regex.is_match("") { Err(bad("it matches an empty text".into())) } else { Ok(regex) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_secret_is_replaced_and_its_surroundings_stay() {
        let redactor = Redactor::new(&[]).unwrap();
        let long = |prefix: &str, bytes: usize| format!("{prefix}{}", "a1B2".repeat(bytes.div_ceil(4)));
        let pem = "-----BEGIN RSA PRIVATE KEY-----\nMIIB\nAAAA\n-----END RSA PRIVATE KEY-----";
        for (secret, replaced) in [
            (long("sk-", 20), "[OPENAI_KEY]"),
            (long("sk-proj-", 40), "[OPENAI_KEY]"),
            (long("sk-ant-api03-", 40), "[ANTHROPIC_KEY]"),
            ("AKIAIOSFODNN7EXAMPLE".into(), "[AWS_KEY]"),
            (long("ghp_", 36), "[GITHUB_TOKEN]"),
            (long("Bearer ", 20), "Bearer [TOKEN]"),
            (long("api_key=\"", 20), "[API_KEY]"),
            (long("API key: ", 20), "[API_KEY]"),
            ("://user:hunter2@".into(), "://[CREDENTIALS]@"),
            ("://user:pass/word/1@".into(), "://[CREDENTIALS]@"),
            (pem.into(), "[PRIVATE_KEY]"),
            ("eyJhbGciOi.eyJzdWIi.c2ln_-".into(), "[JWT_TOKEN]"),
            (long("AIza", 35)[..39].to_owned(), "[GOOGLE_API_KEY]"),
            (long("sk_live_", 24), "[STRIPE_KEY]"),
        ] {
            let text = format!("größe \u{1f980} {secret} and more");
            assert_eq!(redactor.redacted(&text), format!("größe \u{1f980} {replaced} and more"), "{secret}");
        }
    }

    #[test]
    fn a_private_key_that_was_cut_off_is_replaced_to_the_end() {
        let redactor = Redactor::new(&[]).unwrap();
        assert_eq!(redactor.redacted("x -----BEGIN PRIVATE KEY-----\nMIIB"), "x [PRIVATE_KEY]");
    }

    #[test]
    fn harmless_text_stays() {
        let redactor = Redactor::new(&[]).unwrap();
        for text in [
            "",
            "a sk-short key",
            "http://x:8080/y and mail to bob@example.com",
            "the bearer of this letter",
            "api key",
            "AKIA",
        ] {
            assert!(matches!(redactor.redacted(text), Cow::Borrowed(same) if same == text), "{text}");
        }
    }

    #[test]
    fn patterns_of_the_application_come_on_top_and_are_checked() {
        let redactor = Redactor::new(&[(r"emp-\d{6}".into(), "[$1 EMPLOYEE]".into())]).unwrap();
        assert_eq!(redactor.redacted("by emp-123456."), "by [$1 EMPLOYEE].");
        for pattern in ["(", "a*"] {
            let error = Redactor::new(&[(pattern.into(), String::new())]).unwrap_err();
            assert!(error.to_string().contains(&format!("{pattern:?}")), "{error}");
        }
    }
}
