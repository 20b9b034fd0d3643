//! Reading whole PDUs where the proxy itself is the client: StartTLS, probes.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio_util::bytes::{Bytes, BytesMut};

use crate::ldap;

/// Reads one whole PDU of at most `limit` octets. Octets after it stay in `buffer`. Put a timeout around it: it has none.
///
/// # Errors
/// The connection broke, ended (`UnexpectedEof`), or carries something that isn't LDAP.
pub async fn read_pdu(
    stream: &mut (impl AsyncRead + Unpin),
    buffer: &mut BytesMut,
    limit: usize,
) -> io::Result<(ldap::Envelope, Bytes)> {
    loop {
        let envelope = ldap::envelope(buffer, limit).map_err(io::Error::other)?;
        if let Some(envelope) = envelope.filter(|envelope| buffer.len() >= envelope.length) {
            return Ok((envelope, buffer.split_to(envelope.length).freeze()));
        }
        if stream.read_buf(buffer).await? == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the backend closed the connection"));
        }
    }
}
