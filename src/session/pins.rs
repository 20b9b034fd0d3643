//! What ties a session to its backend beside its bind: state that no other backend has. Pure.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::Duration;

use tokio::time::Instant;

use crate::ldap::{Request, oid};

/// Why a session can't move to another backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pin {
    /// A SASL bind, finished or under way, or a simple bind that may not be replayed.
    Bind,
    /// A paged search the client may continue: its cookie belongs to the backend (RFC 2696).
    Paging,
    /// A virtual list view's context.
    VirtualListView,
    /// A DirSync or content synchronisation cookie.
    Synchronisation,
    /// A change notification that is running.
    Notification,
    /// The client compares update sequence numbers, which each DC counts by itself.
    UpdateSequence,
    /// A write that other backends may not have seen yet.
    RecentWrite,
}

/// The page a search asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Page {
    /// The first one.
    First,
    /// The one after the page whose cookie has this digest.
    After(u64),
}

/// What one session has tied itself to.
#[derive(Debug, Default)]
pub struct Pins {
    /// Digests of the cookies by which the client may go on, oldest first.
    cookies: VecDeque<u64>,
    lasting: Option<Pin>,
    last_write: Option<Instant>,
}

impl Pins {
    /// Samba itself forgets all but the ten newest paged searches of a connection.
    const MOST_COOKIES: usize = 10;

    /// Notes what a search asks for. Returns the page, if it asks for one.
    pub fn search(&mut self, request: &Request<'_>) -> Option<Page> {
        if mentions_update_sequence(request.search_without_base()) {
            self.lasting = Some(Pin::UpdateSequence);
        }
        if request.has_controls() { self.controls(request) } else { None }
    }

    fn controls(&mut self, request: &Request<'_>) -> Option<Page> {
        let mut page = None;
        for control in request.controls() {
            match std::str::from_utf8(control.oid).unwrap_or_default() {
                oid::PAGED_RESULTS => {
                    page = Some(control.paging_cookie().map_or(Page::First, |c| Page::After(digest(c))))
                }
                oid::VIRTUAL_LIST_VIEW => self.lasting = Some(Pin::VirtualListView),
                oid::DIR_SYNC | oid::CONTENT_SYNC => self.lasting = Some(Pin::Synchronisation),
                oid::NOTIFICATION | oid::PERSISTENT_SEARCH => self.lasting = Some(Pin::Notification),
                _ => {}
            }
        }
        page
    }

    /// Notes the result of a paged search: the cookie asked with is used up, the one given opens.
    pub fn paged(&mut self, page: Page, cookie: Option<&[u8]>) {
        if let Page::After(used) = page {
            self.cookies.retain(|open| *open != used);
        }
        if let Some(cookie) = cookie {
            if self.cookies.len() == Self::MOST_COOKIES {
                self.cookies.pop_front();
            }
            self.cookies.push_back(digest(cookie));
        }
    }

    /// Notes a write that succeeded.
    pub fn wrote(&mut self, now: Instant) {
        self.last_write = Some(now);
    }

    /// Why the session can't move now, if it can't.
    pub fn pin(&self, now: Instant, write_affinity: Duration) -> Option<Pin> {
        let recent_write = self.last_write.is_some_and(|write| now < write + write_affinity);
        self.lasting
            .or_else(|| (!self.cookies.is_empty()).then_some(Pin::Paging))
            .or_else(|| recent_write.then_some(Pin::RecentWrite))
    }

    /// A bind has made the backend forget what it kept for the session. A recent write stays: whoever the session is now,
    /// other backends may not have it yet.
    pub fn rebound(&mut self) {
        *self = Self { last_write: self.last_write, ..Self::default() };
    }
}

fn digest(cookie: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    cookie.hash(&mut hasher);
    hasher.finish()
}

/// Whether a search names `uSNChanged` or `highestCommittedUSN`, in its filter or among its attributes.
#[inline]
fn mentions_update_sequence(search: &[u8]) -> bool {
    holds_usn(search) && names_update_sequence(search)
}

