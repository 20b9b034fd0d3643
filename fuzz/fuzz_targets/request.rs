//! What requests ask for: whatever stands in them is read without harm, a second reader agrees on what it says, and what
//! a policy lets through complies with it as that reader understands it.

#![no_main]

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use ldap3_proto::LdapCodec;
use ldap3_proto::proto::{LdapBindCred, LdapFilter, LdapMsg, LdapOp, LdapSearchRequest, LdapSearchScope};
use ldaps_proxy::access_log::AccessLog;
use ldaps_proxy::config;
use ldaps_proxy::ldap::dn::Dn;
use ldaps_proxy::ldap::{Authentication, OperationKind, Request, ResultCode, envelope, oid};
use ldaps_proxy::metrics::Metrics;
use ldaps_proxy::policy::{Policy, Standing};
use ldaps_proxy::throttle::{BindName, LoginThrottle};
use libfuzzer_sys::fuzz_target;
use tokio_util::bytes::BytesMut;
use tokio_util::codec::Decoder as _;

fuzz_target!(|octets: &[u8]| {
    let mut rest = octets;
    while let Ok(Some(envelope)) = envelope(rest, 1 << 20)
        && let Some(pdu) = rest.get(..envelope.length)
    {
        if let Some(request) = Request::new(pdu, envelope) {
            judge(&request);
        }
        rest = &rest[pdu.len()..];
    }
});

fn judge(request: &Request<'_>) {
    survive(request);
    let second = LdapCodec::new(Some(1 << 20), None).decode(&mut BytesMut::from(request.pdu())).ok().flatten();
    if let Some(message) = &second {
        agree(request, message);
    }
    for standing in [Standing { anonymous: true, encrypted: true }, Standing { anonymous: false, encrypted: true }] {
        let open = POLICIES.open.judge(request, standing);
        for (policy, complies) in &POLICIES.strict {
            if policy.judge(request, standing).is_ok() {
                assert!(open.is_ok(), "a stricter policy lets through what an open one refuses");
                if let Some(message) = &second {
                    assert!(complies(&message.op), "{:?}", message.op);
                }
            }
        }
    }
}

/// Everything that reads requests.
fn survive(request: &Request<'_>) {
    let length = request.pdu().len();
    assert!(request.controls().count() <= length);
    if let Some(search) = request.search() {
        assert!(search.attributes().count() <= length);
    }
    for log in LOGS.iter() {
        // What goes into the log is bounded, whatever is asked.
        let described = log.describe(request).expect("the log is on");
        assert!(described.octets() <= 64 * length + 4096);
    }
    if let Some(bind) = request.bind() {
        let name = BindName::of(&bind);
        let throttle = Arc::new(LoginThrottle::new(&config::LoginThrottle {
            failures_per_name: Some(2),
            failures_per_address: Some(3),
            window: Duration::from_secs(60),
        }));
        let now = Instant::now();
        for failure in 0..4 {
            match throttle.attempt(&name, IpAddr::V4(Ipv4Addr::LOCALHOST), now) {
                Ok(attempt) => attempt.settle(ResultCode::INVALID_CREDENTIALS, now),
                Err(throttled) => {
                    assert!(failure >= 2, "the first two may try");
                    assert!(throttled.retry_after.is_some(), "nothing is under way");
                    break;
                }
            }
        }
        assert!(name.named().is_none() || name.named().is_some_and(|name| name.as_str().len() <= 3 * length));
    }
}

