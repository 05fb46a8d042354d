//! `dashstream`: run, watch and feed a DashStream.
use clap::Parser;
use dashstream_ctl::cli::{self, Cli};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    cli::run(Cli::parse()).await
}
