//! Every key that the store has. No other place formats one.
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
pub use dashstream_core::codec::THREAD_ID_BYTES_MAX;
use dashstream_core::position::Partition;
use std::fmt;

/// What the encoded form of a thread id begins with.
const ENCODED: &str = "b64_";
/// Longest thread id that is used as it is, bytes.
const RAW_BYTES_MAX: usize = 128;

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

/// A thread id's form in keys: itself when that is safe and short and could not be mistaken for the other
/// form, else `b64_` and base64url without padding. Injective, and [`ThreadName::id`] is its inverse.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ThreadName(String);

/// Not a thread's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidThread {
    #[error("thread_id is empty: expected 1 to {THREAD_ID_BYTES_MAX} bytes")]
    Empty,
    #[error("thread_id has {0} bytes: expected 1 to {THREAD_ID_BYTES_MAX}")]
    TooLong(usize),
    #[error("{0:?} is not a thread's name")]
    Name(String),
}

impl ThreadName {
    /// # Errors
    /// [`InvalidThread`] for an id that is empty or too long.
    pub fn new(id: &str) -> Result<Self, InvalidThread> {
        let safe = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
        match id.len() {
            0 => Err(InvalidThread::Empty),
            bytes if bytes > THREAD_ID_BYTES_MAX => Err(InvalidThread::TooLong(bytes)),
            1..=RAW_BYTES_MAX
                if id.bytes().all(safe) && !id.starts_with(ENCODED) && !id.starts_with("h_") =>
            {
                Ok(Self(id.to_owned()))
            }
            _ => Ok(Self(format!("{ENCODED}{}", URL_SAFE_NO_PAD.encode(id)))),
        }
    }

    /// Reads a name back.
    ///
    /// # Errors
    /// [`InvalidThread`] for what no id maps to.
    pub fn parse(name: &str) -> Result<Self, InvalidThread> {
        let invalid = || InvalidThread::Name(name.chars().take(64).collect());
        let id = match name.strip_prefix(ENCODED) {
            None => name.to_owned(),
            Some(encoded) => {
                let bytes = URL_SAFE_NO_PAD.decode(encoded).map_err(|_| invalid())?;
                String::from_utf8(bytes).map_err(|_| invalid())?
            }
        };
        let parsed = Self::new(&id).map_err(|_| invalid())?;
        if parsed.0 == name { Ok(parsed) } else { Err(invalid()) }
    }

