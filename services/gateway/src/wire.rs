//! Connections that know whether their client takes what is sent.
//!
//! A send may take long and be well, as long as bytes move. What the kernel's buffer swallows shows nothing of the
//! client; only when a write that had to wait goes on has the client read.
use std::{
    io::{self, IoSlice},
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

/// Bytes that wait in the kernel for a client that does not take them, beyond what its own kernel took.
#[cfg(target_os = "linux")]
const UNSENT_BYTES_MAX: u32 = 16 << 10;

/// When bytes went out last. A cheap handle.
#[derive(Clone, Debug)]
pub struct Progress(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    begun: Instant,
    /// When a write last took bytes, microseconds since `begun`.
    written_us: AtomicU64,
    /// When a write that had waited last took bytes.
    taken_us: AtomicU64,
    waits: AtomicBool,
}

impl Progress {
    fn new() -> Self {
        Self(Arc::new(Inner {
            begun: Instant::now(),
            written_us: AtomicU64::new(0),
            taken_us: AtomicU64::new(0),
            waits: AtomicBool::new(false),
        }))
    }

    /// When bytes last went out, into whatever buffer.
    pub fn written(&self) -> Instant {
        self.0.begun + Duration::from_micros(self.0.written_us.load(Ordering::Relaxed))
    }

    /// When the client is last known to have made room; when the connection began, before that.
    pub fn taken(&self) -> Instant {
        self.0.begun + Duration::from_micros(self.0.taken_us.load(Ordering::Relaxed))
    }

    fn note(&self, written: &Poll<io::Result<usize>>) {
        match written {
            Poll::Pending => self.0.waits.store(true, Ordering::Relaxed),
            Poll::Ready(Ok(1..)) => {
                let now = u64::try_from(self.0.begun.elapsed().as_micros()).unwrap_or(u64::MAX);
                self.0.written_us.store(now, Ordering::Relaxed);
                if self.0.waits.swap(false, Ordering::Relaxed) {
                    self.0.taken_us.store(now, Ordering::Relaxed);
                }
            }
            Poll::Ready(Ok(0) | Err(_)) => {}
        }
    }
}

/// What a request knows of its connection.
#[derive(Clone, Debug)]
pub struct Peer {
    pub address: SocketAddr,
    pub progress: Progress,
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    socket2::SockRef::from(stream).set_tcp_notsent_lowat(UNSENT_BYTES_MAX)?;
    // Frames are small and wait for nothing.
    stream.set_nodelay(true)
}

/// A connection that notes its progress.
#[derive(Debug)]
pub struct Wire {
    stream: TcpStream,
    progress: Progress,
}

impl Wire {
    /// Takes a connection that was accepted.
    pub fn new(stream: TcpStream) -> Self {
        if let Err(error) = prepare(&stream) {
            tracing::debug!(%error, "a connection without its socket options");
        }
        Self { stream, progress: Progress::new() }
    }

    pub fn progress(&self) -> &Progress {
        &self.progress
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.progress.note(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.progress.note(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_shutdown(context))?;
        Poll::Ready(Ok(()))
    }
}
