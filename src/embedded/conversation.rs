//! One connection's conversation with the directory: requests in, responses out, no socket.

use std::sync::Arc;

use ldap3_proto::control::{LdapControl, ServerSortRequet as SortKey};
use ldap3_proto::proto::{
    LdapBindCred, LdapBindRequest, LdapBindResponse, LdapCompareRequest, LdapExtendedResponse, LdapMsg, LdapOp,
    LdapResult, LdapSearchRequest,
};
use ldap3_proto::{LdapResultCode, LdapSearchResultReference, LdapSearchScope};
use time::OffsetDateTime;

use super::directory::{BindRefusal, Directory};
use super::dn::Dn;
use super::paging::{CookieRefusal, PagedSearches};
use super::root_dse::root_dse;
use super::{filter, sorting};
use crate::ldap::oid;

/// What LDAP ties to a connection: who is bound, and the paged searches that are open.
pub(super) struct Conversation {
    directory: Arc<Directory>,
    host: Arc<str>,
    /// The authorization identity in RFC 4513's form, `u:CORP\name`; `None` is anonymous.
    identity: Option<String>,
    searches: PagedSearches,
}

/// Why the conversation is over.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// The client said so.
    Unbind,
    /// The client broke the protocol; how.
    ProtocolError(&'static str),
}

impl Conversation {
    /// An anonymous conversation with the server called `host`; `connection` differs from that of any other in the process.
    pub(super) fn new(directory: Arc<Directory>, host: Arc<str>, connection: u64) -> Self {
        Self { directory, host, identity: None, searches: PagedSearches::new(connection) }
    }

    /// All responses to one request. They are complete when this returns, so there is never anything to abandon.
    pub(super) fn answer(&mut self, request: LdapMsg, now: OffsetDateTime) -> Result<Vec<LdapMsg>, Ending> {
        let LdapMsg { msgid, op, ctrl } = request;
        if msgid < 1 {
            return Err(Ending::ProtocolError("a request's messageID is 1 or more"));
        }
        let result = match &op {
            LdapOp::UnbindRequest => return Err(Ending::Unbind),
            LdapOp::AbandonRequest(_) => return Ok(Vec::new()),
            _ if ctrl.iter().any(is_unknown_and_critical) => {
                result(LdapResultCode::UnavailableCriticalExtension, "a critical control is not supported")
            }
            LdapOp::BindRequest(bind) => self.bind(bind),
            LdapOp::SearchRequest(search) => match self.search(search, &ctrl, now) {
                Ok((operations, controls)) => return Ok(messages(msgid, operations, controls)),
                Err(refusal) => refusal,
            },
            LdapOp::CompareRequest(compare) => self.compare(compare).unwrap_or_else(|refusal| refusal),
            LdapOp::ModifyRequest(_) | LdapOp::AddRequest(_) | LdapOp::DelRequest(_) | LdapOp::ModifyDNRequest(_) => {
                let read_only = || result(LdapResultCode::UnwillingToPerform, "the embedded directory is read-only");
                self.require_bind().map_or_else(|refusal| refusal, |()| read_only())
            }
            LdapOp::ExtendedRequest(extended) if extended.name == oid::WHO_AM_I => {
                return Ok(messages(msgid, vec![self.who_am_i()], Vec::new()));
            }
            LdapOp::ExtendedRequest(extended) => {
                result(LdapResultCode::ProtocolError, format!("Extended Operation({}) not supported", extended.name))
            }
            _ => return Err(Ending::ProtocolError("a client sends requests only")),
        };
        Ok(messages(msgid, final_response(&op, result).into_iter().collect(), Vec::new()))
    }

    fn bind(&mut self, request: &LdapBindRequest) -> LdapResult {
        // From the receipt of a bind until it succeeds the connection is anonymous (RFC 4513 §4).
        self.identity = None;
        self.searches.clear();
        if !matches!(request.version, 2 | 3) {
            return result(LdapResultCode::ProtocolError, "LDAP version 2 or 3 only");
        }
        let LdapBindCred::Simple(password) = &request.cred else {
            return result(LdapResultCode::AuthMethodNotSupported, "the embedded directory takes simple binds only");
        };
        if request.dn.is_empty() && password.is_empty() {
            return success();
        }
        match self.directory.authenticate(&request.dn, password) {
            Ok(account) => {
                let name = account.text("sAMAccountName").unwrap_or(account.name());
                self.identity = Some(format!("u:{}\\{name}", self.directory.domain().netbios));
                success()
            }
            Err(refusal) => invalid_credentials(refusal),
        }
    }

