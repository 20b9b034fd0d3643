use proptest::prelude::*;

use super::*;

const BOUND: Standing = Standing { anonymous: false, encrypted: true };
const ANONYMOUS: Standing = Standing { anonymous: true, encrypted: true };
const CLEARTEXT: Standing = Standing { anonymous: true, encrypted: false };

/// One BER element of up to 127 content octets.
fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    [&[tag, u8::try_from(content.len()).unwrap()], content].concat()
}

fn message(operation: &[u8], after: &[u8]) -> Vec<u8> {
    element(0x30, &[b"\x02\x01\x01", operation, after].concat())
}

fn text(text: &str) -> Vec<u8> {
    element(0x04, text.as_bytes())
}

fn search_of(base: &str, scope: u8, size_limit: u8, after: &[u8]) -> Vec<u8> {
    let fields = [&[0x0A, 1, scope, 0x0A, 1, 0, 0x02, 1, size_limit, 0x02, 1, 0, 0x01, 1, 0], &b"\x87\x02cn\x30\0"[..]];
    message(&element(0x63, &[text(base), fields.concat()].concat()), after)
}

fn search(base: &str) -> Vec<u8> {
    search_of(base, 2, 0, b"")
}

fn simple(name: &str, password: &str) -> Vec<u8> {
    let fields = [b"\x02\x01\x03".to_vec(), text(name), element(0x80, password.as_bytes())];
    message(&element(0x60, &fields.concat()), b"")
}

fn sasl(mechanism: &str, credentials: &[u8]) -> Vec<u8> {
    let fields =
        [b"\x02\x01\x03\x04\x00".to_vec(), element(0xA3, &[text(mechanism), element(4, credentials)].concat())];
    message(&element(0x60, &fields.concat()), b"")
}

fn entry(tag: u8, entry: &str) -> Vec<u8> {
    message(&element(tag, &text(entry)), b"")
}

fn delete(entry: &str) -> Vec<u8> {
    message(&element(0x4A, entry.as_bytes()), b"")
}

fn rename(entry: &str, superior: Option<&str>) -> Vec<u8> {
    let superior = superior.map(|superior| element(0x80, superior.as_bytes())).unwrap_or_default();
    message(&element(0x6C, &[text(entry), text("cn=new"), b"\x01\x01\xFF".to_vec(), superior].concat()), b"")
}

fn extended(name: &str) -> Vec<u8> {
    message(&element(0x77, &element(0x80, name.as_bytes())), b"")
}

fn controls(oids: &[&str]) -> Vec<u8> {
    element(0xA0, &oids.iter().flat_map(|oid| element(0x30, &text(oid))).collect::<Vec<_>>())
}

fn policy(change: impl FnOnce(&mut config::Policy)) -> Policy {
    let mut settings = config::Policy::default();
    change(&mut settings);
    Policy::new(&settings).unwrap()
}

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|&text| text.to_owned()).collect()
}

fn judge(policy: &Policy, pdu: &[u8], standing: Standing) -> Result<(), Refused> {
    let envelope = envelope(pdu, usize::MAX).unwrap().unwrap();
    policy.judge(&Request::new(pdu, envelope).unwrap(), standing)
}

/// A request and why it is refused: code and reason; `None` is "passes".
type Case = (Vec<u8>, Option<(u32, Refusal)>);

fn check(policy: &Policy, standing: Standing, cases: &[Case]) {
    for (pdu, expected) in cases {
        let refused = judge(policy, pdu, standing).err();
        let seen = refused.as_ref().map(|refused| (refused.code.0, refused.reason));
        assert_eq!(seen, *expected, "{} {refused:?}", String::from_utf8_lossy(pdu));
        assert!(refused.is_none_or(|refused| !refused.diagnostic.is_empty()));
    }
}

const UNBIND: &[u8] = b"\x30\x05\x02\x01\x01\x42\0";
const ABANDON: &[u8] = b"\x30\x06\x02\x01\x02\x50\x01\x01";

