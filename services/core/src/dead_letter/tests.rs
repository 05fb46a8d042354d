use super::*;
use proptest::{collection::vec, option, prelude::*};

const CANARY: &[u8] = b"canary-7f3e";

fn at() -> Coordinates {
    "runs/3/17".parse().unwrap()
}

fn source(value: Option<&[u8]>) -> Source<'_> {
    Source {
        at: at(),
        epoch: Some(Epoch::new(u64::MAX)),
        timestamp_ms: Some(i64::MIN),
        key: Some(b"thread-1"),
        value,
        traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        tracestate: "",
        retry: None,
    }
}

fn verdict() -> Verdict<'static> {
    Verdict {
        error: "protobuf",
        message: "the value is not a DashStreamMessage",
        age: Age::Old,
        judged_ms: 1,
        owner: "ingest-0",
    }
}

fn contains(hay: &[u8], needle: &[u8]) -> bool {
    hay.windows(needle.len()).any(|window| window == needle)
}

#[test]
fn nine_megabytes_with_a_secret_become_a_small_letter_without_it() {
    let mut value = vec![0xff; 9 << 20];
    value[PREFIX_BYTES..][..CANARY.len()].copy_from_slice(CANARY);
    let letter = DeadLetter::new(source(Some(&value)), verdict(), Keep::default());
    let json = letter.to_json();
    assert!(json.len() < LETTER_BYTES_MAX, "{} bytes", json.len());
    let kept = letter.value.as_ref().unwrap();
    assert!(!contains(&kept.excerpt.prefix, CANARY) && !letter.is_whole());
    assert_eq!((kept.excerpt.bytes, kept.sha256), (9 << 20, Sha256::of(&value)));
    assert_eq!(DeadLetter::from_json(&json).unwrap(), letter);
}

#[test]
fn the_json_is_that_of_version_1() {
    let mut source = source(Some(b"abc"));
    source.retry = Some(Retry::next(None, &at()));
    let letter = DeadLetter::new(source, verdict(), Keep { prefix_bytes: 2, whole: true });
    let json: serde_json::Value = serde_json::from_slice(&letter.to_json()).unwrap();
    let expected = serde_json::json!({
        "version": 1,
        "topic": "runs",
        "partition": 3,
        "offset": "17",
        "epoch": "18446744073709551615",
        "timestamp_ms": "-9223372036854775808",
        "error": "protobuf",
        "message": "the value is not a DashStreamMessage",
        "age": "old",
        "judged_ms": "1",
        "owner": "ingest-0",
        "key": { "bytes": "8", "prefix_base64": "dGhyZWFkLTE=" },
        "value": {
            "bytes": "3",
            // From FIPS 180-2, appendix B.1.
            "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            "prefix_base64": "YWI=",
            "whole_base64": "YWJj",
        },
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "retry_of": "runs/3/17",
        "retry_count": 1,
    });
    assert_eq!(json, expected);
    assert_eq!(letter.record_key(), "runs/3/17");
}

#[test]
fn a_tombstone_and_an_empty_value_stay_apart() {
    for value in [None, Some(b"".as_slice())] {
        let letter = DeadLetter::new(source(value), verdict(), Keep::default());
        let back = DeadLetter::from_json(&letter.to_json()).unwrap();
        assert_eq!(back.value.map(|value| value.excerpt.bytes), value.map(|_| 0));
    }
}

