use super::*;

fn partition(value: i32) -> Partition {
    Partition::new(value).unwrap()
}

fn cursors(of: &[(i32, u64)]) -> Asked {
    let cursor = |(of, at): &(i32, u64)| (partition(*of), Offset::new(*at).unwrap());
    Asked::Resume(Resume::Cursors(of.iter().map(cursor).collect()))
}

fn threads(of: &[(&str, u64)]) -> Asked {
    Asked::Resume(Resume::Threads(of.iter().map(|(thread, at)| ((*thread).to_owned(), *at)).collect()))
}

#[test]
fn a_message_means_what_it_meant_to_the_predecessor() {
    for (why, text, asked) in [
        ("a ping", r#"{"type":"ping"}"#, Asked::Ping),
        ("a reset", r#"{"type":"cursor_reset"}"#, Asked::CursorReset),
        ("an unknown type", r#"{"type":"subscribe"}"#, Asked::Nothing),
        ("no type", r#"{"ping":1}"#, Asked::Nothing),
        ("a type that is no string", r#"{"type":1}"#, Asked::Nothing),
        ("no object", "[1]", Asked::Nothing),
        ("no JSON", "{\"type\":\"pi", Asked::Unreadable),
        (
            "what the shipped page sends",
            r#"{"type":"resume","lastOffsetsByPartition":{"0":"123"},"from":"cursor",
                "lastSequencesByThread":{"t":"9"},"lastSequence":9}"#,
            cursors(&[(0, 123)]),
        ),
        (
            "offsets as numbers, and a sign that Rust takes",
            r#"{"type":"resume","lastOffsetsByPartition":{"0":5,"+1":"+6","02":0}}"#,
            cursors(&[(0, 5), (1, 6), (2, 0)]),
        ),
        (
            "bad entries are left out",
            r#"{"type":"resume","lastOffsetsByPartition":
                {"-1":1,"x":1,"":1,"2147483648":1,"0":-1,"1":1.5,"2":null,"3":" 4","4":"9223372036854775808","5":7}}"#,
            cursors(&[(5, 7)]),
        ),
        (
            "the greatest offset",
            r#"{"type":"resume","lastOffsetsByPartition":{"0":"9223372036854775806"}}"#,
            cursors(&[(0, 9_223_372_036_854_775_806)]),
        ),
        ("no cursors are cursors", r#"{"type":"resume","lastOffsetsByPartition":{}}"#, cursors(&[])),
        ("nor is what is no object", r#"{"type":"resume","lastOffsetsByPartition":7}"#, cursors(&[])),
    ] {
        assert_eq!(read(text), Ok(asked), "{why}");
    }
}

#[test]
fn a_resume_begins_where_it_meant_to_with_the_predecessor() {
    let earliest = Asked::Resume(Resume::Earliest);
    for (why, text, asked) in [
        (
            "from the earliest",
            r#"{"type":"resume","lastOffsetsByPartition":{"0":5},"from":"earliest"}"#,
            earliest,
        ),
        (
            "from the latest",
            r#"{"type":"resume","mode":"partition","from":"latest"}"#,
            Asked::Resume(Resume::Latest),
        ),
        (
            "from an unknown place",
            r#"{"type":"resume","lastOffsetsByPartition":{"0":5},"from":"x"}"#,
            cursors(&[(0, 5)]),
        ),
        (
            "from no string",
            r#"{"type":"resume","lastOffsetsByPartition":{"0":5},"from":3}"#,
            cursors(&[(0, 5)]),
        ),
        (
            "threads",
            r#"{"type":"resume","lastSequencesByThread":{"a":"0","b":7,"c":-1,"d":"x","e":1.5}}"#,
            threads(&[("a", 0), ("b", 7)]),
        ),
        (
            "threads by mode, whatever else is there",
            r#"{"type":"resume","mode":"thread","from":"earliest","lastOffsetsByPartition":{"0":1},
                "lastSequencesByThread":{"a":"18446744073709551615"}}"#,
            threads(&[("a", u64::MAX)]),
        ),
        (
            "one thread",
            r#"{"type":"resume","threadId":"a","lastSequence":"9007199254740993"}"#,
            threads(&[("a", (1 << 53) + 1)]),
        ),
        (
            "the greatest safe integer",
            r#"{"type":"resume","threadId":"a","lastSequence":9007199254740991}"#,
            threads(&[("a", (1 << 53) - 1)]),
        ),
        (
            "the list before the one",
            r#"{"type":"resume","lastSequencesByThread":{"b":1},"threadId":"a","lastSequence":2}"#,
            threads(&[("b", 1)]),
        ),
        ("no thread", r#"{"type":"resume","lastSequence":2}"#, threads(&[])),
    ] {
        assert_eq!(read(text), Ok(asked), "{why}");
    }
}

#[test]
fn a_number_that_may_be_another_is_refused_by_its_modern_form() {
    let last = "lastSequencesByThread with a decimal string for each thread";
    for (text, field, value, modern) in [
        (r#"{"threadId":"a","lastSequence":9007199254740993}"#, "lastSequence", "9007199254740993", last),
        (r#"{"threadId":"a","lastSequence":9007199254740992}"#, "lastSequence", "9007199254740992", last),
        (r#"{"threadId":"a","lastSequence":1.5}"#, "lastSequence", "1.5", last),
        (r#"{"threadId":"a","lastSequence":-1}"#, "lastSequence", "-1", last),
        (
            r#"{"lastOffsetsByPartition":{},"lastSequence":9007199254740993}"#,
            "lastSequence",
            "9007199254740993",
            last,
        ),
        (
            r#"{"lastOffsetsByPartition":{"7":9007199254740993}}"#,
            "lastOffsetsByPartition[\"7\"]",
            "9007199254740993",
            "a decimal string",
        ),
        (
            r#"{"lastSequencesByThread":{"t":18446744073709551616}}"#,
            "lastSequencesByThread[\"t\"]",
            "1.8446744073709552e+19",
            "a decimal string",
        ),
    ] {
        let text = format!("{{\"type\":\"resume\",{}", &text[1..]);
        let refused = read(&text).unwrap_err();
        let expected = format!("{field} is {value}, which is not exact: expected {modern}");
        assert_eq!((refused.to_string(), refused.code()), (expected, "RESUME_LOSSY_NUMBER"), "{text}");
    }
}

fn many(field: &str, entries: usize, mode: &str) -> String {
    let entries: Vec<_> = (0..entries).map(|at| format!("\"{at}\":\"1\"")).collect();
    format!(r#"{{"type":"resume","mode":"{mode}","{field}":{{{}}}}}"#, entries.join(","))
}

#[test]
fn a_resume_names_no_more_than_it_may_in_either_mode() {
    let (offsets, sequences) = ("lastOffsetsByPartition", "lastSequencesByThread");
    for mode in ["partition", "thread"] {
        assert!(read(&many(offsets, PARTITIONS_MAX, mode)).is_ok());
        assert!(read(&many(sequences, THREADS_MAX, mode)).is_ok());
        let refused = read(&many(offsets, PARTITIONS_MAX + 1, mode)).unwrap_err();
        assert_eq!(refused, Refused::Partitions(1_025));
        assert_eq!(refused.code(), "RESUME_TOO_MANY_PARTITIONS");
        let refused = read(&many(sequences, THREADS_MAX + 1, mode)).unwrap_err();
        assert_eq!(refused, Refused::Threads(10_001));
        assert_eq!(refused.code(), "RESUME_TOO_MANY_THREADS");
    }
    let text = format!("{{\"type\":\"ping\",\"x\":\"{}\"}}", "x".repeat(TEXT_BYTES_MAX - 22));
    assert_eq!((text.len(), read(&text)), (TEXT_BYTES_MAX, Ok(Asked::Ping)));
    let refused = read(&format!("{text} ")).unwrap_err();
    assert_eq!((refused.code(), refused), ("CONTROL_FRAME_TOO_LARGE", Refused::TooLarge(TEXT_BYTES_MAX + 1)));
}
