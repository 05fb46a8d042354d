//! Time and processor time of one act.
use super::{report::Sample, server::Server};
use anyhow::{Context, Result};
use std::{fs, future::Future, time::Instant};

/// Measures an act that is to handle `expected` records and says how many it did.
pub(crate) async fn measure<F>(server: &Server, expected: usize, act: F) -> Result<Sample>
where
    F: Future<Output = Result<usize>>,
{
    let (server_before, client_before) = (server.cpu_seconds().await?, client_cpu_seconds()?);
    let began = Instant::now();
    let done = act.await?;
    let seconds = began.elapsed().as_secs_f64();
    let client = client_cpu_seconds()? - client_before;
    let server = server.cpu_seconds().await? - server_before;
    let micros = |seconds: f64| Some(seconds * 1e6 / expected as f64);
    Ok(Sample {
        value: seconds,
        server_us: micros(server),
        client_us: micros(client),
        valid: done == expected,
    })
}

/// Processor time of this thread, which is the only one that works.
fn client_cpu_seconds() -> Result<f64> {
    let Ok(text) = fs::read_to_string("/proc/self/schedstat") else { return Ok(0.0) };
    let nanos: f64 = text.split_whitespace().next().context("schedstat has three numbers")?.parse()?;
    Ok(nanos / 1e9)
}