/// RFC 4513 §5.1.2, rule 26: applications mistake its success for a login.
#[test]
fn the_default_refuses_unauthenticated_binds_and_nothing_else() {
    let default = policy(|_| {});
    assert!(default.is_open() && default.allows_tunnels());
    let unauthenticated = Some((53, Refusal::Unauthenticated));
    check(
        &default,
        ANONYMOUS,
        &[
            (simple("ann", ""), unauthenticated),
            (simple("ann", "\0x"), unauthenticated),
            (simple("", ""), None),
            (simple("ann", "secret"), None),
            (sasl("GSSAPI", b"token"), None),
            (sasl("ANONYMOUS", b""), None),
            (message(b"\x60\x02\xFF\xFF", b""), Some((2, Refusal::Undecodable))),
            (search("dc=corp"), None),
            (search_of("dc=corp", 2, 0, b"\xFF"), None),
            (entry(0x66, "dc=corp"), None),
            (extended("1.2.3"), None),
        ],
    );
    let allowing = policy(|settings| settings.allow_unauthenticated = true);
    check(&allowing, ANONYMOUS, &[(simple("ann", ""), None)]);
}

#[test]
fn binds_in_cleartext() {
    let refused = Some((13, Refusal::ConfidentialityRequired));
    let cases = [(simple("ann", "secret"), refused), (sasl("GSSAPI", b"token"), refused), (simple("", ""), None)];
    check(&policy(|_| {}), CLEARTEXT, &cases);
    let allowing = policy(|settings| settings.allow_cleartext_bind = true);
    check(
        &allowing,
        CLEARTEXT,
        &[(simple("ann", "secret"), None), (simple("ann", ""), Some((53, Refusal::Unauthenticated)))],
    );
}

#[test]
fn read_only() {
    let refused = Some((53, Refusal::ReadOnly));
    check(
        &policy(|settings| settings.read_only = true),
        BOUND,
        &[
            (search("dc=corp"), None),
            (entry(0x6E, "dc=corp"), None),
            (entry(0x66, "dc=corp"), refused),
            (entry(0x68, "dc=corp"), refused),
            (delete("dc=corp"), refused),
            (rename("cn=a,dc=corp", None), refused),
            (extended(oid::PASSWORD_MODIFY), refused),
            (extended("1.2.3.4"), refused),
            (extended(oid::WHO_AM_I), None),
            (extended(oid::START_TLS), None),
            (simple("ann", "secret"), None),
            (UNBIND.to_vec(), None),
        ],
    );
}

#[test]
fn no_anonymous_clients() {
    let named = policy(|settings| settings.allow_anonymous = false);
    let refused = Some((50, Refusal::Anonymous));
    check(
        &named,
        ANONYMOUS,
        &[
            (search("dc=corp"), refused),
            (search_of("", 0, 0, b""), None),
            (search_of("", 2, 0, b""), refused),
            (entry(0x66, "dc=corp"), refused),
            (extended(oid::WHO_AM_I), refused),
            (extended(oid::START_TLS), None),
            (ABANDON.to_vec(), None),
            (UNBIND.to_vec(), None),
            (simple("ann", "secret"), None),
            (simple("", ""), Some((53, Refusal::Anonymous))),
            // AD takes any password with an empty name.
            (simple("", "secret"), Some((53, Refusal::Anonymous))),
            (sasl("ANONYMOUS", b""), Some((53, Refusal::Anonymous))),
        ],
    );
    check(&named, BOUND, &[(search("dc=corp"), None)]);
}

#[test]
fn operations() {
    let searching = policy(|settings| settings.operations = Some(vec![OperationKind::Bind, OperationKind::Search]));
    let refused = Some((53, Refusal::Operation));
    check(
        &searching,
        BOUND,
        &[
            (search("dc=corp"), None),
            (simple("ann", "secret"), None),
            (entry(0x6E, "dc=corp"), refused),
            (extended(oid::WHO_AM_I), refused),
            (extended(oid::START_TLS), None),
            (ABANDON.to_vec(), None),
            (UNBIND.to_vec(), None),
        ],
    );
    let no_binds = policy(|settings| settings.operations = Some(vec![OperationKind::Search]));
    check(&no_binds, ANONYMOUS, &[(simple("ann", "secret"), refused), (search("dc=corp"), None)]);
}

#[test]
fn extended_operations() {
    let who_am_i = policy(|settings| settings.extended_operations = Some(strings(&[oid::WHO_AM_I])));
    let refused = Some((53, Refusal::ExtendedOperation));
    check(
        &who_am_i,
        BOUND,
        &[
            (extended(oid::WHO_AM_I), None),
            (extended(oid::PASSWORD_MODIFY), refused),
            (extended("1.3.6.1.4.1.4203.1.11.3\0"), refused),
            (message(b"\x77\x00", b""), refused),
            (search("dc=corp"), None),
        ],
    );
}

