//! The exporter's HTTP client: hyper on the proxy's own runtime, TLS by the same rustls as everything else.

use std::pin::Pin;
use std::time::Duration;

use hyper_rustls::{ConfigBuilderExt as _, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use opentelemetry_http::hyper::HyperClient;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use tokio::runtime::Handle;

/// What the specification gives an export.
const TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Client {
    client: HyperClient<HttpsConnector<HttpConnector>>,
    /// The exporter's thread has no runtime, and hyper needs one.
    runtime: Handle,
}

impl Client {
    /// A client for this endpoint. To be called within a tokio runtime.
    pub(super) fn new(endpoint: &str) -> Result<Self, String> {
        let tls = rustls::ClientConfig::builder();
        // A container without root certificates may still export in cleartext.
        let tls = if endpoint.starts_with("https:") {
            tls.with_native_roots().map_err(|error| format!("can't read the system's root certificates: {error}"))?
        } else {
            tls.with_root_certificates(rustls::RootCertStore::empty())
        };
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls.with_no_client_auth())
            .https_or_http()
            .enable_http1()
            .build();
        let milliseconds = ["OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT"]
            .into_iter()
            .find_map(|name| std::env::var(name).ok()?.parse().ok());
        let timeout = milliseconds.map_or(TIMEOUT, Duration::from_millis);
        Ok(Self { client: HyperClient::new(connector, timeout, None), runtime: Handle::current() })
    }
}

type Sending<'a> = Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'a>>;

impl HttpClient for Client {
    fn send_bytes<'this, 'sending>(&'this self, request: Request<Bytes>) -> Sending<'sending>
    where
        'this: 'sending,
        Self: 'sending,
    {
        let client = self.client.clone();
        let sending = self.runtime.spawn(async move { client.send_bytes(request).await });
        Box::pin(async move { sending.await? })
    }
}
