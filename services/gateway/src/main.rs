//! The `dashstream-gateway` process.
use clap::Parser;
use dashstream_kit::Kit;
use tokio::net::TcpListener;

/// Serves clients: live records and the past over websockets, queries over gRPC.
#[derive(Debug, Parser)]
#[command(name = "dashstream-gateway", version)]
struct Cli {
    #[command(flatten)]
    gateway: dashstream_gateway::Config,
    #[command(flatten)]
    kit: dashstream_kit::config::Config,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let Cli { gateway: config, kit: kit_config } = Cli::parse();
    let kit = Kit::start("gateway", &kit_config).await?;
    let http = TcpListener::bind(config.listen).await?;
    let grpc = TcpListener::bind(config.grpc_listen).await?;
    dashstream_gateway::run(config, http, grpc, kit.clone()).await?;
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
