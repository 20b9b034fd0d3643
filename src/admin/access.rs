//! Who may change state. Pure.
//!
//! The Unix socket's own permissions decide there. Over TCP a change needs the token of `token_file`, and a request that
//! a browser sends has to come from a page of this very server, called by an address or by the machine's own name: the
//! token alone would do, the rest keeps a foreign page from trying.
//!
//! The page and the API tell who is connected, so they too answer only to such a name: a foreign page whose own name is
//! made to resolve to this address (DNS rebinding) learns nothing. `/metrics`, `/healthz` and `/readyz`, which name no
//! client, answer to any, since scrapers and balancers call them by names only the network knows.

use std::net::{IpAddr, SocketAddr};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use axum::http::{HeaderMap, HeaderName, StatusCode, header};

/// Why a change is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Denied {
    /// No `token_file` is set.
    ReadOnly,
    /// The token is missing or wrong.
    Token,
    /// The request comes from another site's page.
    Origin,
    /// The request calls this server by a name that isn't its own.
    Host,
}

impl Denied {
    /// The HTTP status and what to do about it.
    pub(super) fn response(self) -> (StatusCode, &'static str) {
        match self {
            Self::ReadOnly => (
                StatusCode::FORBIDDEN,
                "this address is read-only: use the Unix socket, or set `token_file` in [admin]",
            ),
            Self::Token => {
                (StatusCode::UNAUTHORIZED, "send `Authorization: Bearer TOKEN` with the token of `token_file`")
            }
            Self::Origin => (StatusCode::FORBIDDEN, "changes are taken only from this server's own page"),
            Self::Host => (
                StatusCode::FORBIDDEN,
                "call this server by its IP address, as localhost, or by the name that `hostname` prints",
            ),
        }
    }
}

/// Judges a request over TCP that would change state. `token` is that of `token_file`, `host_name` the machine's own.
pub(super) fn authorize(headers: &HeaderMap, token: Option<&[u8]>, host_name: &str) -> Result<(), Denied> {
    let token = token.ok_or(Denied::ReadOnly)?;
    let host = only(headers, header::HOST).ok_or(Denied::Host)?;
    if !is_own_host(host, host_name) {
        return Err(Denied::Host);
    }
    if headers.contains_key(header::ORIGIN)
        && only(headers, header::ORIGIN).and_then(|origin| origin.strip_prefix("http://")) != Some(host)
    {
        return Err(Denied::Origin);
    }
    let given =
        only(headers, header::AUTHORIZATION).and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
    verify_slices_are_equal(given.as_bytes(), token).map_err(|_| Denied::Token)
}

/// Judges a request over TCP that reads what names clients. One without a `Host` is from no browser.
pub(super) fn authorize_reading(headers: &HeaderMap, host_name: &str) -> Result<(), Denied> {
    let is_own = only(headers, header::HOST).is_some_and(|host| is_own_host(host, host_name));
    if is_own || !headers.contains_key(header::HOST) { Ok(()) } else { Err(Denied::Host) }
}

/// The value of a header that is there exactly once, as text.
fn only(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    if values.next().is_some() { None } else { value.to_str().ok() }
}

