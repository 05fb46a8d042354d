//! Compiles the `.proto` files without `protoc`, and keeps their descriptors for gRPC reflection.
use std::{env, error::Error, fs, path::PathBuf};

const FILES: [&str; 6] = [
    "dashstream/v1/telemetry.proto",
    "dashstream/log/v1/log.proto",
    "dashstream/ingest/v1/ingest.proto",
    "dashstream/replay/v1/replay.proto",
    "dashstream/gateway/v1/gateway.proto",
    "dashstream/session/v1/session.proto",
];

#[allow(clippy::disallowed_methods, reason = "cargo tells a build script where to write by environment only")]
fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let grpc = env::var_os("CARGO_FEATURE_GRPC").is_some();
    println!("cargo:rerun-if-changed={}", root.join("dashstream").display());

    let descriptors = protox::compile(FILES, [&root])?;
    fs::write(out.join("descriptors.bin"), prost_encode(&descriptors))?;
    tonic_prost_build::configure()
        .build_client(grpc)
        .build_server(grpc)
        .bytes(".dashstream.log.v1")
        .btree_map(".dashstream.v1")
        .compile_fds(descriptors)?;
    Ok(())
}

fn prost_encode(descriptors: &protox::prost_reflect::prost_types::FileDescriptorSet) -> Vec<u8> {
    use protox::prost_reflect::prost::Message;
    descriptors.encode_to_vec()
}
