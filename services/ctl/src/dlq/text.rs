//! Dead letters for people and for programs.
use super::letters::Found;
use crate::output::plain;
use dashstream_core::dead_letter::{Age, DeadLetter, Excerpt, Retry, Value};
use std::{
    fmt::Write,
    time::{Duration, UNIX_EPOCH},
};

/// Head of the table.
pub const HEAD: &str =
    "JUDGED                RECORD                   ERROR                AGE              BYTES  RETRY  WHAT";
/// The last second that has a year of four digits.
const LATEST_MS: u64 = 253_402_300_799_000;
const HEX_COLUMNS: usize = 16;

/// The table.
pub fn table(found: &[Found]) -> String {
    found.iter().fold(format!("{HEAD}\n"), |text, found| text + &row(found))
}

/// A line of the table.
pub fn row(Found { letter, .. }: &Found) -> String {
    let record = format!("{}:{}", letter.at.partition, letter.at.offset);
    let bytes = letter.value.as_ref().map_or("-".to_owned(), |value| value.excerpt.bytes.to_string());
    let retry = letter.retry.as_ref().map_or("-".to_owned(), |retry| retry.count.to_string());
    format!(
        "{:<20}  {record:<23}  {:<19}  {:<12}  {bytes:>8}  {retry:>5}  {}\n",
        time(letter.judged_ms),
        plain(&letter.error),
        letter.age.label(),
        plain(&letter.message),
    )
}

/// The letter as it is in Kafka, and where it lies there.
pub fn json(Found { at, letter }: &Found) -> String {
    let mut json: serde_json::Value = serde_json::from_slice(&letter.to_json()).unwrap_or_default();
    json["letter"] = at.to_string().into();
    format!("{json}\n")
}

/// All that a letter says.
pub fn whole(Found { at, letter }: &Found) -> String {
    let unknown = || "unknown".to_owned();
    let mut text = String::new();
    let mut line = |name: &str, value: String| text.push_str(&format!("{name:<10} {value}\n"));
    line("record", letter.at.to_string());
    line("epoch", letter.epoch.map_or_else(unknown, |epoch| epoch.to_string()));
    line("time", letter.timestamp_ms.map_or_else(unknown, time));
    line("error", format!("{}: {}", plain(&letter.error), plain(&letter.message)));
    line("judged", format!("{} by {}, {}", time(letter.judged_ms), plain(&letter.owner), age(letter.age)));
    line("key", letter.key.as_ref().map_or("none".to_owned(), key));
    line("value", letter.value.as_ref().map_or("none (a tombstone)".to_owned(), value));
    line("retry", letter.retry.as_ref().map_or("none".to_owned(), retry));
    for (name, value) in [("trace", &letter.traceparent), ("", &letter.tracestate)] {
        if !value.is_empty() {
            line(name, plain(value));
        }
    }
    line("letter", at.to_string());
    text + &prefix(letter)
}

fn age(age: Age) -> &'static str {
    match age {
        Age::Old => "old: below the head of its partition",
        Age::New => "new: at or past the head of its partition",
        Age::Unclassified => "neither old nor new: the head of its partition was not known",
    }
}

fn key(key: &Excerpt) -> String {
    let cut = if key.whole().is_some() { "" } else { "..." };
    format!("\"{}\"{cut}, {} bytes", key.prefix.escape_ascii(), key.bytes)
}

fn value(value: &Value) -> String {
    let kept = if value.whole.is_some() { ", all of them in the letter" } else { "" };
    format!("{} bytes{kept}, SHA-256 {}", value.excerpt.bytes, value.sha256)
}

fn retry(retry: &Retry) -> String {
    format!("attempt {} of {}", retry.count, retry.of)
}

fn prefix(letter: &DeadLetter) -> String {
    let Some(Value { excerpt, .. }) = &letter.value else { return String::new() };
    let left_out = excerpt.bytes - excerpt.prefix.len() as u64;
    let mut text = hex(&excerpt.prefix);
    if left_out > 0 {
        text.push_str(&format!("and {left_out} bytes more: --payload FILE fetches them\n"));
    }
    text
}

/// Offset, bytes and what of them is ASCII, 16 bytes a line.
fn hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for (line, bytes) in bytes.chunks(HEX_COLUMNS).enumerate() {
        let digits = bytes.iter().fold(String::new(), |mut digits, byte| {
            // Writing to a string can't fail.
            write!(digits, " {byte:02x}").ok();
            digits
        });
        let ascii =
            bytes.iter().map(|byte| if matches!(byte, b' '..=b'~') { char::from(*byte) } else { '.' });
        let width = 3 * HEX_COLUMNS;
        text.push_str(&format!(
            "{:08x} {digits:<width$}  |{}|\n",
            line * HEX_COLUMNS,
            ascii.collect::<String>()
        ));
    }
    text
}

/// In UTC; as the number of milliseconds where the calendar ends.
fn time(ms: i64) -> String {
    match u64::try_from(ms) {
        Ok(since) if since <= LATEST_MS => {
            humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_millis(since)).to_string()
        }
        Ok(_) | Err(_) => format!("{ms} ms"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dashstream_core::dead_letter::{Keep, Source, Verdict};

    fn found() -> Found {
        let source = Source {
            at: "runs/3/17".parse().unwrap(),
            epoch: None,
            timestamp_ms: Some(i64::MAX),
            key: Some(b"thread\x1b-1"),
            value: Some(b"\x00telemetry, and then some"),
            traceparent: "",
            tracestate: "",
            retry: Some(Retry { of: "runs/3/5".parse().unwrap(), count: 2 }),
        };
        let verdict = Verdict {
            error: "protobuf",
            message: "not a \u{1b}[2J message",
            age: Age::New,
            judged_ms: 1_795_762_800_000,
            owner: "ingest-0",
        };
        let letter = DeadLetter::new(source, verdict, Keep { prefix_bytes: 18, whole: false });
        Found { at: "runs-dlq/0/9".parse().unwrap(), letter }
    }

    #[test]
    fn a_letter_is_shown_whole_and_harmless() {
        let text = whole(&found());
        for expected in [
            "record     runs/3/17\n",
            "epoch      unknown\n",
            "time       9223372036854775807 ms\n",
            "error      protobuf: not a  [2J message\n",
            "judged     2026-11-27T07:00:00Z by ingest-0, new",
            "key        \"thread\\x1b-1\", 9 bytes\n",
            "value      25 bytes, SHA-256 ",
            "retry      attempt 2 of runs/3/5\n",
            "letter     runs-dlq/0/9\n",
            "00000000  00 74 65 6c 65 6d 65 74 72 79 2c 20 61 6e 64 20  |.telemetry, and |\n",
            "00000010  74 68                                            |th|\n",
            "and 7 bytes more",
        ] {
            assert!(text.contains(expected), "{expected:?} in\n{text}");
        }
        assert!(!text.contains('\u{1b}') && !row(&found()).contains('\u{1b}'), "{text}");
    }

    #[test]
    fn columns_stand_below_their_heads() {
        let (row, head) = (row(&found()), HEAD);
        for (name, value) in [("RECORD", "3:17"), ("ERROR", "protobuf"), ("AGE", "new"), ("WHAT", "not a")] {
            assert_eq!(head.find(name), row.find(value), "{name}\n{head}\n{row}");
        }
    }

    #[test]
    fn the_json_is_the_letters_with_its_place() {
        let json: serde_json::Value = serde_json::from_str(&json(&found())).unwrap();
        assert_eq!((json["letter"].as_str(), json["offset"].as_str()), (Some("runs-dlq/0/9"), Some("17")));
    }
}
