//! Rewriting or dropping references that lead clients round the proxy.
//!
//! Samba adds references such as `ldap://corp.example.com/CN=Configuration,DC=corp,…` to results (RFC 4511 §4.5.3), and
//! answers with a referral (§4.1.10) where a name lies elsewhere. A client that follows one to the pool's own servers
//! goes there in cleartext, past trust and policy, or waits for a port that a firewall closes. Only URLs that name the
//! pool's own hosts or its domain are touched; references to foreign servers, and every other PDU, stay as they are.

use std::collections::HashSet;

use crate::ldap::ber::{self, Reader};
use crate::ldap::{Envelope, ResponseKind, ResultCode};

/// The tag octet of a result's referral, `[3]`.
const REFERRAL: u8 = 0xA3;
/// Partitions that the servers of a domain hold beside the domain itself, as Samba names them in references.
const PARTITIONS: [&str; 2] = ["domaindnszones", "forestdnszones"];
/// The diagnosticMessage of a referral that was dropped.
const DROPPED: &[u8] =
    b"the entry is not held by these servers, and this listener hides where they refer to: search another base";

/// What is done about the pool's own servers in references.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    /// They become the proxy: `ldaps://<public_name>`.
    Rewrite {
        /// The host name, and port if not 636, that clients use for the proxy.
        public_name: String,
    },
    /// They are removed.
    Drop,
}

/// Treats the references in responses.
#[derive(Debug, Clone)]
pub struct Referrals {
    mode: Mode,
    /// In lower case, without a dot at the end.
    own: HashSet<String>,
}

/// What becomes of a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Its octets pass as they are.
    Unchanged,
    /// These octets pass instead.
    Replaced(Vec<u8>),
    /// Nothing passes. Only a SearchResultReference, which isn't final, comes to this.
    Dropped,
}

impl Referrals {
    /// Treats URLs that name one of `hosts` (names or addresses), one of `domains`, or a domain's DNS partition.
    pub fn new(mode: Mode, hosts: impl IntoIterator<Item = String>, domains: impl IntoIterator<Item = String>) -> Self {
        let domains = domains.into_iter().flat_map(|domain| {
            let partitions = PARTITIONS.map(|partition| format!("{partition}.{domain}"));
            partitions.into_iter().chain([domain])
        });
        Self { mode, own: hosts.into_iter().chain(domains).map(|host| plain_host(&host)).collect() }
    }

    /// Treats `pdu`, one whole response.
    ///
    /// A result whose referral is dropped whole becomes noSuchObject. Where something is changed, the lengths around it
    /// are written anew; the messageID, all other fields and the controls stay octet for octet.
    pub fn apply(&self, pdu: &[u8], envelope: &Envelope) -> Outcome {
        let content = &pdu[envelope.content_start..envelope.content_end];
        let replaced = match ResponseKind::from_tag(envelope.tag) {
            Some(ResponseKind::Reference) => match self.urls(content) {
                Some(urls) if urls.is_empty() => return Outcome::Dropped,
                urls => urls,
            },
            Some(kind) if kind.is_final() => self.result(content),
            _ => None,
        };
        let Some(content) = replaced else { return Outcome::Unchanged };
        let Some(message_id) = message_id(pdu) else { return Outcome::Unchanged };

        let operation = element(envelope.tag, &content);
        let controls = &pdu[envelope.content_end..];
        Outcome::Replaced(element(ber::SEQUENCE, &[message_id, &operation, controls].concat()))
    }

