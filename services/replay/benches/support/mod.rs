//! What the benchmark is made of: the records, the server, the candidates, the report.
pub(crate) mod measure;
pub(crate) mod ours;
pub(crate) mod plain;
pub(crate) mod predecessor;
pub(crate) mod report;
pub(crate) mod server;
pub(crate) mod workload;
