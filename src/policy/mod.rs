//! Whether a listener's policy lets a request through.
//!
//! A policy reads what a backend will read again, so it refuses whatever the two could read differently: a name, an object
//! identifier or a control list that isn't plain is refused where a rule depends on it.
//!
//! The codes: `confidentialityRequired` (13) for a bind in cleartext; `insufficientAccessRights` (50) for an operation
//! that a bind would make possible; `unwillingToPerform` (53) for everything that no bind makes possible. A search that
//! asks for more than `max_size_limit` gets 53 too, since `adminLimitExceeded` (11) would tell the client that it has all
//! the entries it may have, and it has none.

mod bind;
mod pattern;

use std::borrow::Cow;
use std::fmt;

use pattern::Pattern;

use crate::config::{self, SaslLayer};
use crate::failure::Refusal;
use crate::ldap::dn::Dn;
use crate::ldap::{OperationKind, Request, ResultCode, SearchRequest, ber, envelope, oid};

/// Extended operations that can't write: the only ones a read-only listener forwards.
const HARMLESS: [&str; 3] = [oid::WHO_AM_I, CANCEL, FAST_BIND];
/// RFC 3909
const CANCEL: &str = "1.3.6.1.1.8";
/// MS-ADTS: LDAP_SERVER_FAST_BIND_OID
const FAST_BIND: &str = "1.2.840.113556.1.4.1781";
/// MS-ADTS: LDAP_SERVER_ASQ_OID. It answers with entries that an attribute of the base points to, wherever they are.
const ATTRIBUTE_SCOPED_QUERY: &str = "1.2.840.113556.1.4.1504";
/// The scope of a search for the base alone.
const BASE_OBJECT: u32 = 0;

/// One listener's policy.
#[derive(Debug, Clone)]
pub struct Policy {
    settings: config::Policy,
    base_dns: Option<Vec<Dn>>,
    bind_names: Option<Vec<Pattern>>,
    denied_bind_names: Vec<Pattern>,
    open: bool,
}

/// What the session is when a request arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// No authenticated name: before a bind, while one is under way, after one failed (RFC 4513 §4).
    pub anonymous: bool,
    /// TLS protects the client's side.
    pub encrypted: bool,
}

/// A request the policy doesn't let through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// 13, 50 or 53.
    pub code: ResultCode,
    /// Which rule.
    pub reason: Refusal,
    /// What to do about it.
    pub diagnostic: Cow<'static, str>,
}

/// A `base_dns` element that is no DN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidDn(pub String);

impl std::error::Error for InvalidDn {}

impl fmt::Display for InvalidDn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not a DN: write one such as \"ou=people,dc=corp,dc=example,dc=com\"", self.0)
    }
}

impl Policy {
    /// The policy that `settings` describe.
    ///
    /// # Errors
    /// [`InvalidDn`]
    pub fn new(settings: &config::Policy) -> Result<Self, InvalidDn> {
        let dn = |text: &String| Dn::parse(text).ok_or_else(|| InvalidDn(text.clone()));
        let patterns = |texts: &[String]| texts.iter().map(|text| Pattern::new(text)).collect();
        Ok(Self {
            base_dns: settings.base_dns.as_ref().map(|texts| texts.iter().map(dn).collect()).transpose()?,
            bind_names: settings.bind_names.as_deref().map(patterns),
            denied_bind_names: patterns(&settings.denied_bind_names),
            open: settings.allow_anonymous
                && !settings.read_only
                && settings.operations.is_none()
                && settings.extended_operations.is_none()
                && settings.base_dns.is_none()
                && settings.denied_controls.is_empty()
                && settings.max_size_limit.is_none(),
            settings: settings.clone(),
        })
    }

    /// Whether every request but binds passes, so that judging them can be left out.
    pub const fn is_open(&self) -> bool {
        self.open
    }

    /// Whether a client may negotiate a SASL security layer and become a tunnel (`sasl_layer`).
    pub fn allows_tunnels(&self) -> bool {
        self.settings.sasl_layer == SaslLayer::Tunnel
    }

