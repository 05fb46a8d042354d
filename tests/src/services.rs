//! Our own binaries, as child processes.

use std::{path::PathBuf, process::ExitStatus, sync::Mutex, time::Duration};

use tokio::net::TcpStream;

use crate::{
    eventually,
    folder::Folder,
    net::{free_address, get},
    warden::{Child, Inherit, Spec, Stop},
};

const READY_TIMEOUT: Duration = Duration::from_secs(30);
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);
const LOG_FILTER: &str = "info,dashstream=debug";

/// Which binary, and the names of its addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Kafka to replay and the live feed.
    Ingest,
    /// The store, over gRPC.
    Replay,
    /// Websockets and queries.
    Gateway,
    /// `dashstream local`: everything in one process.
    Local,
}

impl Kind {
    fn binary(self) -> &'static str {
        match self {
            Self::Ingest => "dashstream-ingest",
            Self::Replay => "dashstream-replay",
            Self::Gateway => "dashstream-gateway",
            Self::Local => "dashstream",
        }
    }

    fn args(self) -> &'static [&'static str] {
        match self {
            Self::Ingest | Self::Replay | Self::Gateway => &[],
            Self::Local => &["local"],
        }
    }

    /// The setting of its main address: gRPC for ingest and replay, HTTP for the gateway.
    fn listen(self) -> &'static str {
        match self {
            Self::Ingest => "INGEST_LISTEN",
            Self::Replay => "REPLAY_LISTEN",
            Self::Gateway | Self::Local => "GATEWAY_LISTEN",
        }
    }
}

/// One service process, at addresses that it keeps when it is started again. Ends on `Drop`.
#[derive(Debug)]
pub struct Service {
    kind: Kind,
    child: Mutex<Option<Child>>,
    env: Vec<(String, String)>,
    folder: Folder,
}

impl Service {
    /// Starts a service with these settings and no others; its addresses (`*_LISTEN`) and `RUST_LOG`
    /// are chosen where they are not given. Does not wait: see [`Service::ready`].
    ///
    /// # Panics
    /// If the binary has not been built.
    pub fn start(kind: Kind, settings: &[(&str, &str)]) -> Self {
        let mut env: Vec<(String, String)> =
            settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let mut or = |name: &str, value: String| {
            if !env.iter().any(|(given, _)| given == name) {
                env.push((name.to_owned(), value));
            }
        };
        or(kind.listen(), free_address());
        or("OPS_LISTEN", free_address());
        or("RUST_LOG", LOG_FILTER.to_owned());
        or("RUST_BACKTRACE", "1".to_owned());
        if matches!(kind, Kind::Gateway | Kind::Local) {
            or("GATEWAY_GRPC_LISTEN", free_address());
        }
        if kind == Kind::Gateway {
            or("GATEWAY_AUTH", "none".to_owned());
            // All clients of a test have the same address.
            or("GATEWAY_SESSIONS_PER_ADDRESS_MAX", "100000".to_owned());
        }
        if kind == Kind::Local {
            or("INGEST_LISTEN", free_address());
            or("KAFKA_LISTEN", free_address());
        }
        let service = Self {
            kind,
            child: Mutex::new(None),
            env,
            folder: Folder::new(kind.binary().trim_start_matches("dashstream-")),
        };
        service.start_again();
        service
    }

    /// Its main address: gRPC for ingest and replay, HTTP and websockets for the gateway.
    pub fn address(&self) -> String {
        self.setting(self.kind.listen())
    }

    /// Where the gateway serves gRPC.
    ///
    /// # Panics
    /// For any other service.
    pub fn grpc_address(&self) -> String {
        self.setting("GATEWAY_GRPC_LISTEN")
    }

    /// Where ingest serves gRPC in local mode.
    ///
    /// # Panics
    /// For any other service, which has no such setting or has it as its main address.
    pub fn ingest_address(&self) -> String {
        self.setting("INGEST_LISTEN")
    }

    /// Where the embedded broker of local mode is found.
    ///
    /// # Panics
    /// For any other service.
    pub fn kafka_address(&self) -> String {
        self.setting("KAFKA_LISTEN")
    }

    /// Where `/metrics`, `/readyz` and their like are served.
    pub fn ops_address(&self) -> String {
        self.setting("OPS_LISTEN")
    }

