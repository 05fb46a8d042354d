//! Every key that the store has. No other place formats one.
use dashstream_core::position::Partition;
use std::fmt;

/// Names and versions the layout. Another layout gets another prefix, so both can live in one Redis.
const PREFIX: &str = "dashstream:1";

/// Longest name of a stream, bytes: as long as Kafka's topics.
const STREAM_BYTES_MAX: usize = 249;

/// A stream's name, safe in a key: 1 to 249 bytes of `[A-Za-z0-9._-]`, as Kafka's topics.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Stream(String);

/// Not a stream's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("stream {0:?} is not a name: expected 1 to {STREAM_BYTES_MAX} bytes of A-Z a-z 0-9 . _ -")]
pub struct InvalidStream(String);

impl Stream {
    /// # Errors
    /// [`InvalidStream`], with at most 64 characters of what was given.
    pub fn new(name: &str) -> Result<Self, InvalidStream> {
        let safe = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if name.is_empty() || name.len() > STREAM_BYTES_MAX || !name.bytes().all(safe) {
            return Err(InvalidStream(name.chars().take(64).collect()));
        }
        Ok(Self(name.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A key. All keys of a partition carry the same hash tag, so they are in one slot of a Redis Cluster and one
/// script can change them together. Every key has an expiry from its first write on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key<'a> {
    /// Hash: `e` epoch, `l` last offset held, `n` records kept, `b` bytes of batches kept, `t` when the oldest
    /// batch was appended (milliseconds since 1970). All decimal.
    Meta(&'a Stream, Partition),
    /// Stream: an entry for each batch, id `<last offset + 1>-0`, fields `d` the encoded batch, `n` its
    /// records, `t` when it was appended. Ids are exact 64-bit integers, in the order of offsets.
    Log(&'a Stream, Partition),
}

impl fmt::Display for Key<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (stream, partition, name) = match self {
            Self::Meta(stream, partition) => (stream, partition, "meta"),
            Self::Log(stream, partition) => (stream, partition, "log"),
        };
        write!(f, "{PREFIX}:{{{}/{partition}}}:{name}", stream.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_a_partition_share_their_hash_tag() {
        let stream = Stream::new("dashstream-events").unwrap();
        let partition = Partition::new(7).unwrap();
        assert_eq!(Key::Meta(&stream, partition).to_string(), "dashstream:1:{dashstream-events/7}:meta");
        assert_eq!(Key::Log(&stream, partition).to_string(), "dashstream:1:{dashstream-events/7}:log");
    }

    #[test]
    fn a_name_that_could_forge_a_key_is_refused() {
        for bad in ["", "a/b", "a}b", "a:b", "a b", "ä", &"x".repeat(250)] {
            assert!(Stream::new(bad).is_err(), "{bad}");
        }
        assert!(Stream::new(&"x".repeat(249)).is_ok());
        let error = Stream::new(&"/".repeat(1_000)).unwrap_err().to_string();
        assert!(error.len() < 200, "{error}");
    }
}