    /// Judges a request. Unbind and Abandon, which have no response, and StartTLS, which the listener answers itself,
    /// always pass.
    ///
    /// # Errors
    /// [`Refused`]
    pub fn judge(&self, request: &Request<'_>, standing: Standing) -> Result<(), Refused> {
        match request.kind() {
            OperationKind::Unbind | OperationKind::Abandon => return Ok(()),
            OperationKind::Bind => {
                self.judge_bind(request, standing)?;
                if self.open {
                    return Ok(());
                }
            }
            _ if self.open || request.is_start_tls() => return Ok(()),
            _ => {}
        }
        self.judge_kind(request)?;
        self.judge_controls(request)?;
        if request.kind() != OperationKind::Bind {
            self.judge_anonymous(request, standing)?;
            self.judge_names(request)?;
            self.judge_size_limit(request)?;
        }
        Ok(())
    }

    /// `operations`, `extended_operations`, `read_only`
    fn judge_kind(&self, request: &Request<'_>) -> Result<(), Refused> {
        let kind = request.kind();
        let listed = |kinds: &Vec<OperationKind>| kinds.contains(&kind);
        if !self.settings.operations.as_ref().is_none_or(listed) {
            return Err(unwilling(Refusal::Operation, format!("this listener does not serve {kind} operations")));
        }
        let extended = request.extended_name();
        let is_one_of = |names: &[&str]| extended.is_some_and(|name| names.iter().any(|one| one.as_bytes() == name));
        if self.settings.read_only && kind.may_write() && !is_one_of(&HARMLESS) {
            let what = "this listener is read-only: send changes to another, or to the directory itself";
            return Err(unwilling(Refusal::ReadOnly, what));
        }
        if let (OperationKind::Extended, Some(allowed)) = (kind, &self.settings.extended_operations)
            && !is_one_of(&allowed.iter().map(String::as_str).collect::<Vec<_>>())
        {
            let what = "this listener does not serve that extended operation";
            return Err(unwilling(Refusal::ExtendedOperation, what));
        }
        Ok(())
    }

    /// `denied_controls`, critical or not, and the control that would lead out of `base_dns`.
    fn judge_controls(&self, request: &Request<'_>) -> Result<(), Refused> {
        let mut denied: Vec<&str> = self.settings.denied_controls.iter().map(String::as_str).collect();
        if self.base_dns.is_some() {
            denied.push(ATTRIBUTE_SCOPED_QUERY);
        }
        if denied.is_empty() {
            return Ok(());
        }
        if !has_plain_controls(request) {
            return Err(undecodable("the list of controls cannot be read"));
        }
        let hit = request.controls().find_map(|control| denied.iter().find(|oid| oid.as_bytes() == control.oid));
        hit.map_or(Ok(()), |oid| {
            Err(unwilling(Refusal::Control, format!("this listener does not serve the control {oid}: leave it out")))
        })
    }

    /// `allow_anonymous`. The rootDSE stays open: clients read there how they can bind.
    fn judge_anonymous(&self, request: &Request<'_>, standing: Standing) -> Result<(), Refused> {
        if self.settings.allow_anonymous || !standing.anonymous || request.search().is_some_and(|s| is_root_dse(&s)) {
            return Ok(());
        }
        Err(Refused {
            code: ResultCode::INSUFFICIENT_ACCESS_RIGHTS,
            reason: Refusal::Anonymous,
            diagnostic: "this listener does not serve anonymous clients: bind first".into(),
        })
    }

