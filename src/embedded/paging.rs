//! Paged searches (RFC 2696) that a connection has open.

use std::collections::VecDeque;

use ldap3_proto::proto::LdapSearchRequest;

/// How many paged searches a connection may have open; the oldest gives way, as in Samba.
const MAX_OPEN: usize = 10;

/// The paged searches of one connection.
pub(super) struct PagedSearches {
    connection: u64,
    issued: u64,
    open: VecDeque<PagedSearch>,
}

struct PagedSearch {
    cookie: Vec<u8>,
    request: LdapSearchRequest,
    sent: usize,
}

/// Why a cookie was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CookieRefusal {
    /// This connection hasn't issued it, or has used or dropped it since.
    Unknown,
    /// It belongs to another search.
    OtherSearch,
}

impl PagedSearches {
    /// `connection` differs from that of any other connection in the process: so do the cookies.
    pub(super) fn new(connection: u64) -> Self {
        Self { connection, issued: 0, open: VecDeque::new() }
    }

    /// How many entries of the search have been sent already. The cookie is used up.
    pub(super) fn resume(&mut self, cookie: &[u8], request: &LdapSearchRequest) -> Result<usize, CookieRefusal> {
        if cookie.is_empty() {
            return Ok(0);
        }
        let place = self.open.iter().position(|search| search.cookie == cookie).ok_or(CookieRefusal::Unknown)?;
        let search = self.open.remove(place).ok_or(CookieRefusal::Unknown)?;
        if search.request == *request { Ok(search.sent) } else { Err(CookieRefusal::OtherSearch) }
    }

    /// Keeps the search open and returns the cookie that resumes it after `sent` entries.
    pub(super) fn suspend(&mut self, request: LdapSearchRequest, sent: usize) -> Vec<u8> {
        if self.open.len() == MAX_OPEN {
            self.open.pop_front();
        }
        self.issued += 1;
        let cookie = format!("{}.{}", self.connection, self.issued).into_bytes();
        self.open.push_back(PagedSearch { cookie: cookie.clone(), request, sent });
        cookie
    }

    /// Drops them all: a bind ends what the former identity began.
    pub(super) fn clear(&mut self) {
        self.open.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ldap3_proto::proto::LdapDerefAliases;
    use ldap3_proto::{LdapFilter, LdapSearchScope};

    fn request(attribute: &str) -> LdapSearchRequest {
        LdapSearchRequest {
            base: String::new(),
            scope: LdapSearchScope::Subtree,
            aliases: LdapDerefAliases::Never,
            sizelimit: 0,
            timelimit: 0,
            typesonly: false,
            filter: LdapFilter::Present(attribute.to_owned()),
            attrs: vec![],
        }
    }

    #[test]
    fn a_cookie_resumes_its_search_once() {
        let mut searches = PagedSearches::new(1);
        assert_eq!(searches.resume(b"", &request("cn")), Ok(0));
        let (first, second) = (searches.suspend(request("cn"), 3), searches.suspend(request("sn"), 5));
        assert_eq!(searches.resume(&second, &request("sn")), Ok(5));
        assert_eq!(searches.resume(&first, &request("cn")), Ok(3));
        assert_eq!(searches.resume(&first, &request("cn")), Err(CookieRefusal::Unknown));
    }

    #[test]
    fn a_cookie_is_refused_elsewhere() {
        let (mut one, mut other) = (PagedSearches::new(1), PagedSearches::new(2));
        let cookie = one.suspend(request("cn"), 3);
        other.suspend(request("cn"), 3);
        assert_eq!(other.resume(&cookie, &request("cn")), Err(CookieRefusal::Unknown));
        assert_eq!(one.resume(&cookie, &request("sn")), Err(CookieRefusal::OtherSearch));
    }

    #[test]
    fn the_oldest_gives_way() {
        let mut searches = PagedSearches::new(1);
        let oldest = searches.suspend(request("cn"), 1);
        let kept: Vec<_> = (0..MAX_OPEN).map(|sent| searches.suspend(request("cn"), sent)).collect();
        assert_eq!(searches.resume(&oldest, &request("cn")), Err(CookieRefusal::Unknown));
        assert_eq!(searches.resume(&kept[0], &request("cn")), Ok(0));
        searches.clear();
        assert_eq!(searches.resume(&kept[1], &request("cn")), Err(CookieRefusal::Unknown));
    }
}