    /// A result's fields with its referral treated; `None` if nothing changes.
    fn result(&self, content: &[u8]) -> Option<Vec<u8>> {
        let mut fields = Reader::new(content);
        let code = fields.element().filter(|field| field.tag == ber::ENUMERATED)?;
        let matched_dn = fields.element()?;
        let diagnostic = fields.element()?;
        let referral = fields.element().filter(|field| field.tag == REFERRAL)?;
        let rest = fields.rest();

        let urls = self.urls(referral.content)?;
        if !urls.is_empty() {
            let referral = element(REFERRAL, &urls);
            return Some([code.whole, matched_dn.whole, diagnostic.whole, &referral, rest].concat());
        }
        if ber::unsigned(code.content) != Some(ResultCode::REFERRAL.0) {
            return Some([code.whole, matched_dn.whole, diagnostic.whole, rest].concat());
        }
        let code = [ber::ENUMERATED, 1, NO_SUCH_OBJECT];
        Some([&code, matched_dn.whole, &element(ber::OCTET_STRING, DROPPED), rest].concat())
    }

    /// A list of URLs with the own ones treated; `None` if there is none of them, or the list can't be read.
    fn urls(&self, list: &[u8]) -> Option<Vec<u8>> {
        let mut urls = Reader::new(list);
        let mut treated = Vec::with_capacity(list.len());
        let mut changed = false;
        while let Some(url) = urls.element() {
            let own = (url.tag == ber::OCTET_STRING).then(|| self.own_part(url.content)).flatten();
            changed |= own.is_some();
            match (own, &self.mode) {
                (None, _) => treated.extend(url.whole),
                (Some(part), Mode::Rewrite { public_name }) => {
                    let url = [b"ldaps://", public_name.as_bytes(), part].concat();
                    treated.extend(element(ber::OCTET_STRING, &url));
                }
                (Some(_), Mode::Drop) => {}
            }
        }
        (changed && urls.is_empty()).then_some(treated)
    }

    /// What follows the authority of an LDAP URL (RFC 4516 §2) that names one of the own hosts.
    fn own_part<'a>(&self, url: &'a [u8]) -> Option<&'a [u8]> {
        let start = url.windows(3).position(|window| window == b"://")? + 3;
        if ![&b"ldap://"[..], b"ldaps://"].iter().any(|scheme| scheme.eq_ignore_ascii_case(&url[..start])) {
            return None;
        }
        let rest = &url[start..];
        let end = rest.iter().position(|octet| matches!(octet, b'/' | b'?')).unwrap_or(rest.len());
        let authority = str::from_utf8(&rest[..end]).ok()?;
        self.own.contains(&plain_host(without_port(authority))).then_some(&rest[end..])
    }
}

const NO_SUCH_OBJECT: u8 = 32;

fn without_port(authority: &str) -> &str {
    match authority.strip_prefix('[') {
        Some(literal) => literal.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    }
}

fn plain_host(host: &str) -> String {
    host.trim_end_matches('.').to_ascii_lowercase()
}

/// The messageID's element, as received.
fn message_id(pdu: &[u8]) -> Option<&[u8]> {
    let message = Reader::new(pdu).take(ber::SEQUENCE)?;
    Some(Reader::new(message).element()?.whole)
}