/// Where both readers understand a request, they understand the same. The second one takes 0x80 for an empty length; what
/// ours can't read, policies refuse.
fn agree(request: &Request<'_>, message: &LdapMsg) {
    assert_eq!(u32::try_from(message.msgid), Ok(request.message_id()));
    let kind = request.kind();
    match &message.op {
        LdapOp::BindRequest(second) => {
            let Some(bind) = request.bind() else { return };
            assert_eq!(bind.name, second.dn.as_bytes());
            match (&second.cred, bind.authentication) {
                (LdapBindCred::Simple(password), Authentication::Simple(ours)) => assert_eq!(password.as_bytes(), ours),
                (LdapBindCred::SASL(sasl), Authentication::Sasl { mechanism, credentials }) => {
                    assert_eq!(sasl.mechanism.as_bytes(), mechanism);
                    assert_eq!(sasl.credentials, credentials.unwrap_or_default());
                }
                (LdapBindCred::Unsupported, Authentication::Other(_)) => {}
                (second, _) => panic!("{second:?} is another authentication here"),
            }
        }
        LdapOp::UnbindRequest => assert_eq!(kind, OperationKind::Unbind),
        LdapOp::SearchRequest(second) => {
            assert_eq!(kind, OperationKind::Search);
            let Some(search) = request.search() else { return };
            assert_eq!(search.base, second.base.as_bytes());
            assert_eq!(i64::from(search.scope), second.scope.clone() as i64);
            assert_eq!(i64::from(search.size_limit), i64::from(second.sizelimit));
            assert_eq!(i64::from(search.time_limit), i64::from(second.timelimit));
            let depth = depth(&second.filter);
            assert_ne!(request.filter_is_deeper_than(depth), Some(true), "a filter of depth {depth}");
            assert!(depth == 0 || request.filter_is_deeper_than(depth - 1) != Some(false), "a filter of depth {depth}");
        }
        LdapOp::ModifyRequest(second) => entry(request, OperationKind::Modify, &second.dn),
        LdapOp::AddRequest(second) => entry(request, OperationKind::Add, &second.dn),
        LdapOp::DelRequest(dn) => entry(request, OperationKind::Delete, dn),
        LdapOp::ModifyDNRequest(second) => entry(request, OperationKind::ModifyDn, &second.dn),
        LdapOp::CompareRequest(second) => entry(request, OperationKind::Compare, &second.dn),
        LdapOp::AbandonRequest(id) => {
            assert_eq!(kind, OperationKind::Abandon);
            assert!(request.abandoned_id().is_none_or(|ours| i64::from(ours) == i64::from(*id)));
        }
        LdapOp::ExtendedRequest(second) => {
            assert!(request.extended_name().is_none_or(|name| name == second.name.as_bytes()));
        }
        response => panic!("{response:?} is no request"),
    }
}

fn entry(request: &Request<'_>, kind: OperationKind, dn: &str) {
    assert_eq!(request.kind(), kind);
    assert!(request.entry().is_none_or(|entry| entry == dn.as_bytes()));
}

fn depth(filter: &LdapFilter) -> usize {
    match filter {
        LdapFilter::And(inner) | LdapFilter::Or(inner) => 1 + inner.iter().map(depth).max().unwrap_or_default(),
        LdapFilter::Not(inner) => 1 + depth(inner),
        _ => 0,
    }
}

/// Whether an operation, as the second reader sees it, is one the policy means to let through.
type Complies = fn(&LdapOp) -> bool;

struct Policies {
    open: Policy,
    strict: Vec<(Policy, Complies)>,
}

