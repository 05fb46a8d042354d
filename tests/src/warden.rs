//! Child processes that cannot outlive the test process.
//!
//! A [`Child`] is killed on `Drop`. That does not help when the test process is killed itself, so
//! the kernel is asked to kill the child then (`setpriv --pdeathsig`, where util-linux has it). It
//! does so when the *thread* that made the child ends, and a test's thread ends with its test;
//! therefore one thread that lives as long as the process makes them all.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    sync::{LazyLock, Mutex, mpsc},
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::eventually;

/// Lines of a child's log that are shown when its test fails.
const LINES_SHOWN: usize = 60;
const GRACE: Duration = Duration::from_secs(30);

/// How to end a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// SIGKILL: as in a crash, nothing is flushed or said.
    Kill,
    /// SIGTERM, and up to 30 s to drain.
    Terminate,
}

/// What to start. The child's standard output and error go to `log`, appended.
#[derive(Debug)]
pub(crate) struct Spec<'a> {
    pub(crate) program: &'a Path,
    pub(crate) args: Vec<String>,
    pub(crate) env: &'a [(String, String)],
    pub(crate) inherit: Inherit,
    pub(crate) log: PathBuf,
}

/// What the child sees of the environment in which the tests run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Inherit {
    /// All of it: a tool of the system needs its `PATH`.
    Everything,
    /// Nothing: a developer's settings must not reach the services under test.
    Nothing,
}

/// A running process. Killed and reaped on `Drop`; when its test has failed, its log is shown and
/// kept.
#[derive(Debug)]
pub struct Child {
    process: Mutex<std::process::Child>,
    pid: Pid,
    log: PathBuf,
}

impl Child {
    pub(crate) fn start(spec: &Spec<'_>) -> Self {
        let process = hand_to_warden(command(spec)).unwrap_or_else(|error| {
            panic!("start {}: {error} (`just setup` installs what the tests need)", spec.program.display())
        });
        let pid = Pid::from_raw(process.id().try_into().expect("a process id fits in i32"));
        Self { process: Mutex::new(process), pid, log: spec.log.clone() }
    }

    pub fn pid(&self) -> u32 {
        self.pid.as_raw().unsigned_abs()
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(&self) {
        self.signal(Signal::SIGKILL);
        let status = self.process.lock().expect("nobody panics with this lock").wait();
        status.expect("reap a child of our own");
    }

    /// SIGTERM, without waiting.
    pub fn terminate(&self) {
        self.signal(Signal::SIGTERM);
    }

    /// SIGSTOP: the process holds its connections but does nothing.
    pub fn stop(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// SIGCONT, after [`Child::stop`].
    pub fn cont(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// How the process ended, if it has.
    pub fn exited(&self) -> Option<ExitStatus> {
        self.process
            .lock()
            .expect("nobody panics with this lock")
            .try_wait()
            .expect("ask for a child of our own")
    }

    /// Waits for the process to end by itself.
    ///
    /// # Panics
    /// If it has not within `timeout`.
    pub async fn wait(&self, timeout: Duration) -> ExitStatus {
        let what = format!("the end of process {} (log: {})", self.pid, self.log.display());
        eventually(&what, timeout, async || self.exited().ok_or("it still runs")).await
    }

    /// Ends the process and waits until it is gone.
    ///
    /// # Panics
    /// If it takes longer than 30 s to drain.
    pub async fn end(&self, how: Stop) {
        match how {
            Stop::Kill => self.kill(),
            Stop::Terminate => {
                self.terminate();
                self.wait(GRACE).await;
            }
        }
    }

    /// Everything that the process has written so far.
    pub fn log_text(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// The last lines of the log, for a failure's message.
    pub(crate) fn log_end(&self) -> String {
        let text = self.log_text();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(LINES_SHOWN)..].join("\n")
    }

    /// A process that has been reaped is not signalled: its id may belong to another by now.
    fn signal(&self, signal: Signal) {
        let mut process = self.process.lock().expect("nobody panics with this lock");
        if process.try_wait().expect("ask for a child of our own").is_none() {
            kill(self.pid, signal).expect("signal a child of our own");
        }
    }
}

impl Drop for Child {
    #[expect(clippy::print_stderr, reason = "this is how a failed test shows what its processes said")]
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            eprintln!("---- {} ends with:\n{}\n----", self.log.display(), self.log_end());
        }
    }
}

fn command(spec: &Spec<'_>) -> Command {
    static LEASHED: LazyLock<bool> = LazyLock::new(|| {
        let mut probe = Command::new("setpriv");
        probe.args(["--pdeathsig", "KILL", "--", "true"]).stdout(Stdio::null()).stderr(Stdio::null());
        probe.status().is_ok_and(|status| status.success())
    });
    let mut command = if *LEASHED {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(spec.program);
        command
    } else {
        Command::new(spec.program)
    };
    if spec.inherit == Inherit::Nothing {
        command.env_clear();
    }
    let log = File::options().create(true).append(true).open(&spec.log).expect("open a log file");
    let errors = log.try_clone().expect("share a log file");
    command.args(&spec.args).envs(spec.env.iter().map(|(name, value)| (name, value)));
    command.stdin(Stdio::null()).stdout(log).stderr(errors);
    command
}

/// A command to run, and where to send the process that it became.
type Order = (Command, mpsc::Sender<io::Result<std::process::Child>>);

fn hand_to_warden(command: Command) -> io::Result<std::process::Child> {
    static WARDEN: LazyLock<Mutex<mpsc::Sender<Order>>> = LazyLock::new(|| {
        let (orders, inbox) = mpsc::channel::<Order>();
        let warden = move || {
            for (mut command, reply) in inbox {
                reply.send(command.spawn()).ok(); // whoever asked has panicked: the child is dropped
            }
        };
        thread::Builder::new().name("warden".to_owned()).spawn(warden).expect("start a thread");
        Mutex::new(orders)
    });
    let (reply, answer) = mpsc::channel();
    let orders = WARDEN.lock().expect("nobody panics with this lock").clone();
    orders.send((command, reply)).expect("the warden lives as long as the process");
    answer.recv().expect("the warden answers every order")
}
