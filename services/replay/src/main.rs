//! The `dashstream-replay` process.
use clap::Parser;
use dashstream_kit::Kit;
use tokio::net::TcpListener;

/// Keeps each partition's log in Redis and reads the past back, over gRPC.
#[derive(Debug, Parser)]
#[command(name = "dashstream-replay", version)]
struct Cli {
    #[command(flatten)]
    replay: dashstream_replay::Config,
    #[command(flatten)]
    kit: dashstream_kit::config::Config,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let Cli { replay: config, kit: kit_config } = Cli::parse();
    let kit = Kit::start("replay", &kit_config).await?;
    let listener = TcpListener::bind(config.listen).await?;
    dashstream_replay::run(config, listener, kit.clone()).await?;
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
