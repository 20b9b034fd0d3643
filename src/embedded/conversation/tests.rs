use super::*;
use crate::embedded::{ADMINISTRATOR_PASSWORD, USER_PASSWORD};
use ldap3_proto::proto::{LdapDerefAliases, LdapExtendedRequest, LdapModifyRequest, SaslCredentials};
use ldap3_proto::{LdapFilter, parse_ldap_filter_str};
use std::sync::LazyLock;

const BASE: &str = "dc=corp,dc=example,dc=com";
const ADMINISTRATOR: &str = "administrator@corp.example.com";

fn conversation(connection: u64) -> Conversation {
    static CORP: LazyLock<Arc<Directory>> = LazyLock::new(|| Arc::new(Directory::corp()));
    Conversation::new(Arc::clone(&CORP), "dc1".into(), connection)
}

fn administrator(connection: u64) -> Conversation {
    let mut conversation = conversation(connection);
    assert_eq!(code(&mut conversation, simple_bind(ADMINISTRATOR, ADMINISTRATOR_PASSWORD)), LdapResultCode::Success);
    conversation
}

fn simple_bind(name: &str, password: &str) -> LdapOp {
    bind(name, LdapBindCred::Simple(password.to_owned()))
}

fn bind(name: &str, cred: LdapBindCred) -> LdapOp {
    LdapOp::BindRequest(LdapBindRequest { version: 3, dn: name.to_owned(), cred })
}

fn search(base: &str, scope: LdapSearchScope, filter: &str) -> LdapSearchRequest {
    LdapSearchRequest {
        base: base.to_owned(),
        scope,
        aliases: LdapDerefAliases::Never,
        sizelimit: 0,
        timelimit: 0,
        typesonly: false,
        filter: parse_ldap_filter_str(filter).expect("a filter"),
        attrs: vec!["cn".to_owned()],
    }
}

fn users() -> LdapSearchRequest {
    search(BASE, LdapSearchScope::Subtree, "(objectClass=user)")
}

fn compare(dn: &str, attribute: &str, value: &str) -> LdapOp {
    LdapOp::CompareRequest(LdapCompareRequest { dn: dn.to_owned(), atype: attribute.to_owned(), val: value.into() })
}

fn extended(name: &str) -> LdapOp {
    LdapOp::ExtendedRequest(LdapExtendedRequest { name: name.to_owned(), value: None })
}

fn unknown_control(criticality: bool) -> LdapControl {
    LdapControl::Unknown { oid: "1.2.3.4".to_owned(), criticality, value: None }
}

fn ask(conversation: &mut Conversation, op: LdapOp, ctrl: Vec<LdapControl>) -> Vec<LdapMsg> {
    let responses = conversation.answer(LdapMsg { msgid: 7, op, ctrl }, OffsetDateTime::UNIX_EPOCH).expect("no ending");
    assert!(responses.iter().all(|response| response.msgid == 7), "a response carries its request's ID");
    responses
}

fn result_of(op: &LdapOp) -> &LdapResult {
    match op {
        LdapOp::BindResponse(response) => &response.res,
        LdapOp::ExtendedResponse(response) => &response.res,
        LdapOp::SearchResultDone(result)
        | LdapOp::CompareResult(result)
        | LdapOp::ModifyResponse(result)
        | LdapOp::DelResponse(result) => result,
        other => panic!("{other:?} is no final response"),
    }
}

/// The result of one operation.
fn outcome(conversation: &mut Conversation, op: LdapOp, ctrl: Vec<LdapControl>) -> LdapResult {
    let responses = ask(conversation, op, ctrl);
    result_of(&responses.last().expect("a final response").op).clone()
}

fn code(conversation: &mut Conversation, op: LdapOp) -> LdapResultCode {
    outcome(conversation, op, vec![]).code
}

/// The number of entries, the number of references, and the result.
fn searched(
    conversation: &mut Conversation,
    request: LdapSearchRequest,
    ctrl: Vec<LdapControl>,
) -> (usize, usize, LdapResult) {
    let responses = ask(conversation, LdapOp::SearchRequest(request), ctrl);
    let count = |wanted: fn(&LdapOp) -> bool| responses.iter().filter(|response| wanted(&response.op)).count();
    (
        count(|op| matches!(op, LdapOp::SearchResultEntry(_))),
        count(|op| matches!(op, LdapOp::SearchResultReference(_))),
        result_of(&responses.last().expect("a Done").op).clone(),
    )
}

