//! A client of the websocket protocol v2, which proves every frame against its cursors.
use anyhow::{Context, bail};
use dashstream_core::chain::Chain;
use dashstream_kit::config::Secret;
use dashstream_proto::{
    log::v1::{Batch, Cursor, Gap, Record},
    session::v1::{
        CaughtUp, ClientFrame, Credit, Error, Filter, GoingAway, Hello, Limits, Notice, NoticeCode,
        Partitions, RecordsFrame, ServerFrame, StaleFrame, StartPolicy, StateFrame, Subscribe, Welcome,
        client_frame, server_frame::Frame,
    },
};
use futures_util::{SinkExt, StreamExt};
use prost::Message as _;
use tokio::net::TcpStream;
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async_with_config,
    tungstenite::{
        Message,
        client::IntoClientRequest,
        http::HeaderValue,
        protocol::{CloseFrame, WebSocketConfig},
    },
};

const SUBPROTOCOL: &str = "dashstream.v2";

/// The header that carries a token.
///
/// # Errors
/// When the token has characters that no header may have.
pub fn bearer(token: &Secret) -> anyhow::Result<HeaderValue> {
    let bearer = HeaderValue::try_from(format!("Bearer {}", token.expose()));
    let mut bearer = bearer.map_err(|_| anyhow::anyhow!("the token is no text for a header"))?;
    bearer.set_sensitive(true);
    Ok(bearer)
}

/// What the server sent, proved.
#[derive(Clone, Debug)]
pub enum Event {
    Records {
        partition: i32,
        epoch: u64,
        bytes: usize,
        records: Vec<Record>,
        made: Made,
    },
    /// Nothing up to here was for this session.
    Skipped(Cursor),
    /// A running thread's whole state, outside of the chain.
    State(StateFrame),
    Gap(Gap),
    Stale(StaleFrame),
    CaughtUp(CaughtUp),
    Partitions(Partitions),
    Notice(Notice),
    Error(Error),
    GoingAway(GoingAway),
    Pong,
    Closed,
}

/// What a frame of records says of its age.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Made {
    /// Kafka's high watermark then.
    pub high_watermark: Option<u64>,
    /// When the gateway made it, milliseconds since 1970.
    pub made_ms: Option<i64>,
    /// When ingest packed its batch, and when replay stored it, milliseconds since 1970.
    pub ingested_ms: Option<i64>,
    pub stored_ms: Option<i64>,
    pub from_replay: bool,
}

/// What a session asks for.
#[derive(Clone, Debug, Default)]
pub struct Ask {
    pub start: StartPolicy,
    /// With `StartPolicy::Time`, milliseconds since 1970; 0 otherwise.
    pub start_time_ms: i64,
    /// None for all that may be read.
    pub filter: Option<Filter>,
}

impl From<StartPolicy> for Ask {
    fn from(start: StartPolicy) -> Self {
        Self { start, ..Self::default() }
    }
}

/// A session. Its cursors outlive it: hand the chain to the next one.
#[derive(Debug)]
pub struct Client {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    chain: Chain,
    welcome: Welcome,
    /// Bytes of frames taken that credit is not given back for yet.
    owed: u64,
}

impl Client {
    /// Connects and says hello. `chain` is what the client has, empty at first.
    ///
    /// # Errors
    /// When the server can't be reached or refuses.
    pub async fn connect(url: &str, chain: Chain, limits: Limits) -> anyhow::Result<Self> {
        Self::connect_with(url, chain, limits, None).await
    }