static POLICIES: LazyLock<Policies> = LazyLock::new(|| {
    let open = config::Policy { allow_unauthenticated: true, ..config::Policy::default() };
    let policy = |settings: &config::Policy| Policy::new(settings).expect("good DNs");
    let texts = |texts: &[&str]| Some(texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>());
    let strict = |change: &dyn Fn(&mut config::Policy), complies: Complies| {
        let mut settings = open.clone();
        change(&mut settings);
        (policy(&settings), complies)
    };
    Policies {
        strict: vec![
            strict(&|policy| policy.read_only = true, is_read),
            strict(&|policy| policy.allow_unauthenticated = false, proves_its_name),
            strict(&|policy| policy.base_dns = texts(&["dc=corp,dc=example,dc=com"]), is_in_corp),
            strict(&|policy| policy.max_size_limit = Some(100), |op| {
                !matches!(op, LdapOp::SearchRequest(search)
                    if search.scope != LdapSearchScope::Base && !(1..=100).contains(&search.sizelimit))
            }),
            strict(&|policy| policy.bind_names = texts(&["cn=app*"]), |op| {
                !matches!(op, LdapOp::BindRequest(bind)
                    if matches!(&bind.cred, LdapBindCred::Simple(_))
                        && !to_samba(&bind.dn).is_empty()
                        && !bind.dn.to_lowercase().starts_with("cn=app"))
            }),
            strict(&|policy| policy.sasl_mechanisms = texts(&["GSS-SPNEGO"]), |op| {
                !matches!(op, LdapOp::BindRequest(bind)
                    if matches!(&bind.cred, LdapBindCred::SASL(sasl) if !sasl.mechanism.eq_ignore_ascii_case("GSS-SPNEGO")))
            }),
            strict(&|policy| policy.extended_operations = texts(&[oid::WHO_AM_I]), |op| {
                !matches!(op, LdapOp::ExtendedRequest(extended)
                    if extended.name != oid::WHO_AM_I && extended.name != oid::START_TLS)
            }),
            strict(&|policy| policy.operations = Some(vec![OperationKind::Bind, OperationKind::Search]), |op| {
                matches!(
                    op,
                    LdapOp::BindRequest(_)
                        | LdapOp::SearchRequest(_)
                        | LdapOp::UnbindRequest
                        | LdapOp::AbandonRequest(_)
                ) || matches!(op, LdapOp::ExtendedRequest(extended) if extended.name == oid::START_TLS)
            }),
        ],
        open: policy(&open),
    }
});

fn is_read(op: &LdapOp) -> bool {
    /// RFC 3909; MS-ADTS LDAP_SERVER_FAST_BIND_OID
    const HARMLESS: [&str; 4] = [oid::WHO_AM_I, oid::START_TLS, "1.3.6.1.1.8", "1.2.840.113556.1.4.1781"];
    match op {
        LdapOp::ModifyRequest(_) | LdapOp::AddRequest(_) | LdapOp::DelRequest(_) | LdapOp::ModifyDNRequest(_) => false,
        LdapOp::ExtendedRequest(extended) => HARMLESS.contains(&extended.name.as_str()),
        _ => true,
    }
}

fn proves_its_name(op: &LdapOp) -> bool {
    !matches!(op, LdapOp::BindRequest(bind)
        if !to_samba(&bind.dn).is_empty()
            && matches!(&bind.cred, LdapBindCred::Simple(password) if to_samba(password).is_empty()))
}

/// Samba reads names and passwords up to the first NUL, and other servers take none with a NUL for good.
fn to_samba(text: &str) -> &str {
    text.split('\0').next().unwrap_or_default()
}

fn is_in_corp(op: &LdapOp) -> bool {
    let dn = match op {
        LdapOp::SearchRequest(search) => &search.base,
        LdapOp::ModifyRequest(modify) => &modify.dn,
        LdapOp::AddRequest(add) => &add.dn,
        LdapOp::DelRequest(dn) => dn,
        LdapOp::ModifyDNRequest(modify) => &modify.dn,
        LdapOp::CompareRequest(compare) => &compare.dn,
        _ => return true,
    };
    let corp = Dn::parse("dc=corp,dc=example,dc=com").expect("a DN");
    let is_within = |dn: &str| Dn::parse(dn).is_some_and(|dn| dn.is_within(&corp));
    let root_dse = |search: &LdapSearchRequest| search.base.is_empty() && search.scope == LdapSearchScope::Base;
    match op {
        LdapOp::SearchRequest(search) if root_dse(search) => true,
        LdapOp::ModifyDNRequest(modify) => is_within(dn) && modify.new_superior.as_deref().is_none_or(is_within),
        _ => is_within(dn),
    }
}

/// With filters' values and without.
static LOGS: LazyLock<[AccessLog; 2]> = LazyLock::new(|| {
    [true, false].map(|redact_filters| {
        let output = config::AccessLogOutput::File("/dev/null".into());
        let settings = config::AccessLog { output, redact_filters, ..config::AccessLog::default() };
        AccessLog::start(&settings, Metrics::new()).expect("/dev/null opens")
    })
});