#[test]
fn mechanisms() {
    let kerberos = policy(|settings| settings.sasl_mechanisms = Some(strings(&["GSSAPI", "GSS-SPNEGO"])));
    let refused = Some((53, Refusal::SaslMechanism));
    check(
        &kerberos,
        BOUND,
        &[
            (sasl("GSSAPI", b""), None),
            (sasl("gss-spnego", b""), None),
            (sasl("NTLM", b""), refused),
            (sasl("GSSAPI\0NTLM", b""), refused),
            (simple("ann", "secret"), None),
            // Sicily.
            (message(b"\x60\x09\x02\x01\x03\x04\x00\x8A\x02xy", b""), refused),
        ],
    );
}

#[test]
fn base_dns() {
    let people = policy(|settings| settings.base_dns = Some(strings(&["OU=People,DC=corp", "OU=Groups,DC=corp"])));
    let refused = Some((53, Refusal::BaseDn));
    check(
        &people,
        BOUND,
        &[
            (search("ou=people, dc=corp"), None),
            (search("cn=ann,ou=people,dc=corp"), None),
            (search("OU=groups,DC=CORP"), None),
            (search("dc=corp"), refused),
            (search("ou=people,dc=corp\0"), refused),
            (search("<GUID=497cdaf3bac548f4ab36c0fda2331a32>"), refused),
            (search_of("", 0, 0, b""), None),
            (search_of("", 2, 0, b""), refused),
            (entry(0x66, "cn=ann,ou=people,dc=corp"), None),
            (entry(0x66, "cn=ann,dc=corp"), refused),
            (entry(0x68, "cn=ann,dc=corp"), refused),
            (entry(0x6E, "cn=ann,dc=corp"), refused),
            (delete("cn=ann,ou=people,dc=corp"), None),
            (delete("cn=ann,dc=corp"), refused),
            (rename("cn=ann,ou=people,dc=corp", None), None),
            (rename("cn=ann,ou=people,dc=corp", Some("ou=groups,dc=corp")), None),
            (rename("cn=ann,ou=people,dc=corp", Some("dc=corp")), refused),
            (rename("cn=ann,dc=corp", None), refused),
            (entry(0x6C, "cn=ann,ou=people,dc=corp"), Some((2, Refusal::Undecodable))),
            (message(&element(0x63, &text("ou=people,dc=corp")), b""), Some((2, Refusal::Undecodable))),
            (search_of("ou=people,dc=corp", 0, 0, &controls(&[ATTRIBUTE_SCOPED_QUERY])), Some((53, Refusal::Control))),
            (simple("cn=ann,dc=elsewhere", "secret"), None),
        ],
    );
    let invalid = config::Policy { base_dns: Some(strings(&["people"])), ..config::Policy::default() };
    assert_eq!(Policy::new(&invalid).unwrap_err(), InvalidDn("people".into()));
}

#[test]
fn controls_that_are_denied() {
    let policy = policy(|settings| settings.denied_controls = strings(&[oid::SHOW_DELETED]));
    let (refused, unread) = (Some((53, Refusal::Control)), Some((2, Refusal::Undecodable)));
    let with = |after: &[u8]| search_of("dc=corp", 2, 0, after);
    let shown = controls(&[oid::SHOW_DELETED]);
    check(
        &policy,
        BOUND,
        &[
            (with(b""), None),
            (with(&controls(&[oid::PAGED_RESULTS])), None),
            (with(&shown), refused),
            (with(&controls(&[oid::PAGED_RESULTS, oid::SHOW_DELETED])), refused),
            // Samba takes this for the control it names before the NUL.
            (with(&controls(&["1.2.840.113556.1.4.417\0"])), unread),
            (with(&element(0xA0, b"\x04\x01x")), unread),
            (with(&[b"\x04\x01x", &shown[..]].concat()), unread),
            (with(&[&controls(&[])[..], &shown].concat()), unread),
            (with(b"\xA0\x09\x30"), unread),
        ],
    );
}

