//! A Redis that deletes on its own when it is full is no store.
use crate::connection::Connection;
use redis::{ErrorKind, RedisError, RedisResult, ServerErrorKind, Value};

const SAFE: &str = "noeviction";

/// Why Redis may not be used as a store.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// It is certain: waiting does not help.
    #[error(
        "{node} has maxmemory-policy {policy}: when its memory is full it deletes records that are still \
         promised, and nobody is told; set the policy to noeviction, or REDIS_ALLOW_EVICTION=true to accept \
         the loss"
    )]
    Evicts { node: String, policy: String },
    #[error(
        "{node} tells its maxmemory-policy neither by INFO nor by CONFIG GET: it may delete records that are \
         still promised; permit +info or +config|get to the user, or set REDIS_ALLOW_EVICTION=true when the \
         policy is known to be noeviction"
    )]
    Unknown { node: String },
    /// It was not asked.
    #[error("redis does not answer")]
    Away(#[from] RedisError),
}

impl Refused {
    /// Whether Redis itself said so. The service stops then; otherwise it goes on asking.
    pub fn is_certain(&self) -> bool {
        match self {
            Self::Evicts { .. } => true,
            Self::Unknown { .. } | Self::Away(_) => false,
        }
    }
}

/// Asks every node that takes writes what it does when its memory is full. With `allow`, only whether Redis
/// answers.
///
/// # Errors
/// When a node may delete on its own, or does not answer.
pub async fn check_eviction(connection: &Connection, allow: bool) -> Result<(), Refused> {
    if allow {
        redis::cmd("PING").exec_async(&mut connection.clone()).await?;
        return Ok(());
    }
    let info = redis::cmd("INFO").arg("memory").take();
    let mut silent = Vec::new();
    for (node, answer) in connection.every_primary(&info).await? {
        match permitted(answer)?.and_then(policy_of_info) {
            Some(policy) => judge(node, policy)?,
            None => silent.push(node),
        }
    }
    if silent.is_empty() {
        return Ok(());
    }
    // It tells more than this, passwords among it, so it is not asked where INFO will do.
    let config = redis::cmd("CONFIG").arg("GET").arg("maxmemory-policy").take();
    for (node, answer) in connection.every_primary(&config).await? {
        match permitted(answer)?.as_ref().and_then(policy_of_config) {
            Some(policy) => judge(node, policy)?,
            None if silent.contains(&node) => return Err(Refused::Unknown { node }),
            None => {}
        }
    }
    Ok(())
}

fn judge(node: String, policy: String) -> Result<(), Refused> {
    if policy == SAFE { Ok(()) } else { Err(Refused::Evicts { node, policy }) }
}

/// An answer, nothing where the user may not ask or the service does not know the command.
fn permitted(answer: RedisResult<Value>) -> RedisResult<Option<Value>> {
    use ServerErrorKind::{NoPerm, ResponseError};
    match answer {
        Err(error) if matches!(error.kind(), ErrorKind::Server(NoPerm | ResponseError)) => Ok(None),
        answer => answer.map(Some),
    }
}

/// Name and value; nothing, where the setting is hidden.
fn policy_of_config(answer: &Value) -> Option<String> {
    let (_, policy): (String, String) = redis::from_redis_value_ref(answer).ok()?;
    Some(policy)
}

fn policy_of_info(answer: Value) -> Option<String> {
    let text: String = redis::from_redis_value(answer).ok()?;
    let policy = text.lines().find_map(|line| line.strip_prefix("maxmemory_policy:"))?;
    Some(policy.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_is_found_in_both_answers() {
        let bulk = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let config = Value::Array(vec![bulk("maxmemory-policy"), bulk("allkeys-lru")]);
        assert_eq!(policy_of_config(&config), Some("allkeys-lru".into()));
        assert_eq!(policy_of_config(&Value::Array(Vec::new())), None);
        let info = "# Memory\r\nmaxmemory:0\r\nmaxmemory_policy:noeviction\r\n";
        assert_eq!(policy_of_info(bulk(info)), Some("noeviction".into()));
        assert_eq!(policy_of_info(bulk("# Memory\r\n")), None);
    }

    #[test]
    fn anything_but_noeviction_is_refused_by_name() {
        assert!(judge("h:1".into(), "noeviction".into()).is_ok());
        let refused = judge("h:1".into(), "volatile-ttl".into()).unwrap_err();
        let text = refused.to_string();
        assert!(refused.is_certain());
        for part in ["h:1", "volatile-ttl", "noeviction", "REDIS_ALLOW_EVICTION=true"] {
            assert!(text.contains(part), "{text}");
        }
    }
}