#[test]
fn what_is_no_letter_is_refused_by_the_member_that_is_wrong() {
    let letter = DeadLetter::new(source(Some(b"abc")), verdict(), Keep { prefix_bytes: 2, whole: true });
    let good: serde_json::Value = serde_json::from_slice(&letter.to_json()).unwrap();
    for (why, pointer, value, expected) in [
        ("a later version", "/version", serde_json::json!(2), "version 2: expected 1"),
        ("an offset that Kafka can't have", "/offset", "9223372036854775808".into(), "`offset`"),
        ("an offset that is a number", "/offset", 17.into(), "expected a string"),
        ("a negative partition", "/partition", (-1).into(), "`partition`"),
        ("no topic", "/topic", "".into(), "`topic`"),
        ("no class", "/error", "".into(), "`error`"),
        ("half a hash", "/value/sha256", "ba78".into(), "`sha256`"),
        ("a hash in capitals", "/value/sha256", "A".repeat(64).into(), "`sha256`"),
        ("a prefix that is no base64", "/value/prefix_base64", "???".into(), "expected base64"),
        ("a prefix longer than the value", "/value/bytes", "1".into(), "longer than the whole"),
        ("other bytes", "/value/whole_base64", "YWJk".into(), "other bytes"),
        ("an age of its own", "/age", "ancient".into(), "`unclassified`"),
    ] {
        let mut json = good.clone();
        *json.pointer_mut(pointer).unwrap() = value;
        let error = DeadLetter::from_json(json.to_string().as_bytes()).unwrap_err().to_string();
        assert!(error.contains(expected), "{why}: {error}");
    }
    for (why, json) in [("nothing", ""), ("the predecessor's", r#"{"error_type": "decode", "offset": 1}"#)] {
        let error = DeadLetter::from_json(json.as_bytes()).unwrap_err();
        assert!(matches!(error, Malformed::Json(_)), "{why}: {error}");
    }
    let mut more = good;
    more["weather"] = "fine".into();
    assert_eq!(
        DeadLetter::from_json(more.to_string().as_bytes()),
        Ok(letter),
        "added members are passed over"
    );
}

#[test]
fn a_retry_counts_on_and_names_the_first() {
    let first = Retry::next(None, &at());
    let elsewhere = Coordinates { offset: Offset::new(99).unwrap(), ..at() };
    let second = Retry::next(Some(&first), &elsewhere);
    assert_eq!((second.of.to_string().as_str(), second.count), ("runs/3/17", 2));
    assert_eq!(Retry::from_headers(Some(b"runs/3/17"), Some(b"2")), Some(second));
    for (of, count) in [
        (None, Some("1")),
        (Some("runs/3/17"), None),
        (Some("runs/3"), Some("1")),
        (Some("runs/3/17"), Some("0")),
        (Some("runs/3/17"), Some("many")),
        (Some("a/b/3/17"), Some("1")),
    ] {
        assert_eq!(
            Retry::from_headers(of.map(str::as_bytes), count.map(str::as_bytes)),
            None,
            "{of:?} {count:?}"
        );
    }
}

fn bytes(most: usize) -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![vec(any::<u8>(), 0..most), vec(Just(0xff), most)]
}

/// Text that JSON escapes, or that has many bytes for each character.
fn text(most: usize) -> impl Strategy<Value = String> {
    let character =
        prop_oneof![Just('"'), Just('\\'), Just('\u{1}'), Just('\u{85}'), Just('𝄞'), any::<char>()];
    vec(character, 0..most).prop_map(String::from_iter)
}

prop_compose! {
    fn coordinates()(
        topic in "[a-zA-Z0-9._-]{1,249}", partition in 0..=i32::MAX, offset in 0..=i64::MAX as u64,
    ) -> Coordinates {
        Coordinates { topic, partition: Partition::new(partition).unwrap(), offset: Offset::new(offset).unwrap() }
    }
}

proptest! {
    /// Whatever the record: what is written is read, and small unless all of it is wanted.
    #[test]
    fn a_letter_survives_its_json_and_is_bounded(
        (at, of) in (coordinates(), coordinates()),
        (epoch, timestamp_ms, judged_ms) in (any::<Option<u64>>(), any::<Option<i64>>(), any::<i64>()),
        (key, value) in (option::of(bytes(2_000)), option::of(bytes(5_000))),
        (traceparent, tracestate) in (prop_oneof![text(600), "[ -~]{512}"], prop_oneof![text(600), "[\"]{512}"]),
        (message, owner) in (text(2_000), text(600)),
        (count, prefix_bytes, whole) in (0_u32.., 0..=PREFIX_BYTES, any::<bool>()),
    ) {
        let retry = (count > 0).then_some(Retry { of, count });
        let (key, value) = (key.as_deref(), value.as_deref());
        let (traceparent, tracestate) = (&*traceparent, &*tracestate);
        let epoch = epoch.map(Epoch::new);
        let source = Source { at, epoch, timestamp_ms, key, value, traceparent, tracestate, retry };
        let verdict =
            Verdict { error: "compression", message: &message, age: Age::Unclassified, judged_ms, owner: &owner };
        let letter = DeadLetter::new(source, verdict, Keep { prefix_bytes, whole });
        prop_assert_eq!(&DeadLetter::from_json(&letter.to_json()).unwrap(), &letter);
        prop_assert_eq!(letter.is_whole(), whole && value.is_some());
        prop_assert_eq!(letter.record_key().parse(), Ok(letter.at.clone()));
        let small = letter.without_whole().to_json().len();
        prop_assert!(small < LETTER_BYTES_MAX, "{} bytes", small);
    }

    /// No bytes make the reader panic.
    #[test]
    fn any_bytes_are_a_letter_or_an_error(json in vec(any::<u8>(), 0..200)) {
        let letter = DeadLetter::from_json(&json);
        prop_assert!(letter.is_err());
    }
}
