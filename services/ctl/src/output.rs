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