fn page(
    conversation: &mut Conversation,
    request: &LdapSearchRequest,
    size: i64,
    cookie: &[u8],
) -> Result<(usize, Vec<u8>), LdapResultCode> {
    let paging = LdapControl::SimplePagedResults { size, cookie: cookie.to_vec() };
    let responses = ask(conversation, LdapOp::SearchRequest(request.clone()), vec![paging]);
    let last = responses.last().expect("a Done");
    match (result_of(&last.op).code.clone(), last.ctrl.first()) {
        (LdapResultCode::Success, Some(LdapControl::SimplePagedResults { cookie, .. })) => {
            let entries = responses.iter().filter(|response| matches!(response.op, LdapOp::SearchResultEntry(_)));
            Ok((entries.count(), cookie.clone()))
        }
        (code, _) => Err(code),
    }
}

#[test]
fn binds_in_ads_words() {
    let mut conversation = conversation(1);
    let table = [
        (ADMINISTRATOR, "wrong", Some("52e")),
        (ADMINISTRATOR, "", Some("52e")),
        ("nobody@corp.example.com", "wrong", Some("52e")),
        (r"CORP\edsger.dijkstra", USER_PASSWORD, Some("533")),
        (r"CORP\vint.cerf", USER_PASSWORD, Some("773")),
        (r"CORP\ada.lovelace", USER_PASSWORD, None),
        ("", "", None),
    ];
    for (name, password, sub_code) in table {
        let result = outcome(&mut conversation, simple_bind(name, password), vec![]);
        match sub_code {
            None => assert_eq!(result.code, LdapResultCode::Success, "{name}"),
            Some(sub_code) => {
                let message = format!(
                    "80090308: LdapErr: DSID-0C0903A9, comment: AcceptSecurityContext error, data {sub_code}, v1db1"
                );
                assert_eq!((result.code, result.message), (LdapResultCode::InvalidCredentials, message), "{name}");
            }
        }
    }
}

#[test]
fn other_binds_are_refused() {
    let mut conversation = administrator(1);
    let sasl = SaslCredentials { mechanism: "GSSAPI".to_owned(), credentials: vec![] };
    assert_eq!(code(&mut conversation, bind("", LdapBindCred::SASL(sasl))), LdapResultCode::AuthMethodNotSupported);
    assert_eq!(code(&mut conversation, bind("", LdapBindCred::Unsupported)), LdapResultCode::AuthMethodNotSupported);
    let version_4 = LdapBindRequest { version: 4, dn: String::new(), cred: LdapBindCred::Simple(String::new()) };
    assert_eq!(code(&mut conversation, LdapOp::BindRequest(version_4)), LdapResultCode::ProtocolError);
}