#[test]
fn size_limits() {
    let policy = policy(|settings| settings.max_size_limit = Some(100));
    let refused = Some((53, Refusal::SizeLimit));
    check(
        &policy,
        BOUND,
        &[
            (search_of("dc=corp", 2, 1, b""), None),
            (search_of("dc=corp", 2, 100, b""), None),
            (search_of("dc=corp", 2, 101, b""), refused),
            (search_of("dc=corp", 1, 0, b""), refused),
            (search_of("cn=ann,dc=corp", 0, 0, b""), None),
            // -1
            (search_of("dc=corp", 2, 0xFF, b""), Some((2, Refusal::Undecodable))),
        ],
    );
}

#[test]
fn names() {
    let refused = Some((53, Refusal::BindName));
    let services = policy(|settings| settings.bind_names = Some(strings(&["svc-*", "*@ops.example.com"])));
    check(
        &services,
        BOUND,
        &[
            (simple("CORP\\svc-app", "secret"), None),
            (simple("ann@ops.example.com", "secret"), None),
            (simple("ann@corp.example.com", "secret"), refused),
            (simple("", ""), None),
            (sasl("GSSAPI", b"token"), refused),
            (sasl("GSS-SPNEGO", b"NTLMSSP\0\x01\0\0\0\x35\x82\x08\x62"), None),
        ],
    );
    let no_admins = policy(|settings| settings.denied_bind_names = strings(&["administrator"]));
    check(
        &no_admins,
        BOUND,
        &[
            (simple("ann@corp.example.com", "secret"), None),
            (simple("Administrator@corp.example.com", "secret"), refused),
            (simple("CORP\\administrator ", "secret"), refused),
            (simple("CORP\\administrator\0x", "secret"), refused),
            (simple(r"cn=\41dministrator,cn=users,dc=corp", "secret"), refused),
            // Samba lets this one log in as the administrator too.
            (simple("cn=\"administrator\",cn=users,dc=corp", "secret"), refused),
            (simple("<SID=S-1-5-21-1-2-3-500>", "secret"), refused),
            (simple(r"Admini\strator@corp.example.com", "secret"), refused),
            (simple(r"Administrator\@corp.example.com@corp.example.com", "secret"), refused),
            (sasl("GSSAPI", b"token"), refused),
        ],
    );
}

/// An open policy, too: an anonymous session's limits, and the login throttle, would be passed by them.
#[test]
fn tokens_that_not_every_server_reads_alike() {
    let refused = Some((2, Refusal::Undecodable));
    check(
        &policy(|_| {}),
        BOUND,
        &[
            (sasl("NTLM", b"NTLMSSP\0\x01\0\0\0\x06\x82\x08\x62"), refused),
            (sasl("GSS-SPNEGO", b"NTLMSSP\0\x03\0\0\0"), refused),
            (sasl("GSS-SPNEGO", b"\xA1\x82\x01\x00\x30"), refused),
            (sasl("GSS-SPNEGO", b"\xA1\x02\x30\x00"), None),
        ],
    );
}

/// Patterns for whole names, too, refuse what may be one of them to a backend: Samba reads names up to the first NUL.
#[test]
fn denied_whole_names() {
    let refused = Some((53, Refusal::BindName));
    check(
        &policy(|settings| settings.denied_bind_names = strings(&["corp\\svc-*"])),
        BOUND,
        &[
            (simple("CORP\\svc-app", "secret"), refused),
            (simple("CORP\\svc-app\0x", "secret"), refused),
            (simple("CORP\\ann", "secret"), None),
        ],
    );
}

#[test]
fn security_layers() {
    assert!(!policy(|settings| settings.sasl_layer = SaslLayer::Refuse).allows_tunnels());
}

proptest! {
    /// Whatever stands in a well-formed envelope, the strictest policy reads or refuses it.
    #[test]
    fn hostile_requests(
        tag in prop::sample::select(vec![0x60_u8, 0x63, 0x66, 0x68, 0x4A, 0x6C, 0x6E, 0x77]),
        body in prop::collection::vec(any::<u8>(), 0..60),
        after in prop::collection::vec(any::<u8>(), 0..20),
    ) {
        let strict = policy(|settings| {
            settings.base_dns = Some(strings(&["dc=corp"]));
            settings.bind_names = Some(strings(&["svc-*", "*,dc=corp"]));
            settings.denied_controls = strings(&["1.2.3"]);
            settings.max_size_limit = Some(5);
        });
        let _ = judge(&strict, &message(&element(tag, &body), &after), BOUND);
    }
}