    /// The thread id.
    pub fn id(&self) -> String {
        let decoded = self.0.strip_prefix(ENCODED).and_then(|encoded| URL_SAFE_NO_PAD.decode(encoded).ok());
        decoded.and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or_else(|| self.0.clone())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A tenant's form in keys; absent for what belongs to none.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TenantName(Option<ThreadName>);

/// Not a tenant's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("tenant_id has {0} bytes: expected at most {THREAD_ID_BYTES_MAX}")]
pub struct InvalidTenant(usize);

impl TenantName {
    /// # Errors
    /// [`InvalidTenant`] for an id that is too long.
    pub fn new(id: &str) -> Result<Self, InvalidTenant> {
        if id.is_empty() {
            return Ok(Self(None));
        }
        ThreadName::new(id).map(|name| Self(Some(name))).map_err(|_| InvalidTenant(id.len()))
    }
}

/// A key. All keys of a partition carry the same hash tag, so they are in one slot of a Redis Cluster and one
/// script can change them together. Every key has an expiry from its first write on. Numbers are decimal text
/// unless said otherwise; times are milliseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key<'a> {
    /// Hash: `e` epoch, `l` last offset held, `n` records kept, `b` bytes of batches kept, `t` when the oldest
    /// batch was appended, `a` when the newest was, `f` last offset of the oldest batch (8 bytes, big endian),
    /// `m` greatest Kafka timestamp so far. Before the first append only `e`, and `l` where retention has let all
    /// up to it go.
    Meta(&'a Stream, Partition),
    /// Stream: an entry for each batch, id `<last offset + 1>-0`, fields `d` the encoded batch, `n` its
    /// records, `t` when it was appended, `i` its last offset (8 bytes, big endian), `m` the greatest Kafka
    /// timestamp up to its end. Ids are exact 64-bit integers, in the order of offsets.
    Log(&'a Stream, Partition),
    /// Sorted set of thread names by when they were last appended to.
    Directory(&'a Stream, Partition),
    /// Hash of one thread: `e` epoch of the partition, `d` when its place in the directory was last set,
    /// `tenant`, `status`, `graph`, `first`, `last` Kafka times, `n` records, `errors`, `tokens`, `cost`, `o`
    /// last offset; `w` the newest record that carries the whole state as an encoded batch of one, `wo` its
    /// offset.
    Thread(&'a Stream, Partition, &'a ThreadName),
    /// String of one thread: 16 bytes for each batch that holds records of it, the batch's last offset and the
    /// thread's highest sequence in it (0 for none), both 8 bytes big endian.
    Index(&'a Stream, Partition, &'a ThreadName),
    /// Sorted set of the partitions that are known by when they vanish.
    Partitions(&'a Stream),
    /// Hash of what is kept where it was set: `age`, `records`, `bytes`.
    Retention(&'a Stream),
    /// Hash of a tenant's expected schemas by graph name: the version, a space, and the encoded schema.
    Schemas(&'a Stream, &'a TenantName),
}

impl fmt::Display for Key<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Meta(Stream(stream), partition) => write!(f, "{PREFIX}:{{{stream}/{partition}}}:meta"),
            Self::Log(Stream(stream), partition) => write!(f, "{PREFIX}:{{{stream}/{partition}}}:log"),
            Self::Directory(Stream(stream), partition) => {
                write!(f, "{PREFIX}:{{{stream}/{partition}}}:directory")
            }
            Self::Thread(Stream(stream), partition, ThreadName(name)) => {
                write!(f, "{PREFIX}:{{{stream}/{partition}}}:thread:{name}")
            }
            Self::Index(Stream(stream), partition, ThreadName(name)) => {
                write!(f, "{PREFIX}:{{{stream}/{partition}}}:index:{name}")
            }
            Self::Partitions(Stream(stream)) => write!(f, "{PREFIX}:{{{stream}}}:partitions"),
            Self::Retention(Stream(stream)) => write!(f, "{PREFIX}:{{{stream}}}:retention"),
            Self::Schemas(Stream(stream), TenantName(None)) => write!(f, "{PREFIX}:{{{stream}}}:schemas"),
            Self::Schemas(Stream(stream), TenantName(Some(ThreadName(name)))) => {
                write!(f, "{PREFIX}:{{{stream}}}:schemas:{name}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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

    #[test]
    fn thread_names_are_the_golden_ones() {
        for (id, name) in [
            ("Thread_123-abc", "Thread_123-abc"),
            ("a:b", "b64_YTpi"),
            ("thread:with:colons", "b64_dGhyZWFkOndpdGg6Y29sb25z"),
            ("b64_fake", "b64_YjY0X2Zha2U"),
            ("h_0123456789abcdef", "b64_aF8wMTIzNDU2Nzg5YWJjZGVm"),
        ] {
            let made = ThreadName::new(id).unwrap();
            assert_eq!((made.as_str(), made.id().as_str()), (name, id));
            assert_eq!(ThreadName::parse(name).unwrap(), made);
        }
        assert_eq!(ThreadName::new(&"a".repeat(128)).unwrap().as_str(), "a".repeat(128));
        assert!(ThreadName::new(&"a".repeat(129)).unwrap().as_str().starts_with("b64_"));
        assert_eq!(ThreadName::new(""), Err(InvalidThread::Empty));
        assert_eq!(ThreadName::new(&"a".repeat(1_025)), Err(InvalidThread::TooLong(1_025)));
        for bad in ["h_x", "b64_YTpi=", "b64_", "b64_QUJD", "a:b", ""] {
            assert!(ThreadName::parse(bad).is_err(), "{bad} is no id's name");
        }
    }

    #[test]
    fn each_tenant_has_a_key_of_its_own_and_so_has_none() {
        let stream = Stream::new("s").unwrap();
        let key = |id: &str| Key::Schemas(&stream, &TenantName::new(id).unwrap()).to_string();
        assert_eq!(key(""), "dashstream:1:{s}:schemas");
        assert_eq!(key("acme"), "dashstream:1:{s}:schemas:acme");
        assert_eq!(key("a:b"), "dashstream:1:{s}:schemas:b64_YTpi");
        assert!(TenantName::new(&"a".repeat(1_025)).is_err());
    }

    proptest! {
        #[test]
        fn names_are_reversible_safe_and_bounded(id in "\\PC{1,200}|[a-z0-9_:-]{1,140}|(b64_|h_)[A-Za-z0-9_-]{0,20}") {
            let name = ThreadName::new(&id).unwrap();
            prop_assert_eq!(name.id(), id);
            prop_assert!(name.as_str().bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte)));
            prop_assert!(name.as_str().len() <= 4 + THREAD_ID_BYTES_MAX.div_ceil(3) * 4);
            prop_assert_eq!(ThreadName::parse(name.as_str()).unwrap(), name);
        }
    }

    #[test]
    fn a_million_ids_have_a_million_names() {
        let ids = (0..1_000_000_u32).map(|i| match i % 4 {
            0 => format!("t-{i}"),
            1 => format!("t:{i}"),
            2 => format!("b64_{i}"),
            _ => format!("\u{1f980}{i}"),
        });
        let names: std::collections::HashSet<_> = ids.map(|id| ThreadName::new(&id).unwrap()).collect();
        assert_eq!(names.len(), 1_000_000);
    }
}
