//! The `dashstream-ingest` process.
use clap::Parser;
use dashstream_kit::Kit;
use tokio::net::TcpListener;

/// Reads Kafka, appends every record to replay, and feeds what is durable live to the gateways.
#[derive(Debug, Parser)]
#[command(name = "dashstream-ingest", version)]
struct Cli {
    #[command(flatten)]
    ingest: dashstream_ingest::Config,
    #[command(flatten)]
    kit: dashstream_kit::config::Config,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let Cli { ingest: config, kit: kit_config } = Cli::parse();
    let kit = Kit::start("ingest", &kit_config).await?;
    let listener = TcpListener::bind(config.listen).await?;
    dashstream_ingest::run(config, listener, kit.clone()).await?;
    kit.drain(kit_config.drain_timeout).await
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        super::Cli::command().debug_assert();
    }
}
