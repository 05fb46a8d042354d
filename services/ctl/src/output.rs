//! What people read: the one place that writes to standard output.
use std::{fmt, io::Write};
use tokio_util::sync::CancellationToken;

/// Writes a line. A reader that is gone, such as `head`, ends the process quietly.
pub fn say(line: fmt::Arguments<'_>) {
    let mut out = std::io::stdout().lock();
    if writeln!(out, "{line}").and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}

/// Writes lines at once.
pub fn say_all(text: &str) {
    let mut out = std::io::stdout().lock();
    if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}

/// Writes a line to standard error, for what is no part of the answer.
pub fn warn(line: fmt::Arguments<'_>) {
    // Nobody is left to be told when it fails.
    writeln!(std::io::stderr().lock(), "{line}").ok();
}

/// What others wrote, without the control characters that a terminal would obey.
pub fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Cancelled by the first Ctrl-C; the second ends the process.
pub fn interrupted() -> CancellationToken {
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    dashstream_kit::tasks::Tasks::new().spawn("ctrl-c", async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            stopped.cancel();
        }
        if tokio::signal::ctrl_c().await.is_ok() {
            std::process::exit(130);
        }
    });
    stop
}
