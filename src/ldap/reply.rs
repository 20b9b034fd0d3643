//! The PDUs the proxy itself sends to clients.

use ldap3_proto::LdapCodec;
use ldap3_proto::proto::{LdapBindResponse, LdapExtendedResponse, LdapMsg, LdapOp, LdapResult, LdapResultCode};
use tokio_util::bytes::BytesMut;
use tokio_util::codec::Encoder;

use super::frame::MessageId;
use super::oid;
use super::operation::OperationKind;
use super::result_code::ResultCode;

/// The final response to a request of this kind. Unbind and Abandon have none (§4.3, §4.11).
pub fn result(kind: OperationKind, id: MessageId, code: ResultCode, diagnostic: &str) -> Vec<u8> {
    let res = ldap_result(code, diagnostic);
    encode(
        id,
        match kind {
            OperationKind::Bind => LdapOp::BindResponse(LdapBindResponse { res, saslcreds: None }),
            OperationKind::Search => LdapOp::SearchResultDone(res),
            OperationKind::Modify => LdapOp::ModifyResponse(res),
            OperationKind::Add => LdapOp::AddResponse(res),
            OperationKind::Delete => LdapOp::DelResponse(res),
            OperationKind::ModifyDn => LdapOp::ModifyDNResponse(res),
            OperationKind::Compare => LdapOp::CompareResult(res),
            OperationKind::Extended => LdapOp::ExtendedResponse(LdapExtendedResponse { res, name: None, value: None }),
            OperationKind::Unbind | OperationKind::Abandon => return Vec::new(),
        },
    )
}

/// A StartTLS response (§4.14.2), which repeats the operation's name.
pub fn start_tls(id: MessageId, code: ResultCode, diagnostic: &str) -> Vec<u8> {
    extended(id, code, diagnostic, oid::START_TLS)
}

/// A Notice of Disconnection (§4.4.1). The sender closes after it.
pub fn notice_of_disconnection(code: ResultCode, diagnostic: &str) -> Vec<u8> {
    extended(0, code, diagnostic, oid::NOTICE_OF_DISCONNECTION)
}

fn extended(id: MessageId, code: ResultCode, diagnostic: &str, name: &str) -> Vec<u8> {
    let res = ldap_result(code, diagnostic);
    encode(id, LdapOp::ExtendedResponse(LdapExtendedResponse { res, name: Some(name.to_owned()), value: None }))
}

fn ldap_result(code: ResultCode, diagnostic: &str) -> LdapResult {
    let code = match code {
        ResultCode::SUCCESS => LdapResultCode::Success,
        ResultCode::OPERATIONS_ERROR => LdapResultCode::OperationsError,
        ResultCode::PROTOCOL_ERROR => LdapResultCode::ProtocolError,
        ResultCode::TIME_LIMIT_EXCEEDED => LdapResultCode::TimeLimitExceeded,
        ResultCode::CONFIDENTIALITY_REQUIRED => LdapResultCode::ConfidentialityRequired,
        ResultCode::INSUFFICIENT_ACCESS_RIGHTS => LdapResultCode::InsufficentAccessRights,
        ResultCode::BUSY => LdapResultCode::Busy,
        ResultCode::UNAVAILABLE => LdapResultCode::Unavailable,
        ResultCode::UNWILLING_TO_PERFORM => LdapResultCode::UnwillingToPerform,
        _ => LdapResultCode::Other,
    };
    LdapResult { code, matcheddn: String::new(), message: diagnostic.to_owned(), referral: Vec::new() }
}

/// The PDU of a message without controls.
pub(crate) fn encode(id: MessageId, op: LdapOp) -> Vec<u8> {
    let msgid =
        i32::try_from(id).expect("the framer lets only messageIDs below 2^31 pass, and probes count no further");
    let mut out = BytesMut::new();
    LdapCodec::default()
        .encode(LdapMsg { msgid, op, ctrl: Vec::new() }, &mut out)
        .expect("encoding into memory cannot fail");
    out.to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ldap::{Response, ResponseKind, envelope};

    fn read(pdu: &[u8]) -> Response<'_> {
        let envelope = envelope(pdu, usize::MAX).expect("well-formed").expect("whole");
        Response::new(pdu, envelope).expect("a response")
    }

    #[test]
    fn every_kind_gets_its_own_final_response() {
        for kind in OperationKind::ALL {
            let pdu = result(kind, 0x7FFF_FFFF, ResultCode::UNAVAILABLE, "try later");
            if matches!(kind, OperationKind::Unbind | OperationKind::Abandon) {
                assert!(pdu.is_empty());
                continue;
            }
            let response = read(&pdu);
            let expected = match kind {
                OperationKind::Extended => ResponseKind::Extended,
                kind => ResponseKind::Final(kind),
            };
            assert_eq!((response.kind(), response.message_id()), (expected, 0x7FFF_FFFF));
            let result = response.result().expect("a result");
            assert_eq!((result.code, result.diagnostic), (ResultCode::UNAVAILABLE, &b"try later"[..]));
        }
    }

    #[test]
    fn notices() {
        for code in [ResultCode::PROTOCOL_ERROR, ResultCode::BUSY, ResultCode::UNAVAILABLE] {
            let pdu = notice_of_disconnection(code, "why");
            let notice = read(&pdu);
            assert!(notice.is_notice_of_disconnection());
            assert_eq!(notice.result().map(|result| result.code), Some(code));
        }
    }

    #[test]
    fn every_code_the_proxy_gives_is_encoded_as_itself() {
        for code in [0, 1, 2, 3, 13, 50, 51, 52, 53].map(ResultCode) {
            let pdu = result(OperationKind::Search, 1, code, "");
            assert_eq!(read(&pdu).result().map(|result| result.code), Some(code));
        }
    }
}
