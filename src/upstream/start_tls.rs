//! StartTLS towards a backend (RFC 4511 §4.14), up to the point where the handshake begins.

use std::io;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio_util::bytes::BytesMut;

use super::read_pdu;
use crate::ldap::{Response, ResponseKind, ResultCode};

/// An ExtendedRequest with messageID 1 and the name 1.3.6.1.4.1.1466.20037.
const REQUEST: &[u8] = b"\x30\x1D\x02\x01\x01\x77\x18\x80\x161.3.6.1.4.1.1466.20037";
const REQUEST_ID: u32 = 1;
/// Octets. The response is some dozen and a diagnostic.
const MOST_RESPONSE: usize = 64 * 1024;

/// Asks for TLS; on return the next octet either way belongs to the handshake.
///
/// # Errors
/// The connection broke, or the backend refused: the text has its result code and diagnostic.
pub(super) async fn request(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> io::Result<()> {
    stream.write_all(REQUEST).await?;
    let mut received = BytesMut::with_capacity(128);
    let (envelope, pdu) = read_pdu(stream, &mut received, MOST_RESPONSE).await?;
    let response = Response::new(&pdu, envelope).filter(|response| response.kind() == ResponseKind::Extended);
    match response.and_then(|response| response.result()) {
        Some(result) if result.code != ResultCode::SUCCESS => Err(io::Error::other(format!(
            "the backend refused StartTLS: {}, {:?}",
            result.code,
            String::from_utf8_lossy(result.diagnostic)
        ))),
        // §4.14.1: nothing may come between the response and the handshake, in which the client speaks first. Octets
        // injected in the clear must not pass for octets that TLS protects.
        Some(_) if envelope.message_id == REQUEST_ID && received.is_empty() => Ok(()),
        _ => Err(io::Error::other("the backend answered StartTLS with something else")),
    }
}

#[cfg(test)]
mod tests {
    use ldap3_proto::LdapCodec;
    use ldap3_proto::proto::LdapOp;
    use tokio::io::AsyncReadExt;
    use tokio_util::codec::Decoder;

    use super::*;
    use crate::ldap::{oid, reply};

    #[test]
    fn the_request_is_what_it_says() {
        let message = LdapCodec::default().decode(&mut BytesMut::from(REQUEST)).unwrap().unwrap();
        assert_eq!(message.msgid, 1);
        let LdapOp::ExtendedRequest(request) = message.op else { panic!("{:?}", message.op) };
        assert_eq!((request.name.as_str(), request.value), (oid::START_TLS, None));
    }

    /// RFC 4511 §4.14.1–2.
    #[tokio::test]
    async fn only_a_clean_success_goes_on() {
        let success = reply::start_tls(1, ResultCode::SUCCESS, "");
        let refused = reply::start_tls(1, ResultCode::PROTOCOL_ERROR, "no certificate");
        for (answer, expected) in [
            (success.clone(), None),
            (refused, Some("refused StartTLS: protocolError (2), \"no certificate\"")),
            (reply::start_tls(2, ResultCode::SUCCESS, ""), Some("something else")),
            ([&success[..], b"\x30\x0c"].concat(), Some("something else")),
            (reply::result(crate::ldap::OperationKind::Bind, 1, ResultCode::SUCCESS, ""), Some("something else")),
            (b"HTTP/1.1 400".to_vec(), Some("begins with 0x30")),
            (Vec::new(), Some("closed the connection")),
        ] {
            let (mut near, mut far) = tokio::io::duplex(1024);
            far.write_all(&answer).await.unwrap();
            let mut asked = vec![0; REQUEST.len()];
            let (outcome, ()) = tokio::join!(request(&mut near), async {
                far.read_exact(&mut asked).await.unwrap();
                drop(far);
            });
            assert_eq!(asked, REQUEST);
            match expected {
                None => outcome.unwrap(),
                Some(words) => {
                    let error = outcome.unwrap_err().to_string();
                    assert!(error.contains(words), "{error}");
                }
            }
        }
    }
}
