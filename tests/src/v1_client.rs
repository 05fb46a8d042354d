//! A client of the predecessor's protocol, as its wire specification has it: JSON texts, and each payload in a binary
//! message behind the cursor that names its place.
use crate::{eventually::pause, feed::Log};
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Map, Value, json};
use std::{collections::BTreeMap, time::Duration};
use tokio::net::TcpStream;
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{Message, client::IntoClientRequest},
};

const RETRY: Duration = Duration::from_millis(50);

/// What a client hears.
#[derive(Clone, Debug, PartialEq)]
pub enum Heard {
    Record {
        partition: i32,
        offset: u64,
        payload: Bytes,
    },
    Text(Value),
    /// The socket was closed; the code, if there was one.
    Closed(Option<u16>),
}

/// One connection.
#[derive(Debug)]
pub struct V1Client {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    /// The cursor whose record has yet to come.
    pending: Option<(i32, u64)>,
}

impl V1Client {
    /// Connects without a subprotocol.
    ///
    /// # Errors
    /// The status of a refusal; 0 when nobody answers.
    ///
    /// # Panics
    /// If the gateway selects a subprotocol, or a header can't be.
    pub async fn connect(address: &str, headers: &[(&'static str, &str)]) -> Result<Self, u16> {
        let mut request = format!("ws://{address}/ws").into_client_request().expect("an address");
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().expect("a header"));
        }
        match connect_async(request).await {
            Ok((socket, answer)) => {
                assert!(answer.headers().get("sec-websocket-protocol").is_none(), "none was offered");
                Ok(Self { socket, pending: None })
            }
            Err(tokio_tungstenite::tungstenite::Error::Http(answer)) => Err(answer.status().as_u16()),
            Err(_) => Err(0),
        }
    }

    /// Says something; whether it arrives, the answer tells.
    pub async fn say(&mut self, text: impl Into<String>) {
        drop(self.socket.send(Message::text(text.into())).await);
    }

    /// Asks to resume.
    pub async fn resume(&mut self, fields: &Value) {
        let mut message = json!({ "type": "resume" });
        message.as_object_mut().expect("an object").extend(fields.as_object().cloned().unwrap_or_default());
        self.say(message.to_string()).await;
    }

    /// The next record or text.
    ///
    /// # Panics
    /// If a cursor and its record do not come in pairs, or the server pings.
    pub async fn next(&mut self) -> Heard {
        loop {
            match self.socket.next().await {
                Some(Ok(Message::Text(text))) => {
                    let text: Value = serde_json::from_str(&text).expect("JSON");
                    assert!(self.pending.is_none(), "a text between a cursor and its record: {text}");
                    if text["type"] != "cursor" {
                        return Heard::Text(text);
                    }
                    self.pending = Some(place(&text));
                }
                Some(Ok(Message::Binary(payload))) => {
                    let (partition, offset) = self.pending.take().expect("a cursor before the record");
                    return Heard::Record { partition, offset, payload };
                }
                Some(Ok(Message::Close(frame))) => {
                    return Heard::Closed(frame.map(|frame| frame.code.into()));
                }
                Some(Ok(other)) => panic!("the predecessor sent no {other:?}"),
                Some(Err(_)) | None => return Heard::Closed(None),
            }
        }
    }

    /// The next record's payload; texts before it are lost on the caller.
    ///
    /// # Panics
    /// If the socket is closed, or as [`Self::next`].
    pub async fn next_record(&mut self) -> Bytes {
        loop {
            match self.next().await {
                Heard::Record { payload, .. } => return payload,
                Heard::Text(_) => {}
                Heard::Closed(code) => panic!("closed with {code:?}"),
            }
        }
    }

    /// The next text; records before it are lost on the caller.
    ///
    /// # Panics
    /// As [`Self::next_record`].
    pub async fn next_text(&mut self) -> Value {
        loop {
            match self.next().await {
                Heard::Text(text) => return text,
                Heard::Record { .. } => {}
                Heard::Closed(code) => panic!("closed with {code:?}"),
            }
        }
    }
}

fn place(cursor: &Value) -> (i32, u64) {
    let partition = cursor["partition"].as_i64().and_then(|partition| i32::try_from(partition).ok());
    let offset = cursor["offset"].as_str().and_then(|offset| offset.parse().ok());
    assert_eq!(cursor.as_object().map(Map::len), Some(3), "{cursor}");
    partition.zip(offset).unwrap_or_else(|| panic!("{cursor}"))
}

/// What a client has seen over all of its connections. It keeps what the shipped page keeps: the last offset of each
/// partition.
#[derive(Debug, Default)]
pub struct V1Watcher {
    pub received: Log,
    /// Other texts than cursors.
    pub texts: Vec<Value>,
    pub connections: usize,
}

impl V1Watcher {
    pub fn records(&self) -> usize {
        crate::feed::records(&self.received)
    }

    /// The fields of a resume from where it stands.
    pub fn cursors(&self) -> Value {
        let last = |(partition, records): (&i32, &Vec<(u64, Bytes)>)| {
            records.last().map(|(offset, _)| (partition.to_string(), json!(offset.to_string())))
        };
        let offsets: BTreeMap<_, _> = self.received.iter().filter_map(last).collect();
        json!({ "lastOffsetsByPartition": offsets, "from": "cursor" })
    }

    /// Resumes at a gateway and follows until `enough`, or after `events` events; then cuts the connection.
    ///
    /// # Panics
    /// If an offset does not grow.
    pub async fn follow(&mut self, gateway: &str, events: usize, mut enough: impl FnMut(&Self) -> bool) {
        let Ok(mut client) = V1Client::connect(gateway, &[]).await else { return pause(RETRY).await };
        self.connections += 1;
        client.resume(&self.cursors()).await;
        for _ in 0..events {
            if enough(self) {
                return;
            }
            match client.next().await {
                Heard::Record { partition, offset, payload } => self.take(partition, offset, &payload),
                Heard::Text(text) => self.texts.push(text),
                Heard::Closed(_) => return,
            }
        }
    }

    fn take(&mut self, partition: i32, offset: u64, payload: &Bytes) {
        let records = self.received.entry(partition).or_default();
        let last = records.last().map(|(offset, _)| *offset);
        assert!(last < Some(offset), "partition {partition}: {offset} after {last:?}");
        records.push((offset, Bytes::copy_from_slice(payload)));
    }

    /// Texts of one type.
    pub fn of(&self, kind: &str) -> Vec<&Value> {
        self.texts.iter().filter(|text| text["type"] == kind).collect()
    }
}