    /// Everything a search sends, its Done included, and the controls of the Done.
    fn search(
        &mut self,
        request: &LdapSearchRequest,
        controls: &[LdapControl],
        now: OffsetDateTime,
    ) -> Result<(Vec<LdapOp>, Vec<LdapControl>), LdapResult> {
        if request.base.is_empty() && request.scope == LdapSearchScope::Base {
            return Ok((self.search_root_dse(request, now), Vec::new()));
        }
        self.require_bind()?;
        let directory = Arc::clone(&self.directory);
        let base = parse_name(&request.base)?;
        let mut found = directory
            .search(&base, &request.scope, &request.filter)
            .map_err(|missing| no_such_object(&request.base, missing.matched))?;
        if controls.iter().any(asks_for_domain_scope) {
            found.references.clear();
        }
        let mut response_controls = Vec::new();
        if let Some(keys) = controls.iter().find_map(sort_keys) {
            sorting::sort(&mut found.entries, keys);
            response_controls.push(sorting::sorted());
        }
        let limit = usize::try_from(request.sizelimit).ok().filter(|limit| *limit > 0);
        let limited = limit.is_some_and(|limit| found.entries.len() > limit);
        found.entries.truncate(limit.unwrap_or(usize::MAX));

        let (page, is_last) = match controls.iter().find_map(paged_results) {
            None => (0..found.entries.len(), true),
            Some((size, cookie)) => {
                let (page, control, is_last) = self.turn_page(request, found.entries.len(), size, cookie)?;
                response_controls.push(control);
                (page, is_last)
            }
        };
        let project = |entry: &&super::Entry| entry.project(&request.attrs, request.typesonly);
        let mut operations: Vec<_> = found.entries[page].iter().map(project).map(LdapOp::SearchResultEntry).collect();
        if is_last {
            let refer = |uri| LdapOp::SearchResultReference(LdapSearchResultReference { uris: vec![uri] });
            operations.extend(found.references.into_iter().map(refer));
        }
        operations.push(LdapOp::SearchResultDone(if is_last && limited {
            result(LdapResultCode::SizeLimitExceeded, "")
        } else {
            success()
        }));
        Ok((operations, response_controls))
    }

    fn search_root_dse(&self, request: &LdapSearchRequest, now: OffsetDateTime) -> Vec<LdapOp> {
        let entry = root_dse(&self.directory, &self.host, now);
        let matching = filter::matches(&request.filter, &entry).then_some(entry);
        let shown = matching.map(|entry| LdapOp::SearchResultEntry(entry.project(&request.attrs, request.typesonly)));
        shown.into_iter().chain([LdapOp::SearchResultDone(success())]).collect()
    }

    /// The part of the `total` entries that this page shows, its response control, and whether nothing comes after it.
    fn turn_page(
        &mut self,
        request: &LdapSearchRequest,
        total: usize,
        size: i64,
        cookie: &[u8],
    ) -> Result<(std::ops::Range<usize>, LdapControl, bool), LdapResult> {
        let size = usize::try_from(size).unwrap_or(0);
        if size == 0 && cookie.is_empty() {
            return Err(result(LdapResultCode::OperationsError, "a page holds at least one entry"));
        }
        let start = self.searches.resume(cookie, request).map_err(cookie_refused)?;
        let end = start.saturating_add(size).min(total);
        // Size 0 with a cookie gives the search up (RFC 2696 §3).
        let is_last = size == 0 || end == total;
        let (estimate, cookie) =
            if is_last { (0, Vec::new()) } else { (total, self.searches.suspend(request.clone(), end)) };
        let size = i64::try_from(estimate).unwrap_or(0);
        Ok((start..end, LdapControl::SimplePagedResults { size, cookie }, is_last))
    }

    fn compare(&self, request: &LdapCompareRequest) -> Result<LdapResult, LdapResult> {
        self.require_bind()?;
        let dn = parse_name(&request.dn)?;
        let entry = self
            .directory
            .entry(&dn)
            .ok_or_else(|| no_such_object(&request.dn, self.directory.no_such_object(&dn).matched))?;
        let equal = filter::equals(entry, &request.atype, &request.val);
        Ok(result(if equal { LdapResultCode::CompareTrue } else { LdapResultCode::CompareFalse }, ""))
    }

    fn who_am_i(&self) -> LdapOp {
        let identity = self.identity.clone().unwrap_or_default();
        LdapOp::ExtendedResponse(LdapExtendedResponse {
            res: success(),
            name: None,
            value: Some(identity.into_bytes()),
        })
    }

