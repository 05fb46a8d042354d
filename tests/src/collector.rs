//! A collector of traces, as OTLP knows it.
use dashstream_kit::Kit;
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    trace::v1::Span,
};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::net::TcpListener;
use tonic::{Request, Response, Status, transport::server::TcpIncoming};

/// Keeps every span that is sent to it.
#[derive(Debug)]
pub struct Collector {
    address: String,
    received: Received,
    kit: Kit,
}

#[derive(Clone, Debug, Default)]
struct Received(Arc<Mutex<Vec<Span>>>);

#[tonic::async_trait]
impl TraceService for Received {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let scopes =
            request.into_inner().resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
        let spans = scopes.flat_map(|scope| scope.spans);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(spans);
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// A collector at a free port. It ends with the value.
    ///
    /// # Panics
    /// If there is no port.
    pub async fn start() -> Self {
        let (kit, received) = (Kit::embedded("collector"), Received::default());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let server = tonic::transport::Server::builder()
            .add_service(TraceServiceServer::new(received.clone()))
            .serve_with_incoming_shutdown(
                TcpIncoming::from(listener),
                kit.tasks.stop_token().cancelled_owned(),
            );
        kit.tasks.spawn("collector", async move { server.await.expect("the collector serves") });
        Self { address, received, kit }
    }

    /// Where traces are sent.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// All spans so far.
    pub fn spans(&self) -> Vec<Span> {
        self.received.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.kit.tasks.stop();
    }
}
