//! A real Redis server.

use std::{
    path::{Path, PathBuf},
    sync::Mutex,
    time::Duration,
};

use redis::aio::MultiplexedConnection;

use crate::{
    eventually,
    folder::Folder,
    net::free_port,
    warden::{Child, Inherit, Spec, Stop},
};

const START_TIMEOUT: Duration = Duration::from_secs(10);

/// A server of the test's own, without persistence and refusing writes when it is full, unless its
/// arguments say otherwise. Ends on `Drop`.
#[derive(Debug)]
pub struct Redis {
    child: Mutex<Option<Child>>,
    port: u16,
    args: Vec<String>,
    folder: Folder,
}

impl Redis {
    /// Starts `redis-server` with `args` after the defaults (the last of two settings wins):
    /// `Redis::start(&["--maxmemory", "4mb"])`.
    ///
    /// # Panics
    /// If it does not answer within 10 s.
    pub async fn start(args: &[&str]) -> Self {
        let folder = Folder::new("redis");
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        let redis = Self { child: Mutex::new(None), port: free_port(), args, folder };
        redis.start_again().await;
        redis
    }

    /// Where clients find it, over TCP.
    pub fn url(&self) -> String {
        format!("redis://{}", self.address())
    }

    /// Host and port, for a [`crate::Proxy`].
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Where clients find it without TCP.
    pub fn socket_url(&self) -> String {
        format!("redis+unix://{}", self.socket().display())
    }

    /// The id of the running server.
    ///
    /// # Panics
    /// After [`Redis::kill`].
    pub fn pid(&self) -> u32 {
        self.with_child(Child::pid)
    }

    /// A new connection.
    ///
    /// # Panics
    /// If the server does not take it.
    pub async fn connection(&self) -> MultiplexedConnection {
        connect(&self.url()).await.expect("connect to redis")
    }

    /// Ends the server at once. What it held is gone.
    pub fn kill(&self) {
        drop(self.child.lock().expect("nobody panics with this lock").take());
    }

    /// Starts the server again at the same address, empty unless `args` made it persistent.
    ///
    /// # Panics
    /// If it does not answer within 10 s.
    pub async fn start_again(&self) {
        let child = Child::start(&Spec {
            program: Path::new("redis-server"),
            args: self.command_line(),
            env: &[],
            inherit: Inherit::Everything,
            log: self.folder.join("redis.log"),
        });
        let up = async || match (ping(&self.url()).await, child.exited()) {
            // Another server may answer at a port that ours did not get.
            (_, Some(status)) => Ok(Err(status)),
            (Ok(()), None) => Ok(Ok(())),
            (Err(error), None) => Err(error),
        };
        let answer = eventually("redis answers", START_TIMEOUT, up).await;
        answer.unwrap_or_else(|status| panic!("redis ended, {status}:\n{}", child.log_end()));
        *self.child.lock().expect("nobody panics with this lock") = Some(child);
    }

    /// Ends the server and starts it again.
    ///
    /// # Panics
    /// As [`Child::end`] and [`Redis::start_again`].
    pub async fn restart(&self, how: Stop) {
        let child = self.child.lock().expect("nobody panics with this lock").take();
        if let Some(child) = child {
            child.end(how).await;
        }
        self.start_again().await;
    }

    /// Stops the process where it is: connections stay open and nothing is answered.
    pub fn pause(&self) {
        self.with_child(Child::stop);
    }

    /// Ends a [`Redis::pause`].
    pub fn resume(&self) {
        self.with_child(Child::cont);
    }

    fn with_child<T>(&self, act: impl FnOnce(&Child) -> T) -> T {
        act(self.child.lock().expect("nobody panics with this lock").as_ref().expect("redis runs"))
    }

    fn socket(&self) -> PathBuf {
        self.folder.join("redis.sock")
    }

    fn command_line(&self) -> Vec<String> {
        let (port, folder, socket) = (self.port.to_string(), self.folder.path(), self.socket());
        let (folder, socket) = (folder.to_string_lossy(), socket.to_string_lossy());
        #[rustfmt::skip]
        let defaults = [
            "--bind", "127.0.0.1", "--port", &port, "--unixsocket", &socket, "--dir", &folder,
            "--save", "", "--appendonly", "no", "--maxmemory-policy", "noeviction",
        ];
        defaults.iter().map(|arg| (*arg).to_owned()).chain(self.args.clone()).collect()
    }
}

async fn connect(url: &str) -> redis::RedisResult<MultiplexedConnection> {
    redis::Client::open(url)?.get_multiplexed_async_connection().await
}

async fn ping(url: &str) -> redis::RedisResult<()> {
    redis::cmd("PING").exec_async(&mut connect(url).await?).await
}