    /// Waits until `/readyz` answers 200 and its main address takes connections.
    ///
    /// # Panics
    /// If that takes more than 30 s, or the process ends instead.
    pub async fn ready(&self) {
        let what = format!("{} is ready", self.kind.binary());
        let asked = async || {
            if let Some(status) = self.exited() {
                return Ok(Err(status));
            }
            match self.get("/readyz").await? {
                (200, _) => {}
                (status, body) => return Err(format!("{status} {body}")),
            }
            let connected = TcpStream::connect(self.address()).await;
            connected.map(|_| Ok(())).map_err(|error| error.to_string())
        };
        let answer: Result<(), ExitStatus> = eventually(&what, READY_TIMEOUT, asked).await;
        answer.unwrap_or_else(|status| panic!("{what}: it ended, {status}:\n{}", self.log_text()));
    }

    /// Status and body of a `GET` on the operations port.
    ///
    /// # Errors
    /// Says what went wrong when there is no answer.
    pub async fn get(&self, path: &str) -> Result<(u16, String), String> {
        get(&self.ops_address(), path).await
    }

    /// The value of one series of `/metrics`, such as `name{label="value"}`; `None` while there is none.
    ///
    /// # Errors
    /// Says what went wrong when there is no answer.
    pub async fn metric(&self, series: &str) -> Result<Option<f64>, String> {
        let (_, text) = self.get("/metrics").await?;
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map(|value| value.parse().map_err(|_| format!("{series} is {value}"))).transpose()
    }

    /// Ends the process. [`Service::start_again`] brings it back.
    ///
    /// # Panics
    /// If it takes more than 30 s to drain.
    pub async fn stop(&self, how: Stop) {
        let child = self.child.lock().expect("nobody panics with this lock").take();
        if let Some(child) = child {
            child.end(how).await;
        }
    }

    /// Starts the process again, at the same addresses and with the same settings; its log goes on
    /// in the same file. Does not wait.
    ///
    /// # Panics
    /// If the binary has not been built.
    pub fn start_again(&self) {
        let program = binary(self.kind.binary());
        assert!(program.exists(), "{} is missing: `cargo build --workspace --bins`", program.display());
        let child = Child::start(&Spec {
            program: &program,
            args: self.kind.args().iter().map(|arg| (*arg).to_owned()).collect(),
            env: &self.env,
            inherit: Inherit::Nothing,
            log: self.log(),
        });
        *self.child.lock().expect("nobody panics with this lock") = Some(child);
    }

    /// [`Service::stop`], then [`Service::start_again`], and waits until it is ready.
    ///
    /// # Panics
    /// As these and [`Service::ready`].
    pub async fn restart(&self, how: Stop) {
        self.stop(how).await;
        self.start_again();
        self.ready().await;
    }

    /// Stops the process where it is: connections stay open and nothing is answered.
    pub fn pause(&self) {
        self.with_child(Child::stop);
    }

    /// Ends a [`Service::pause`].
    pub fn resume(&self) {
        self.with_child(Child::cont);
    }

    /// Sends SIGTERM without waiting, to watch the drain.
    pub fn terminate(&self) {
        self.with_child(Child::terminate);
    }

    /// How the process ended, if it has done so by itself or after [`Service::terminate`].
    pub fn exited(&self) -> Option<ExitStatus> {
        self.with_child(Child::exited)
    }

    /// Everything that all its processes have written so far.
    pub fn log_text(&self) -> String {
        std::fs::read_to_string(self.log()).unwrap_or_default()
    }

    fn with_child<T>(&self, act: impl FnOnce(&Child) -> T) -> T {
        act(self.child.lock().expect("nobody panics with this lock").as_ref().expect("the service runs"))
    }

    fn log(&self) -> PathBuf {
        self.folder.join("service.log")
    }

    fn setting(&self, name: &str) -> String {
        let found = self.env.iter().find(|(given, _)| given == name);
        found.unwrap_or_else(|| panic!("{} has no {name}", self.kind.binary())).1.clone()
    }
}

/// Runs a command of `dashstream` with these settings and no others, until it ends. Returns whether it said that it
/// did what it was told, and all that it wrote.
///
/// # Panics
/// If the binary has not been built, or the command takes longer than a minute.
pub async fn dashstream(args: &[&str], settings: &[(&str, &str)]) -> (bool, String) {
    let program = binary("dashstream");
    assert!(program.exists(), "{} is missing: `cargo build --workspace --bins`", program.display());
    let folder = Folder::new("command");
    let env: Vec<_> =
        settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let child = Child::start(&Spec {
        program: &program,
        args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        env: &env,
        inherit: Inherit::Nothing,
        log: folder.join("command.log"),
    });
    let status = child.wait(COMMAND_TIMEOUT).await;
    (status.success(), child.log_text())
}

/// Beside the test executable, one folder up: Cargo puts tests into `deps`.
fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("know our own path");
    let folder =
        test.parent().and_then(|deps| deps.parent()).expect("the test lies in target/<profile>/deps");
    folder.join(name)
}