/// Whether `usn` stands anywhere, in any case. It is asked of every search, so sixteen places are looked at together.
#[inline]
fn holds_usn(octets: &[u8]) -> bool {
    const TOGETHER: usize = 16;
    let stands_at = |place: &[u8]| (place[0] | 0x20 == b'u') & (place[1] | 0x20 == b's') & (place[2] | 0x20 == b'n');
    let stands_in =
        |places: &[u8; TOGETHER + 2]| (0..TOGETHER).fold(false, |found, at| found | stands_at(&places[at..at + 3]));
    let mut rest = octets;
    while let Some(places) = rest.first_chunk() {
        if stands_in(places) {
            return true;
        }
        rest = &rest[TOGETHER..];
    }
    octets.last_chunk().map_or_else(|| rest.windows(3).any(stands_at), stands_in)
}

#[cold]
fn names_update_sequence(search: &[u8]) -> bool {
    let is_named = |name: &[u8]| search.windows(name.len()).any(|place| place.eq_ignore_ascii_case(name));
    is_named(b"uSNChanged") || is_named(b"highestCommittedUSN")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const AFFINITY: Duration = Duration::from_secs(30);

    #[test]
    fn update_sequence_readers() {
        for (search, expected) in [
            (&b"..\x04\x0ausnchanged"[..], true),
            (b"uSNChanged", true),
            (b"\x04\x13highestCommittedUSN.", true),
            (b"HIGHESTCOMMITTEDUSN", true),
            (b"USNChange", false),
            (b"CommittedUSN", false),
            (b"cn=users,dc=corp", false),
            (b"", false),
        ] {
            assert_eq!(mentions_update_sequence(search), expected, "{search:?}");
        }
    }

    proptest! {
        #[test]
        fn usn_is_found_as_one_by_one(octets in prop::collection::vec(prop::sample::select(&b"uUsSnN\x04"[..]), 0..70)) {
            prop_assert_eq!(holds_usn(&octets), octets.windows(3).any(|place| place.eq_ignore_ascii_case(b"usn")));
        }
    }

    #[test]
    fn usn_is_found_wherever_it_stands() {
        for length in 3..60 {
            for at in 0..=length - 3 {
                let mut octets = vec![b'u'; length];
                octets[at..at + 3].copy_from_slice(b"UsN");
                assert!(holds_usn(&octets), "at {at} of {length}");
                octets[at + 1] = b'u';
                assert!(!holds_usn(&octets), "not at {at} of {length}");
            }
        }
    }

    #[test]
    fn rule_30_a_paging_cookie_pins_until_its_last_page() {
        let now = Instant::now();
        let mut pins = Pins::default();
        pins.paged(Page::First, Some(b"a"));
        assert_eq!(pins.pin(now, AFFINITY), Some(Pin::Paging));
        pins.paged(Page::After(digest(b"a")), Some(b"b"));
        assert_eq!(pins.cookies.len(), 1);
        pins.paged(Page::After(digest(b"b")), None);
        assert_eq!(pins.pin(now, AFFINITY), None);
    }

    #[test]
    fn two_paged_searches_interleave_and_their_number_is_bounded() {
        let mut pins = Pins::default();
        pins.paged(Page::First, Some(b"a"));
        pins.paged(Page::First, Some(b"b"));
        pins.paged(Page::After(digest(b"a")), None);
        assert_eq!(pins.cookies, [digest(b"b")]);
        for n in 0..100_u32 {
            pins.paged(Page::First, Some(&n.to_be_bytes()));
        }
        assert_eq!(pins.cookies.len(), Pins::MOST_COOKIES);
    }

    #[test]
    fn a_write_pins_for_a_while() {
        let now = Instant::now();
        let mut pins = Pins::default();
        pins.wrote(now);
        assert_eq!(pins.pin(now + AFFINITY / 2, AFFINITY), Some(Pin::RecentWrite));
        assert_eq!(pins.pin(now + AFFINITY, AFFINITY), None);
    }

    #[test]
    fn a_bind_frees_from_all_but_a_recent_write() {
        let now = Instant::now();
        let mut pins = Pins { lasting: Some(Pin::UpdateSequence), ..Pins::default() };
        pins.paged(Page::First, Some(b"a"));
        pins.rebound();
        assert_eq!(pins.pin(now, AFFINITY), None);
        pins.wrote(now);
        pins.rebound();
        assert_eq!(pins.pin(now, AFFINITY), Some(Pin::RecentWrite));
    }
}