/// Whether a `Host` value is an address, `localhost`, or the machine's name, whole or without its domain. Under another domain
/// it is no longer ours: in a cloud the first label follows from the address, and whoever has a domain can put it there.
fn is_own_host(host: &str, host_name: &str) -> bool {
    if host.parse::<SocketAddr>().is_ok() || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok() {
        return true;
    }
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let short = host_name.split('.').next().unwrap_or_default();
    let own = ["localhost", host_name, short];
    own.iter().any(|own| !own.is_empty() && name.eq_ignore_ascii_case(own))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn judge(headers: &[(HeaderName, &'static str)], token: Option<&str>) -> Result<(), Denied> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(name, HeaderValue::from_static(value));
        }
        authorize(&map, token.map(str::as_bytes), "proxy1")
    }

    const HOST: (HeaderName, &str) = (header::HOST, "127.0.0.1:9636");
    const TOKEN: (HeaderName, &str) = (header::AUTHORIZATION, "Bearer secret");

    #[test]
    fn without_a_token_file_tcp_is_read_only() {
        assert_eq!(judge(&[HOST, TOKEN], None), Err(Denied::ReadOnly));
    }

    #[test]
    fn the_token_has_to_be_the_whole_token_once() {
        assert_eq!(judge(&[HOST, TOKEN], Some("secret")), Ok(()));
        for bad in ["Bearer secre", "Bearer secrets", "Bearer ", "secret", "Basic secret", "Bearer  secret"] {
            assert_eq!(judge(&[HOST, (header::AUTHORIZATION, bad)], Some("secret")), Err(Denied::Token), "{bad}");
        }
        assert_eq!(judge(&[HOST], Some("secret")), Err(Denied::Token));
        assert_eq!(judge(&[HOST, TOKEN, TOKEN], Some("secret")), Err(Denied::Token));
    }

    #[test]
    fn a_browser_has_to_come_from_our_own_page() {
        assert_eq!(judge(&[HOST, TOKEN, (header::ORIGIN, "http://127.0.0.1:9636")], Some("secret")), Ok(()));
        for foreign in ["http://evil.example", "http://127.0.0.1:80", "https://127.0.0.1:9636", "null"] {
            let request = [HOST, TOKEN, (header::ORIGIN, foreign)];
            assert_eq!(judge(&request, Some("secret")), Err(Denied::Origin), "{foreign}");
        }
    }

    #[test]
    fn the_host_has_to_be_this_machine() {
        for own in ["127.0.0.1", "10.0.0.5:9636", "[::1]:9636", "[::1]", "localhost:9636", "proxy1", "PROXY1:80"] {
            assert_eq!(judge(&[(header::HOST, own), TOKEN], Some("secret")), Ok(()), "{own}");
        }
        for foreign in ["evil.example:9636", "proxy1evil", "127.0.0.1.evil.example", ""] {
            assert_eq!(judge(&[(header::HOST, foreign), TOKEN], Some("secret")), Err(Denied::Host), "{foreign}");
        }
        assert_eq!(judge(&[TOKEN], Some("secret")), Err(Denied::Host));
        assert_eq!(judge(&[HOST, HOST, TOKEN], Some("secret")), Err(Denied::Host));
    }

    /// The names of a cloud's machines can be guessed: that the first label fits lets no foreign domain in.
    #[test]
    fn a_whole_name_is_ours_under_our_domain_only() {
        let whole = "ip-10-0-0-5.eu-west-1.compute.internal";
        for own in [whole, "IP-10-0-0-5.eu-west-1.compute.internal:9636", "ip-10-0-0-5", "ip-10-0-0-5:9636"] {
            assert!(is_own_host(own, whole), "{own}");
        }
        for foreign in ["ip-10-0-0-5.evil.example", "ip-10-0-0-5.evil.example:9636", "ip-10-0-0-5.", "evil.example", ""]
        {
            assert!(!is_own_host(foreign, whole) && !is_own_host(foreign, "ip-10-0-0-5"), "{foreign}");
        }
        assert!(!is_own_host(whole, "ip-10-0-0-5"), "who doesn't know its domain takes none for its own");
        assert!(!is_own_host("", "") && !is_own_host(":9636", ""));
    }

    #[test]
    fn who_reads_calls_this_machine_by_its_own_name_too() {
        let read = |hosts: &[&'static str]| {
            let mut map = HeaderMap::new();
            for host in hosts {
                map.append(header::HOST, HeaderValue::from_static(host));
            }
            authorize_reading(&map, "proxy1")
        };
        for own in [&["127.0.0.1:9636"][..], &["localhost:9636"], &["proxy1:9636"], &[]] {
            assert_eq!(read(own), Ok(()), "{own:?}");
        }
        for foreign in [&["rebound.example:9636"][..], &["127.0.0.1", "rebound.example"], &[""]] {
            assert_eq!(read(foreign), Err(Denied::Host), "{foreign:?}");
        }
    }
}
