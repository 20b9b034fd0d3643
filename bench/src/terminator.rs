//! A TLS terminator of the libraries the proxy is made of, which knows no LDAP: it copies octets both ways and does
//! nothing else, in the plainest way: rustls's buffered API, two buffers a session. What the proxy costs beyond it is the
//! price of what the proxy does.

use std::{io, net::SocketAddr, sync::Arc};

use clap::Args;
use rustls::crypto::aws_lc_rs;
use tokio::{
    io::copy_bidirectional_with_sizes,
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsAcceptor;

use crate::{
    client::require_loopback,
    floor::{Identity, server_config},
};

/// Octets of a session's buffer each way: as many as the proxy reads at a time.
const BUFFER: usize = 32 * 1024;

#[derive(Args)]
pub struct Terminator {
    /// Loopback address to listen on.
    #[arg(long)]
    listen: SocketAddr,
    /// Backends, taken in turn.
    #[arg(long, required = true)]
    backend: Vec<SocketAddr>,
    #[command(flatten)]
    identity: Identity,
    /// Send a session ticket in TLS 1.3 too.
    #[arg(long)]
    tickets: bool,
}

impl Terminator {
    /// Serves until it is ended.
    pub async fn run(self) -> io::Result<()> {
        require_loopback(self.listen)?;
        let listener = TcpListener::bind(self.listen).await?;
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut config = server_config(provider, rustls::DEFAULT_VERSIONS, &self.identity)?;
        config.ticketer = aws_lc_rs::Ticketer::new().map_err(io::Error::other)?;
        config.send_tls13_tickets = usize::from(self.tickets);
        let acceptor = TlsAcceptor::from(Arc::new(config));
        for &backend in self.backend.iter().cycle() {
            let (client, _) = listener.accept().await?;
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                // A client that leaves without a word is nothing to tell of.
                let _ = serve(&acceptor, client, backend).await;
            });
        }
        Ok(())
    }
}

async fn serve(acceptor: &TlsAcceptor, client: TcpStream, backend: SocketAddr) -> io::Result<()> {
    client.set_nodelay(true)?;
    let mut client = acceptor.accept(client).await?;
    let mut upstream = TcpStream::connect(backend).await?;
    upstream.set_nodelay(true)?;
    copy_bidirectional_with_sizes(&mut client, &mut upstream, BUFFER, BUFFER).await?;
    Ok(())
}