    fn require_bind(&self) -> Result<(), LdapResult> {
        match self.identity {
            Some(_) => Ok(()),
            None => {
                Err(result(LdapResultCode::OperationsError, "00002020: Operation unavailable without authentication"))
            }
        }
    }
}

fn messages(msgid: i32, operations: Vec<LdapOp>, controls: Vec<LdapControl>) -> Vec<LdapMsg> {
    let mut messages: Vec<_> = operations.into_iter().map(|operation| LdapMsg::new(msgid, operation)).collect();
    if let Some(last) = messages.last_mut() {
        last.ctrl = controls;
    }
    messages
}

/// The response that ends this kind of request; `None` for what has no response.
fn final_response(request: &LdapOp, result: LdapResult) -> Option<LdapOp> {
    Some(match request {
        LdapOp::BindRequest(_) => LdapOp::BindResponse(LdapBindResponse { res: result, saslcreds: None }),
        LdapOp::SearchRequest(_) => LdapOp::SearchResultDone(result),
        LdapOp::ModifyRequest(_) => LdapOp::ModifyResponse(result),
        LdapOp::AddRequest(_) => LdapOp::AddResponse(result),
        LdapOp::DelRequest(_) => LdapOp::DelResponse(result),
        LdapOp::ModifyDNRequest(_) => LdapOp::ModifyDNResponse(result),
        LdapOp::CompareRequest(_) => LdapOp::CompareResult(result),
        LdapOp::ExtendedRequest(_) => {
            LdapOp::ExtendedResponse(LdapExtendedResponse { res: result, name: None, value: None })
        }
        _ => return None,
    })
}

fn is_unknown_and_critical(control: &LdapControl) -> bool {
    match control {
        LdapControl::Unknown { criticality, .. } => *criticality && !asks_for_domain_scope(control),
        LdapControl::SyncRequest { criticality, .. }
        | LdapControl::ManageDsaIT { criticality }
        | LdapControl::PasswordPolicyRequest { criticality }
        | LdapControl::SearchOptions { criticality, .. }
        | LdapControl::ShowDeleted { criticality }
        | LdapControl::SdFlags { criticality, .. }
        | LdapControl::ExtendedDn { criticality, .. } => *criticality,
        // Decoding loses its criticality; without DirSync's own answer its client can't go on.
        LdapControl::AdDirsync { .. } => true,
        _ => false,
    }
}

fn asks_for_domain_scope(control: &LdapControl) -> bool {
    matches!(control, LdapControl::Unknown { oid, .. } if oid == oid::DOMAIN_SCOPE)
}

fn sort_keys(control: &LdapControl) -> Option<&[SortKey]> {
    match control {
        LdapControl::ServerSort { sort_requests } => Some(sort_requests),
        _ => None,
    }
}

fn paged_results(control: &LdapControl) -> Option<(i64, &[u8])> {
    match control {
        LdapControl::SimplePagedResults { size, cookie } => Some((*size, cookie)),
        _ => None,
    }
}

fn parse_name(name: &str) -> Result<Dn, LdapResult> {
    Dn::parse(name)
        .map_err(|error| result(LdapResultCode::InvalidDNSyntax, format!("00002032: invalid DN '{name}': {error}")))
}

fn result(code: LdapResultCode, message: impl Into<String>) -> LdapResult {
    LdapResult { code, matcheddn: String::new(), message: message.into(), referral: Vec::new() }
}

fn success() -> LdapResult {
    result(LdapResultCode::Success, "")
}

fn no_such_object(name: &str, matched: &str) -> LdapResult {
    let refusal = result(LdapResultCode::NoSuchObject, format!("00002030: No such Base DN: {name}"));
    LdapResult { matcheddn: matched.to_owned(), ..refusal }
}

/// In AD's words, which clients and the proxy's metrics read the sub-code from.
fn invalid_credentials(refusal: BindRefusal) -> LdapResult {
    let sub_code = refusal.sub_code();
    result(
        LdapResultCode::InvalidCredentials,
        format!("80090308: LdapErr: DSID-0C0903A9, comment: AcceptSecurityContext error, data {sub_code}, v1db1"),
    )
}

fn cookie_refused(refusal: CookieRefusal) -> LdapResult {
    match refusal {
        CookieRefusal::Unknown => {
            result(LdapResultCode::UnwillingToPerform, "the paging cookie is not this connection's")
        }
        CookieRefusal::OtherSearch => {
            result(LdapResultCode::UnavailableCriticalExtension, "the paging cookie belongs to another search")
        }
    }
}

#[cfg(test)]
mod tests;