#[test]
fn identity_follows_the_last_bind() {
    let mut conversation = administrator(1);
    let mut identity = |op: Option<LdapOp>| {
        if let Some(op) = op {
            ask(&mut conversation, op, vec![]);
        }
        match ask(&mut conversation, extended(oid::WHO_AM_I), vec![]).remove(0).op {
            LdapOp::ExtendedResponse(LdapExtendedResponse { value: Some(value), .. }) => {
                String::from_utf8(value).expect("text")
            }
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(identity(None), r"u:CORP\Administrator");
    assert_eq!(identity(Some(simple_bind(r"corp\ADA.lovelace", USER_PASSWORD))), r"u:CORP\ada.lovelace");
    assert_eq!(identity(Some(simple_bind(ADMINISTRATOR, "wrong"))), "", "a failed bind leaves it anonymous");
}

#[test]
fn the_anonymous_see_the_root_dse_only() {
    let mut conversation = conversation(1);
    let root = || search("", LdapSearchScope::Base, "(objectClass=*)");
    assert_eq!(searched(&mut conversation, root(), vec![]), (1, 0, success()));
    let filtered = search("", LdapSearchScope::Base, "(isSynchronized=TRUE)");
    assert_eq!(searched(&mut conversation, filtered, vec![]).0, 1);
    assert_eq!(searched(&mut conversation, search("", LdapSearchScope::Base, "(cn=x)"), vec![]), (0, 0, success()));

    let refused = result(LdapResultCode::OperationsError, "00002020: Operation unavailable without authentication");
    assert_eq!(searched(&mut conversation, users(), vec![]), (0, 0, refused.clone()));
    let below_root = search("", LdapSearchScope::Subtree, "(objectClass=*)");
    assert_eq!(searched(&mut conversation, below_root, vec![]), (0, 0, refused.clone()));
    assert_eq!(outcome(&mut conversation, compare(BASE, "dc", "corp"), vec![]), refused);
    assert_eq!(outcome(&mut conversation, LdapOp::DelRequest(BASE.to_owned()), vec![]), refused);
}

#[test]
fn searches() {
    let mut conversation = administrator(1);
    assert_eq!(searched(&mut conversation, users(), vec![]), (21, 1, success()));
    let missing = search("cn=x,cn=users,dc=corp,dc=example,dc=com", LdapSearchScope::Base, "(cn=*)");
    let (entries, _, refusal) = searched(&mut conversation, missing, vec![]);
    assert_eq!((entries, refusal.code), (0, LdapResultCode::NoSuchObject));
    assert_eq!(refusal.matcheddn, "CN=Users,DC=corp,DC=example,DC=com");
    let garbage = search("garbage", LdapSearchScope::Base, "(cn=*)");
    assert_eq!(searched(&mut conversation, garbage, vec![]).2.code, LdapResultCode::InvalidDNSyntax);
}

#[test]
fn size_limit() {
    let mut conversation = administrator(1);
    let limited = |sizelimit| LdapSearchRequest { sizelimit, ..users() };
    let (entries, _, done) = searched(&mut conversation, limited(5), vec![]);
    assert_eq!((entries, done.code), (5, LdapResultCode::SizeLimitExceeded));
    assert_eq!(searched(&mut conversation, limited(21), vec![]).2.code, LdapResultCode::Success);
    assert_eq!(searched(&mut conversation, limited(20), vec![]).2.code, LdapResultCode::SizeLimitExceeded);
}

#[test]
fn controls() {
    let mut conversation = administrator(1);
    assert_eq!(searched(&mut conversation, users(), vec![unknown_control(false)]), (21, 1, success()));
    let (entries, _, refusal) = searched(&mut conversation, users(), vec![unknown_control(true)]);
    assert_eq!((entries, refusal.code), (0, LdapResultCode::UnavailableCriticalExtension));
    let refusal = outcome(&mut conversation, compare(BASE, "dc", "corp"), vec![unknown_control(true)]);
    assert_eq!(refusal.code, LdapResultCode::UnavailableCriticalExtension, "whatever the operation");
    let domain_scope = LdapControl::Unknown { oid: oid::DOMAIN_SCOPE.to_owned(), criticality: true, value: None };
    assert_eq!(searched(&mut conversation, users(), vec![domain_scope]), (21, 0, success()));
}

#[test]
fn sorted_searches_say_so() {
    let mut conversation = administrator(1);
    let key = SortKey { attribute_name: "cn".to_owned(), ordering_rule: None, reverse_order: true };
    let sort = LdapControl::ServerSort { sort_requests: vec![key] };
    let responses = ask(&mut conversation, LdapOp::SearchRequest(users()), vec![sort]);
    let names: Vec<String> = responses
        .iter()
        .filter_map(|response| match &response.op {
            LdapOp::SearchResultEntry(entry) => {
                Some(String::from_utf8_lossy(&entry.attributes[0].vals[0]).to_lowercase())
            }
            _ => None,
        })
        .collect();
    assert!(names.len() == 21 && names.is_sorted_by(|one, other| one >= other), "{names:?}");
    assert_eq!(responses.last().map(|done| done.ctrl.clone()), Some(vec![sorting::sorted()]));
}

#[test]
fn pages_hold_every_entry_once() {
    let mut conversation = administrator(1);
    let (mut cookie, mut sizes) = (Vec::new(), Vec::new());
    loop {
        let (entries, next) = page(&mut conversation, &users(), 8, &cookie).expect("a page");
        sizes.push(entries);
        cookie = next;
        if cookie.is_empty() {
            break;
        }
    }
    assert_eq!(sizes, [8, 8, 5]);
    assert_eq!(page(&mut conversation, &users(), 21, b""), Ok((21, vec![])), "nothing is left");
}

#[test]
fn cookies_are_bound_to_the_connection_its_bind_and_the_search() {
    let (mut one, mut other) = (administrator(1), administrator(2));
    let cookie = |conversation: &mut Conversation| page(conversation, &users(), 8, b"").expect("a page").1;
    let of_one = cookie(&mut one);
    cookie(&mut other);
    assert_eq!(page(&mut other, &users(), 8, &of_one), Err(LdapResultCode::UnwillingToPerform));
    assert_eq!(page(&mut other, &users(), 8, b"garbage"), Err(LdapResultCode::UnwillingToPerform));
    let groups = LdapSearchRequest { filter: LdapFilter::Present("member".to_owned()), ..users() };
    assert_eq!(page(&mut one, &groups, 8, &of_one), Err(LdapResultCode::UnavailableCriticalExtension));

    let before_bind = cookie(&mut one);
    ask(&mut one, simple_bind(ADMINISTRATOR, ADMINISTRATOR_PASSWORD), vec![]);
    assert_eq!(page(&mut one, &users(), 8, &before_bind), Err(LdapResultCode::UnwillingToPerform));

    let given_up = cookie(&mut one);
    assert_eq!(page(&mut one, &users(), 0, &given_up), Ok((0, vec![])));
    assert_eq!(page(&mut one, &users(), 8, &given_up), Err(LdapResultCode::UnwillingToPerform));
    assert_eq!(page(&mut one, &users(), 0, b""), Err(LdapResultCode::OperationsError));
}

#[test]
fn references_and_the_size_limit_wait_for_the_last_page() {
    let mut conversation = administrator(1);
    let request = LdapSearchRequest { sizelimit: 10, ..users() };
    let paging = |cookie| vec![LdapControl::SimplePagedResults { size: 8, cookie }];
    let first = ask(&mut conversation, LdapOp::SearchRequest(request.clone()), paging(vec![]));
    let done = first.last().expect("a Done");
    let [LdapControl::SimplePagedResults { cookie, .. }] = done.ctrl.as_slice() else { panic!("{done:?}") };
    assert_eq!((first.len(), result_of(&done.op).code.clone()), (9, LdapResultCode::Success));
    let (entries, references, done) = searched(&mut conversation, request, paging(cookie.clone()));
    assert_eq!((entries, references, done.code), (2, 1, LdapResultCode::SizeLimitExceeded));
}

#[test]
fn compares() {
    let mut conversation = administrator(1);
    let ada = "cn=ada lovelace,cn=users,dc=corp,dc=example,dc=com";
    let table = [
        (ada, "cn", "ADA LOVELACE", LdapResultCode::CompareTrue),
        (ada, "userAccountControl", "512", LdapResultCode::CompareTrue),
        (ada, "cn", "other", LdapResultCode::CompareFalse),
        (ada, "nosuch", "x", LdapResultCode::CompareFalse),
        ("cn=x,dc=corp,dc=example,dc=com", "cn", "x", LdapResultCode::NoSuchObject),
        ("garbage", "cn", "x", LdapResultCode::InvalidDNSyntax),
    ];
    for (dn, attribute, value, expected) in table {
        assert_eq!(code(&mut conversation, compare(dn, attribute, value)), expected, "{dn} {attribute} {value}");
    }
}

#[test]
fn what_it_does_not_do() {
    let mut conversation = administrator(1);
    let modify = LdapModifyRequest { dn: BASE.to_owned(), changes: vec![] };
    assert_eq!(code(&mut conversation, LdapOp::ModifyRequest(modify)), LdapResultCode::UnwillingToPerform);
    assert_eq!(code(&mut conversation, LdapOp::DelRequest(BASE.to_owned())), LdapResultCode::UnwillingToPerform);
    assert_eq!(code(&mut conversation, extended("1.2.3.4")), LdapResultCode::ProtocolError);
    assert_eq!(ask(&mut conversation, LdapOp::AbandonRequest(3), vec![]), []);
}

#[test]
fn endings() {
    let mut conversation = administrator(1);
    let mut end = |msgid, op| conversation.answer(LdapMsg::new(msgid, op), OffsetDateTime::UNIX_EPOCH).err();
    assert_eq!(end(2, LdapOp::UnbindRequest), Some(Ending::Unbind));
    for (msgid, op) in [(0, extended("1.2.3")), (-1, extended("1.2.3")), (2, LdapOp::SearchResultDone(success()))] {
        assert!(matches!(end(msgid, op), Some(Ending::ProtocolError(_))), "messageID {msgid}");
    }
}