    /// The same with a bearer token, for a gateway that asks for one.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub async fn connect_with(
        url: &str,
        chain: Chain,
        limits: Limits,
        token: Option<&Secret>,
    ) -> anyhow::Result<Self> {
        let mut request =
            url.into_client_request().with_context(|| format!("{url} is not a websocket address"))?;
        if let Some(token) = token {
            request.headers_mut().insert("authorization", bearer(token)?);
        }
        request.headers_mut().insert("sec-websocket-protocol", HeaderValue::from_static(SUBPROTOCOL));
        let config =
            WebSocketConfig::default().max_message_size(Some(64 << 20)).max_frame_size(Some(64 << 20));
        let (socket, _) = connect_async_with_config(request, Some(config), true)
            .await
            .with_context(|| format!("connect to {url}"))?;
        let mut client = Self { socket, chain, welcome: Welcome::default(), owed: 0 };
        let name = concat!("dashstream/", env!("CARGO_PKG_VERSION")).to_owned();
        let hello = Hello { client: name, limits: Some(limits), token: String::new() };
        client.send(client_frame::Frame::Hello(hello)).await?;
        match client.frame().await? {
            Some(Frame::Welcome(welcome)) => client.welcome = welcome,
            Some(Frame::Error(error)) => bail!("the gateway refused: {}", error.message),
            other => bail!("expected a welcome, got {other:?}"),
        }
        Ok(client)
    }

    /// What the server granted.
    pub fn welcome(&self) -> &Welcome {
        &self.welcome
    }

    /// What the client has.
    pub fn chain(&self) -> &Chain {
        &self.chain
    }

    /// Ends the session without a word, as a cut would, and returns what the client has.
    pub fn cut(self) -> Chain {
        self.chain
    }

    /// Starts the delivery: behind the cursors, and where it is asked where there is none.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn subscribe(&mut self, ask: impl Into<Ask>) -> anyhow::Result<()> {
        let Ask { start, start_time_ms, filter } = ask.into();
        let everything = self.welcome.access.as_ref().is_some_and(|access| access.all_tenants);
        let whole = everything && filter.is_none() && start != StartPolicy::Active;
        self.chain.expect_filtered(!whole);
        let cursors = self.chain.cursors();
        let subscribe = Subscribe { request_id: 1, cursors, start: start.into(), filter, start_time_ms };
        self.send(client_frame::Frame::Subscribe(subscribe)).await
    }

    /// Gives credit back for the frames taken since the last time.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn give_credit(&mut self) -> anyhow::Result<()> {
        let bytes = std::mem::take(&mut self.owed);
        self.send(client_frame::Frame::Credit(Credit { bytes })).await
    }

    /// Sends any frame.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn send(&mut self, frame: client_frame::Frame) -> anyhow::Result<()> {
        let bytes = ClientFrame { frame: Some(frame) }.encode_to_vec();
        Ok(self.socket.send(Message::Binary(bytes.into())).await?)
    }

    /// Says goodbye.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn close(mut self) -> anyhow::Result<()> {
        Ok(self.socket.close(None).await?)
    }

    /// The next event. After `Closed` there is none.
    ///
    /// # Errors
    /// When the connection broke, or a frame breaks the chain: then nothing of it was taken.
    pub async fn next(&mut self) -> anyhow::Result<Event> {
        match self.frame().await? {
            Some(frame) => self.take(frame),
            None => Ok(Event::Closed),
        }
    }

    fn take(&mut self, frame: Frame) -> anyhow::Result<Event> {
        Ok(match frame {
            Frame::Records(frame) => {
                let records = self.chain.records(&frame)?;
                let made = made(&frame);
                let Batch { partition, epoch, records: packed, .. } = frame.batch.unwrap_or_default();
                Event::Records { partition, epoch, bytes: packed.len(), records, made }
            }
            Frame::Skipped(frame) => {
                self.chain.skipped(&frame)?;
                let (epoch, partition, offset) = (frame.epoch, frame.partition, Some(frame.through));
                Event::Skipped(Cursor { epoch, partition, offset })
            }
            Frame::State(state) => Event::State(state),
            Frame::Gap(frame) => Event::Gap(self.chain.gap(&frame)?),
            Frame::Stale(stale) => {
                if let Some(cursor) = &stale.cursor {
                    self.chain.forget(cursor.partition);
                }
                Event::Stale(stale)
            }
            Frame::Notice(notice) => {
                if notice.code() == NoticeCode::RecordTooLarge {
                    self.chain.withheld(&notice)?;
                }
                Event::Notice(notice)
            }
            Frame::CaughtUp(caught_up) => {
                self.chain.caught_up(&caught_up)?;
                Event::CaughtUp(caught_up)
            }
            Frame::Partitions(partitions) => Event::Partitions(partitions),
            Frame::Error(error) => Event::Error(error),
            Frame::GoingAway(away) => Event::GoingAway(away),
            Frame::Pong(_) => Event::Pong,
            Frame::Welcome(_) => bail!("a second welcome"),
        })
    }

    async fn frame(&mut self) -> anyhow::Result<Option<Frame>> {
        loop {
            match self.socket.next().await {
                Some(Ok(Message::Binary(bytes))) => {
                    let len = bytes.len() as u64;
                    let frame = ServerFrame::decode(bytes).context("decode a frame of the gateway")?;
                    let frame = frame.frame.context("a frame without a member")?;
                    if matches!(frame, Frame::Records(_) | Frame::Gap(_) | Frame::State(_)) {
                        self.owed += len;
                    }
                    return Ok(Some(frame));
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Ok(Message::Close(frame))) => {
                    let reason = frame.map(|CloseFrame { reason, .. }| reason.to_string());
                    tracing::debug!(reason, "closed by the gateway");
                    return Ok(None);
                }
                Some(Ok(Message::Text(text))) => bail!("a text message: {:.100}", text.as_str()),
                Some(Err(error)) => return Err(error).context("the connection broke"),
                None => return Ok(None),
            }
        }
    }
}

fn made(frame: &RecordsFrame) -> Made {
    let batch = frame.batch.as_ref();
    Made {
        high_watermark: frame.high_watermark,
        made_ms: frame.made_ms,
        ingested_ms: batch.and_then(|batch| batch.ingested_ms),
        stored_ms: batch.and_then(|batch| batch.stored_ms),
        from_replay: frame.from_replay,
    }
}