/// An element with the shortest length.
fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len();
    let mut element = Vec::with_capacity(6 + length);
    element.push(tag);
    if let Ok(short) = u8::try_from(length)
        && short < 0x80
    {
        element.push(short);
    } else {
        let octets = u64::try_from(length).expect("a usize fits").to_be_bytes();
        let first = octets.iter().position(|octet| *octet != 0).unwrap_or(octets.len() - 1);
        let count = u8::try_from(octets.len() - first).expect("at most eight");
        element.push(0x80 | count);
        element.extend(&octets[first..]);
    }
    element.extend(content);
    element
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ldap::envelope;

    fn rewrite() -> Referrals {
        Referrals::new(
            Mode::Rewrite { public_name: "ldap.example.com".into() },
            ["DC1.corp.example.com.", "10.0.1.10", "fd00::10"].map(str::to_owned),
            ["corp.example.com".to_owned()],
        )
    }

    fn drop_own() -> Referrals {
        Referrals { mode: Mode::Drop, ..rewrite() }
    }

    fn apply(referrals: &Referrals, pdu: &[u8]) -> Outcome {
        let envelope = envelope(pdu, usize::MAX).unwrap().unwrap();
        assert_eq!(envelope.length, pdu.len());
        referrals.apply(pdu, &envelope)
    }

    const CONTROLS: &[u8] = b"\xA0\x07\x30\x05\x04\x031.2";

    fn urls(urls: &[&str]) -> Vec<u8> {
        urls.iter().flat_map(|url| element(ber::OCTET_STRING, url.as_bytes())).collect()
    }

    fn reference(list: &[&str]) -> Vec<u8> {
        let operation = element(0x73, &urls(list));
        element(0x30, &[b"\x02\x03\x01\x00\x05", &operation[..], CONTROLS].concat())
    }

    /// A result with an extension after the referral, as a BindResponse's serverSaslCreds.
    fn result(tag: u8, code: u8, diagnostic: &[u8], list: Option<&[&str]>) -> Vec<u8> {
        let diagnostic = element(ber::OCTET_STRING, diagnostic);
        let referral = list.map(|list| element(REFERRAL, &urls(list))).unwrap_or_default();
        let head = [0x0A, 1, code];
        let operation = element(tag, &[&head, &b"\x04\x04dc=x"[..], &diagnostic, &referral, b"\x87\x02ab"].concat());
        element(0x30, &[b"\x02\x01\x07", &operation[..], CONTROLS].concat())
    }

    #[test]
    fn whose_urls_are_touched() {
        for (url, rewritten) in [
            (
                "ldap://corp.example.com/CN=Configuration,DC=corp",
                Some("ldaps://ldap.example.com/CN=Configuration,DC=corp"),
            ),
            ("ldap://DomainDnsZones.corp.example.com/DC=x??sub", Some("ldaps://ldap.example.com/DC=x??sub")),
            ("LDAP://ForestDnsZones.CORP.example.com./", Some("ldaps://ldap.example.com/")),
            ("ldap://dc1.corp.example.com:389/dc=x", Some("ldaps://ldap.example.com/dc=x")),
            ("ldaps://dc1.corp.example.com:636", Some("ldaps://ldap.example.com")),
            ("ldap://10.0.1.10?x", Some("ldaps://ldap.example.com?x")),
            ("ldap://[fd00::10]:3268/dc=x", Some("ldaps://ldap.example.com/dc=x")),
            // A child domain is served by other servers: a client sent back here would go in circles.
            ("ldap://child.corp.example.com/dc=child", None),
            ("ldap://dc2.corp.example.com/dc=x", None),
            ("ldap://partner.example.org/dc=corp.example.com", None),
            ("ldap://corp.example.com.evil.org/", None),
            ("ldap:///dc=x", None),
            ("ldapi://corp.example.com/", None),
            ("http://corp.example.com/", None),
            ("corp.example.com", None),
        ] {
            let pdu = reference(&[url]);
            let expected = rewritten.map_or(Outcome::Unchanged, |url| Outcome::Replaced(reference(&[url])));
            assert_eq!(apply(&rewrite(), &pdu), expected, "{url}");
            let expected = if rewritten.is_some() { Outcome::Dropped } else { Outcome::Unchanged };
            assert_eq!(apply(&drop_own(), &pdu), expected, "{url}");
        }
    }

    #[test]
    fn foreign_urls_stay_beside_own_ones() {
        let pdu = reference(&["ldap://a.org/", "ldap://corp.example.com/", "ldap://b.org/"]);
        let rewritten = reference(&["ldap://a.org/", "ldaps://ldap.example.com/", "ldap://b.org/"]);
        assert_eq!(apply(&rewrite(), &pdu), Outcome::Replaced(rewritten));
        assert_eq!(apply(&drop_own(), &pdu), Outcome::Replaced(reference(&["ldap://a.org/", "ldap://b.org/"])));
    }

    #[test]
    fn results() {
        let own: &[&str] = &["ldap://corp.example.com/dc=y"];
        for tag in [0x61, 0x65, 0x67, 0x69, 0x6B, 0x6D, 0x6F, 0x78] {
            let referral = result(tag, 10, b"go there", Some(own));
            let rewritten = result(tag, 10, b"go there", Some(&["ldaps://ldap.example.com/dc=y"]));
            assert_eq!(apply(&rewrite(), &referral), Outcome::Replaced(rewritten));
            assert_eq!(apply(&drop_own(), &referral), Outcome::Replaced(result(tag, 32, DROPPED, None)));

            let both = result(tag, 10, b"go there", Some(&["ldap://a.org/", own[0]]));
            let foreign = result(tag, 10, b"go there", Some(&["ldap://a.org/"]));
            assert_eq!(apply(&drop_own(), &both), Outcome::Replaced(foreign.clone()));
            assert_eq!(apply(&drop_own(), &foreign), Outcome::Unchanged);

            // A referral beside another code says nothing; the code does.
            let success = result(tag, 0, b"", Some(own));
            assert_eq!(apply(&drop_own(), &success), Outcome::Replaced(result(tag, 0, b"", None)));
            assert_eq!(apply(&drop_own(), &result(tag, 0, b"ldap://corp.example.com/", None)), Outcome::Unchanged);
        }
    }

    /// As Samba 4.17 sends it.
    #[test]
    fn a_real_reference() {
        let pdu =
            b"\x30\x49\x02\x01\x02\x73\x44\x04\x42ldap://corp.example.com/CN=Configuration,DC=corp,DC=example,DC=com";
        let Outcome::Replaced(replaced) = apply(&rewrite(), pdu) else { panic!("it names the domain") };
        assert!(replaced.ends_with(b"ldaps://ldap.example.com/CN=Configuration,DC=corp,DC=example,DC=com"));
        assert_eq!(apply(&drop_own(), pdu), Outcome::Dropped);
    }

    #[test]
    fn long_forms_are_read() {
        let inner = b"\x04\x81\x18ldap://corp.example.com/";
        let operation = [&b"\x73\x84\0\0\0\x1B"[..], inner].concat();
        let pdu = [&b"\x30\x84\0\0\0\x24\x02\x01\x02"[..], &operation].concat();
        let short =
            element(0x30, &[b"\x02\x01\x02", &element(0x73, &urls(&["ldaps://ldap.example.com/"]))[..]].concat());
        assert_eq!(apply(&rewrite(), &pdu), Outcome::Replaced(short));
    }

    #[test]
    fn lengths() {
        for (length, header) in [
            (0, &b"\x04\x00"[..]),
            (0x7F, b"\x04\x7F"),
            (0x80, b"\x04\x81\x80"),
            (0x1234, b"\x04\x82\x12\x34"),
            (0x1_0000, b"\x04\x83\x01\x00\x00"),
        ] {
            let element = element(0x04, &vec![0; length]);
            assert_eq!((&element[..header.len()], element.len()), (header, header.len() + length));
        }
    }

    proptest! {
        /// What names none of the own servers passes, whatever it is.
        #[test]
        fn anything_else_is_unchanged(
            tag in prop::sample::select(vec![0x61_u8, 0x64, 0x65, 0x67, 0x73, 0x78, 0x79, 0x63]),
            list in prop::collection::vec("(ldap|ldaps|http)://[a-z.:]{0,12}/[ -~]{0,12}", 0..4),
            garbage in prop::collection::vec(any::<u8>(), 0..30),
            code in 0_u8..80,
        ) {
            let list: Vec<&str> = list.iter().map(String::as_str).collect();
            let strange = element(0x30, &[&b"\x02\x01\x07"[..], &element(tag, &garbage), &garbage].concat());
            for pdu in [reference(&list), result(tag, code, &garbage, Some(&list)), strange] {
                prop_assert_eq!(apply(&rewrite(), &pdu), Outcome::Unchanged);
                prop_assert_eq!(apply(&drop_own(), &pdu), Outcome::Unchanged);
            }
        }
    }
}
