//! What responses say: read without harm, as a second reader reads it, and referrals treated without breaking anything.

#![no_main]

use std::sync::LazyLock;

use ldap3_proto::LdapCodec;
use ldap3_proto::proto::{LdapOp, LdapResult};
use ldaps_proxy::failure::{ClosedList as _, SubCode};
use ldaps_proxy::ldap::{OperationKind, Response, ResponseKind, envelope};
use ldaps_proxy::referral::{Mode, Outcome, Referrals};
use libfuzzer_sys::fuzz_target;
use tokio_util::bytes::BytesMut;
use tokio_util::codec::Decoder as _;

fuzz_target!(|octets: &[u8]| {
    let mut rest = octets;
    while let Ok(Some(envelope)) = envelope(rest, 1 << 20)
        && let Some(pdu) = rest.get(..envelope.length)
    {
        if let Some(response) = Response::new(pdu, envelope) {
            peek(&response);
        }
        rest = &rest[pdu.len()..];
    }
});

fn peek(response: &Response<'_>) {
    let length = response.pdu().len();
    assert!(response.controls().count() <= length);
    assert!(response.paging_cookie().is_none_or(|cookie| !cookie.is_empty()));
    if let Some(result) = response.result() {
        assert!(response.kind().is_final());
        let sub_code = SubCode::of(result.diagnostic);
        assert!(!sub_code.as_str().is_empty() && !sub_code.meaning().is_empty());
    }
    if response.is_notice_of_disconnection() {
        assert_eq!((response.message_id(), response.kind()), (0, ResponseKind::Extended));
    }
    agree(response);
    for referrals in REFERRALS.iter() {
        treat(response, referrals);
    }
}

/// Where a second reader understands a result, ours is the same.
fn agree(response: &Response<'_>) {
    let second = LdapCodec::new(Some(1 << 20), None).decode(&mut BytesMut::from(response.pdu()));
    let Ok(Some(message)) = second else { return };
    assert_eq!(u32::try_from(message.msgid), Ok(response.message_id()));
    let (kind, result) = match &message.op {
        LdapOp::BindResponse(bind) => (ResponseKind::Final(OperationKind::Bind), &bind.res),
        LdapOp::SearchResultDone(result) => (ResponseKind::Final(OperationKind::Search), result),
        LdapOp::ModifyResponse(result) => (ResponseKind::Final(OperationKind::Modify), result),
        LdapOp::AddResponse(result) => (ResponseKind::Final(OperationKind::Add), result),
        LdapOp::DelResponse(result) => (ResponseKind::Final(OperationKind::Delete), result),
        LdapOp::ModifyDNResponse(result) => (ResponseKind::Final(OperationKind::ModifyDn), result),
        LdapOp::CompareResult(result) => (ResponseKind::Final(OperationKind::Compare), result),
        LdapOp::ExtendedResponse(extended) => (ResponseKind::Extended, &extended.res),
        LdapOp::SearchResultEntry(_) => return assert_eq!(response.kind(), ResponseKind::Entry),
        LdapOp::SearchResultReference(_) => return assert_eq!(response.kind(), ResponseKind::Reference),
        LdapOp::IntermediateResponse(_) => return assert_eq!(response.kind(), ResponseKind::Intermediate),
        request => panic!("{request:?} is no response"),
    };
    assert_eq!(response.kind(), kind);
    same(response, result);
}

fn same(response: &Response<'_>, second: &LdapResult) {
    let Some(ours) = response.result() else { return };
    assert_eq!(i64::from(ours.code.0), second.code.clone() as i64);
    assert_eq!(ours.matched_dn, second.matcheddn.as_bytes());
    assert_eq!(ours.diagnostic, second.message.as_bytes());
    if !second.referral.is_empty() {
        assert!(response.has_references());
    }
}

/// What is treated stays one whole response to the same request, and needs no treatment any more.
fn treat(response: &Response<'_>, referrals: &Referrals) {
    let before = response.envelope();
    match referrals.apply(response.pdu(), before) {
        Outcome::Unchanged => {}
        Outcome::Dropped => assert_eq!(response.kind(), ResponseKind::Reference),
        Outcome::Replaced(pdu) => {
            assert!(response.has_references(), "nothing else is to be looked at");
            let after = envelope(&pdu, usize::MAX).expect("well-formed").expect("whole");
            assert_eq!((after.length, after.message_id, after.tag), (pdu.len(), before.message_id, before.tag));
            assert_eq!(pdu[after.content_end..], response.pdu()[before.content_end..], "the controls");
            let treated = Response::new(&pdu, after).expect("the tag is a response's");
            assert_eq!(treated.result().is_some(), response.result().is_some());
            assert_eq!(referrals.apply(&pdu, &after), Outcome::Unchanged);
        }
    }
}

static REFERRALS: LazyLock<[Referrals; 2]> = LazyLock::new(|| {
    let hosts = || ["dc1.corp.example.com", "10.0.1.10", "fd00::10"].map(str::to_owned);
    let domains = || ["corp.example.com".to_owned()];
    let rewrite = Mode::Rewrite { public_name: "ldap.example.com".into() };
    [Referrals::new(rewrite, hosts(), domains()), Referrals::new(Mode::Drop, hosts(), domains())]
});
