//! A TCP proxy that breaks connections on command.

use std::{io, net::SocketAddr, pin::pin, sync::Arc, thread, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpSocket, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{mpsc, watch},
    task::JoinSet,
};

use crate::{eventually::pause, net::free_port};

const CHUNK_BYTES: usize = 64 * 1024;
const BACKLOG: u32 = 1024;

/// Forwards every connection made to [`Proxy::address`] until it is told to misbehave. Works in a
/// thread of its own, so that a busy test does not slow it; ends, with its connections, on `Drop`.
///
/// A command has taken effect when its call returns.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    orders: Option<mpsc::UnboundedSender<(Order, Done)>>,
    thread: Option<thread::JoinHandle<()>>,
}

#[derive(Clone, Copy, Debug)]
enum Order {
    Cut,
    Refuse(bool),
    Stall(bool),
    Slow(Duration),
    /// Requests of this kind, of the Kafka protocol, are swallowed.
    Swallow(Option<i16>),
}

/// Told when an order has been carried out.
type Done = std::sync::mpsc::Sender<()>;

impl Proxy {
    /// A proxy to `target` (host and port), at a free loopback port. Nobody need listen there yet.
    ///
    /// # Panics
    /// If no thread or socket can be had.
    pub fn to(target: &str) -> Self {
        Self::start(target, Speaks::Anything)
    }

    fn start(target: &str, speaks: Speaks) -> Self {
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let (orders, inbox) = mpsc::unbounded_channel();
        let (bound, is_bound) = std::sync::mpsc::channel();
        let target: Arc<str> = target.into();
        let run = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("make a runtime").block_on(serve(address, target, speaks, inbox, bound));
        };
        let thread = thread::Builder::new().name("proxy".to_owned()).spawn(run).expect("start a thread");
        is_bound.recv().expect("the proxy has bound its port");
        Self { address, orders: Some(orders), thread: Some(thread) }
    }

    /// As [`Proxy::to`], to a Kafka broker: then [`Proxy::swallow`] knows one request from another.
    ///
    /// # Panics
    /// As [`Proxy::to`].
    pub fn to_kafka(target: &str) -> Self {
        Self::start(target, Speaks::Kafka)
    }

    /// What clients connect to, as host and port.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Resets the connections there are. New ones are taken.
    pub fn cut(&self) {
        self.order(Order::Cut);
    }

    /// Closes the port to new connections, or opens it. Those there are go on.
    pub fn refuse(&self, refuse: bool) {
        self.order(Order::Refuse(refuse));
    }

    /// Holds back all bytes, both ways, or lets them go on. Connections stay open and new ones are
    /// taken; nothing is lost.
    pub fn stall(&self, stall: bool) {
        self.order(Order::Stall(stall));
    }

    /// Holds back each chunk of at most 64 KiB for this long, both ways.
    pub fn slow(&self, delay: Duration) {
        self.order(Order::Slow(delay));
    }

    /// Lets no request with this key of the Kafka protocol through: it is never answered. `None` lets all through
    /// again.
    pub fn swallow(&self, api_key: Option<i16>) {
        self.order(Order::Swallow(api_key));
    }

    fn order(&self, order: Order) {
        let (done, is_done) = std::sync::mpsc::channel();
        let orders = self.orders.as_ref().expect("only drop takes it");
        orders.send((order, done)).expect("the proxy runs");
        is_done.recv().expect("the proxy carries orders out");
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        drop(self.orders.take()); // without a commander the proxy ends
        let ended = self.thread.take().map(thread::JoinHandle::join);
        assert!(thread::panicking() || ended.is_none_or(|ended| ended.is_ok()), "the proxy panicked");
    }
}

/// What goes through a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Speaks {
    Anything,
    Kafka,
}

async fn serve(
    address: SocketAddr,
    target: Arc<str>,
    speaks: Speaks,
    mut inbox: mpsc::UnboundedReceiver<(Order, Done)>,
    bound: Done,
) {
    let mut listener = Some(listen(address));
    bound.send(()).ok();
    let stalled = watch::Sender::new(false);
    let delay = watch::Sender::new(Duration::ZERO);
    let swallowed = watch::Sender::new(None);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            order = inbox.recv() => {
                let Some((order, done)) = order else { return };
                match order {
                    Order::Cut => connections.shutdown().await,
                    Order::Refuse(true) => listener = None,
                    Order::Refuse(false) => listener = listener.or_else(|| Some(listen(address))),
                    Order::Stall(stall) => drop(stalled.send_replace(stall)),
                    Order::Slow(by) => drop(delay.send_replace(by)),
                    Order::Swallow(api_key) => drop(swallowed.send_replace(api_key)),
                }
                done.send(()).ok(); // whoever gave the order may have panicked since
            }
            client = accept(listener.as_ref()), if listener.is_some() => {
                // A client that has gone again is no affair of ours.
                let Ok(client) = client else { continue };
                let pace = Pace { stalled: stalled.subscribe(), delay: delay.subscribe() };
                let swallowed = (speaks == Speaks::Kafka).then(|| swallowed.subscribe());
                connections.spawn(forward(client, target.clone(), pace, swallowed));
            }
            // Connections end for reasons of their own; here they are only swept up.
            Some(_) = connections.join_next() => {}
        }
    }
}

fn listen(address: SocketAddr) -> TcpListener {
    let open = || {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    open().unwrap_or_else(|error| panic!("listen on {address}: {error}"))
}

async fn accept(listener: Option<&TcpListener>) -> io::Result<TcpStream> {
    match listener {
        Some(listener) => listener.accept().await.map(|(client, _)| client),
        None => std::future::pending().await,
    }
}

/// How bytes go on.
#[derive(Clone)]
struct Pace {
    stalled: watch::Receiver<bool>,
    delay: watch::Receiver<Duration>,
}

/// Both directions, until both have ended or one has failed.
async fn forward(
    client: TcpStream,
    target: Arc<str>,
    pace: Pace,
    swallowed: Option<watch::Receiver<Option<i16>>>,
) -> io::Result<()> {
    let server = TcpStream::connect(&*target).await?;
    for stream in [&client, &server] {
        stream.set_nodelay(true)?;
        stream.set_zero_linger()?; // a connection that is cut is reset, not closed in good order
    }
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    let back = pin!(copy(from_server, to_client, pace.clone()));
    match swallowed {
        None => {
            let there = pin!(copy(from_client, to_server, pace));
            tokio::try_join!(there, back)?;
        }
        Some(swallowed) => {
            let there = pin!(requests(from_client, to_server, swallowed));
            tokio::try_join!(there, back)?;
        }
    }
    Ok(())
}

/// Requests of the Kafka protocol: a length of four bytes, then as many, of which the first two are the key.
async fn requests(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    swallowed: watch::Receiver<Option<i16>>,
) -> io::Result<()> {
    loop {
        let length = from.read_i32().await?;
        let mut request = vec![0; usize::try_from(length).map_err(io::Error::other)?];
        from.read_exact(&mut request).await?;
        let key = request.first_chunk().map(|key| i16::from_be_bytes(*key));
        if key != *swallowed.borrow() || key.is_none() {
            to.write_i32(length).await?;
            to.write_all(&request).await?;
        }
    }
}

async fn copy(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut pace: Pace) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let read = from.read(&mut chunk).await?;
        let delay = *pace.delay.borrow();
        if !delay.is_zero() {
            pause(delay).await;
        }
        pace.stalled.wait_for(|stalled| !stalled).await.map_err(io::Error::other)?;
        if read == 0 {
            return to.shutdown().await;
        }
        to.write_all(&chunk[..read]).await?;
    }
}