    /// `base_dns`
    fn judge_names(&self, request: &Request<'_>) -> Result<(), Refused> {
        let Some(bases) = &self.base_dns else { return Ok(()) };
        let is_served = |name: &[u8]| {
            let name = str::from_utf8(name).ok().and_then(Dn::parse);
            name.is_some_and(|name| bases.iter().any(|base| name.is_within(base)))
        };
        let served = match request.kind() {
            OperationKind::Search => match request.search() {
                Some(search) => is_root_dse(&search) || is_served(search.base),
                None => return Err(undecodable("the search cannot be read")),
            },
            OperationKind::ModifyDn => match (request.entry(), new_superior(request)) {
                (Some(entry), Ok(superior)) => is_served(entry) && superior.is_none_or(is_served),
                _ => return Err(undecodable("the modifyDN request cannot be read")),
            },
            OperationKind::Modify | OperationKind::Add | OperationKind::Delete | OperationKind::Compare => {
                request.entry().is_some_and(is_served)
            }
            _ => true,
        };
        if served {
            return Ok(());
        }
        let allowed: Vec<String> = bases.iter().map(Dn::to_string).collect();
        Err(unwilling(Refusal::BaseDn, format!("name an entry below {}, as a plain RFC 4514 DN", allowed.join(" or "))))
    }

    /// `max_size_limit`. A search for one entry needs no limit.
    fn judge_size_limit(&self, request: &Request<'_>) -> Result<(), Refused> {
        let (OperationKind::Search, Some(most)) = (request.kind(), self.settings.max_size_limit) else { return Ok(()) };
        let Some(search) = request.search() else { return Err(undecodable("the search cannot be read")) };
        if search.scope == BASE_OBJECT || (1..=most).contains(&search.size_limit) {
            return Ok(());
        }
        Err(unwilling(Refusal::SizeLimit, format!("set the search's size limit to a value from 1 to {most}")))
    }
}

fn unwilling(reason: Refusal, diagnostic: impl Into<Cow<'static, str>>) -> Refused {
    Refused { code: ResultCode::UNWILLING_TO_PERFORM, reason, diagnostic: diagnostic.into() }
}

fn undecodable(what: &str) -> Refused {
    // §4.1.1: protocolError for a PDU whose envelope alone can be read.
    let diagnostic = format!("{what}, and this listener's policy depends on it: encode it by RFC 4511");
    Refused { code: ResultCode::PROTOCOL_ERROR, reason: Refusal::Undecodable, diagnostic: diagnostic.into() }
}

fn is_root_dse(search: &SearchRequest<'_>) -> bool {
    search.base.is_empty() && search.scope == BASE_OBJECT
}

/// The newSuperior of a modifyDN request (§4.9), if it has one.
fn new_superior<'a>(request: &Request<'a>) -> Result<Option<&'a [u8]>, Unreadable> {
    let mut fields = ber::Reader::new(request.content());
    fields.take(ber::OCTET_STRING).ok_or(Unreadable)?;
    fields.take(ber::OCTET_STRING).ok_or(Unreadable)?;
    fields.take(ber::BOOLEAN).ok_or(Unreadable)?;
    if fields.is_empty() { Ok(None) } else { fields.take(0x80).map(Some).ok_or(Unreadable) }
}

/// A field that a rule depends on can't be read.
struct Unreadable;

/// Whether all that follows the protocolOp is one list of controls whose object identifiers are plain. Samba reads an
/// identifier up to the first NUL, so `1.2.840.113556.1.4.417\0…` means to it what it doesn't mean to a byte-wise compare.
fn has_plain_controls(request: &Request<'_>) -> bool {
    let Ok(Some(envelope)) = envelope(request.pdu(), usize::MAX) else { return false };
    let mut trailing = ber::Reader::new(&request.pdu()[envelope.content_end..]);
    if trailing.is_empty() {
        return true;
    }
    let Some(mut list) = trailing.take(0xA0).map(ber::Reader::new) else { return false };
    while let Some(control) = list.take(ber::SEQUENCE) {
        let plain = |oid: &[u8]| oid.iter().all(|octet| octet.is_ascii_digit() || *octet == b'.');
        if !ber::Reader::new(control).take(ber::OCTET_STRING).is_some_and(plain) {
            return false;
        }
    }
    list.is_empty() && trailing.is_empty()
}

#[cfg(test)]
mod tests;
