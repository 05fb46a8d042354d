//! The commands, and which of them runs.
use crate::{dlq, local, output::interrupted, partitions, produce, status, tail, topics, verify};
use clap::{Parser, Subcommand};

/// Run, watch and feed a DashStream.
#[derive(Debug, Parser)]
#[command(name = "dashstream", version)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run everything in this process, on embedded parts, with demo agents.
    Local {
        #[command(flatten)]
        kit: dashstream_kit::config::Config,
        #[command(flatten)]
        local: Box<local::Config>,
    },
    /// Write runs of demo agents to Kafka.
    Produce(produce::Config),
    /// Follow the stream, and prove that nothing is missing.
    Tail(tail::Config),
    /// Show how far every partition is.
    Status(status::Config),
    /// Compare what replay has with what Kafka has, record by record.
    Verify(verify::Config),
    /// Make Kafka's topics as DashStream needs them, or look whether they are.
    #[command(subcommand)]
    Topics(topics::Command),
    /// Stop a partition on purpose, and let it go on.
    #[command(subcommand)]
    Partitions(partitions::Command),
    /// Bad records: what became of them, and what to do.
    #[command(subcommand)]
    Dlq(dlq::Command),
}

/// Runs the command.
///
/// # Errors
/// What the command's own `run` says.
pub async fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Local { local, kit } => local::command(*local, kit).await,
        Command::Produce(config) => produce::command(config, interrupted()).await,
        Command::Tail(config) => tail::run(config, interrupted()).await.map(drop),
        Command::Status(config) => status::run(config, interrupted()).await,
        Command::Verify(config) => verify::run(config).await,
        Command::Topics(command) => topics::run(command).await,
        Command::Partitions(command) => partitions::run(command).await,
        Command::Dlq(command) => dlq::run(command, interrupted()).await,
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_line_is_sound() {
        <super::Cli as clap::CommandFactory>::command().debug_assert();
    }
}
