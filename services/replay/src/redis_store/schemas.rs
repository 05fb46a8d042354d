//! Expected schemas: a hash for each tenant.
use super::{RedisStore, evalsha, millis};
use crate::{
    keys::{Key, Stream, TenantName},
    schemas::{Changed, LIFETIME, SCHEMAS_MAX, SchemaStore},
    store::Error,
};
use bytes::Bytes;
use dashstream_proto::replay::v1::ExpectedSchema;
use prost::Message as _;
use std::collections::BTreeMap;

/// The version, a space, and the encoded schema: the script reads no protobuf.
fn encode(schema: &ExpectedSchema) -> Vec<u8> {
    let mut text = format!("{} ", schema.version).into_bytes();
    text.extend(schema.encode_to_vec());
    text
}

fn decode(stored: &[u8]) -> Result<ExpectedSchema, Error> {
    let corrupt = || Error::Corrupt("an expected schema".to_owned());
    let space = stored.iter().position(|byte| *byte == b' ').ok_or_else(corrupt)?;
    ExpectedSchema::decode(&stored[space + 1..]).map_err(|_| corrupt())
}

impl RedisStore {
    async fn change_schema(
        &self,
        (stream, tenant): (&Stream, &TenantName),
        (graph_name, expected): (&str, Option<u64>),
        set: Option<&ExpectedSchema>,
    ) -> Result<Changed, Error> {
        let key = Key::Schemas(stream, tenant);
        let mut command = evalsha(&self.schema, &[key]);
        command
            .arg(graph_name)
            .arg(expected.map_or_else(String::new, |version| version.to_string()))
            .arg(set.map_or_else(Vec::new, encode))
            .arg(set.map_or(0, |schema| schema.version))
            .arg(SCHEMAS_MAX)
            .arg(millis(LIFETIME));
        let outcome: String = self.call(&self.schema, key, &command).await?;
        match outcome.as_str() {
            "done" => Ok(Changed::Done),
            "absent" => Ok(Changed::Absent),
            "conflict" => Ok(Changed::Conflict),
            "full" => Ok(Changed::Full),
            other => Err(Error::Corrupt(format!("outcome {other:?}"))),
        }
    }
}

impl SchemaStore for RedisStore {
    async fn schemas(&self, stream: &Stream, tenant: &TenantName) -> Result<Vec<ExpectedSchema>, Error> {
        let key = Key::Schemas(stream, tenant).to_string();
        let mut pipeline = redis::pipe();
        pipeline.cmd("HGETALL").arg(&key).cmd("PEXPIRE").arg(&key).arg(millis(LIFETIME)).ignore();
        let (stored,): (BTreeMap<String, Bytes>,) = self.ask_all(&pipeline).await?;
        stored.into_values().map(|schema| decode(&schema)).collect()
    }

    async fn schema(
        &self,
        stream: &Stream,
        tenant: &TenantName,
        graph_name: &str,
    ) -> Result<Option<ExpectedSchema>, Error> {
        let key = Key::Schemas(stream, tenant).to_string();
        let mut pipeline = redis::pipe();
        pipeline.cmd("HGET").arg(&key).arg(graph_name);
        pipeline.cmd("PEXPIRE").arg(&key).arg(millis(LIFETIME)).ignore();
        let (stored,): (Option<Bytes>,) = self.ask_all(&pipeline).await?;
        stored.map(|schema| decode(&schema)).transpose()
    }

    async fn set_schema(
        &self,
        stream: &Stream,
        tenant: &TenantName,
        schema: &ExpectedSchema,
        expected: Option<u64>,
    ) -> Result<Changed, Error> {
        self.change_schema((stream, tenant), (&schema.graph_name, expected), Some(schema)).await
    }

    async fn delete_schema(
        &self,
        stream: &Stream,
        tenant: &TenantName,
        graph_name: &str,
        version: u64,
    ) -> Result<Changed, Error> {
        self.change_schema((stream, tenant), (graph_name, Some(version)), None).await
    }
}
