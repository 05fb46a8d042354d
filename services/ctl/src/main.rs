//! `dashstream`: run, watch and feed a DashStream.
use clap::{Parser, Subcommand};
use dashstream_ctl::{demo, local, produce, status, tail, topics};
use dashstream_kit::Kit;

/// Run, watch and feed a DashStream.
#[derive(Debug, Parser)]
#[command(name = "dashstream", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run everything in this process, on embedded parts, with demo agents.
    Local {
        #[command(flatten)]
        kit: dashstream_kit::config::Config,
        #[command(flatten)]
        local: Box<local::Config>,
    },
    /// Let demo agents run, and write what they tell of it to Kafka.
    Demo(demo::Config),
    /// Write records of every kind to Kafka, as fast as it takes them: load rather than something to look at.
    Produce(produce::Config),
    /// Follow the stream, and prove that nothing is missing.
    Tail(tail::Config),
    /// Show how far every partition is.
    Status(status::Config),
    /// Make Kafka's topics as DashStream needs them, or look whether they are.
    #[command(subcommand)]
    Topics(topics::Command),
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Local { kit: kit_config, local } => {
            let kit = Kit::start("local", &kit_config).await?;
            local::run(*local, kit.clone()).await?;
            kit.drain(kit_config.drain_timeout).await
        }
        Command::Demo(config) => demo::command(config, dashstream_ctl::output::interrupted()).await,
        Command::Produce(config) => produce::command(config, dashstream_ctl::output::interrupted()).await,
        Command::Tail(config) => tail::run(config, dashstream_ctl::output::interrupted()).await.map(drop),
        Command::Topics(command) => topics::run(command).await,
        Command::Status(config) => status::run(config, dashstream_ctl::output::interrupted()).await,
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_line_is_sound() {
        <super::Cli as clap::CommandFactory>::command().debug_assert();
    }
}
