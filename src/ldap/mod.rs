//! LDAP on the wire: framing, classification, replies. Pure: no sockets, no clock.
//!
//! The proxy reads only what it must and forwards the bytes it received: clients and AD send long-form lengths, unknown
//! controls and result codes that a decode-then-encode would change or lose. `ldap3_proto` builds what the proxy itself
//! says ([`reply`]).

pub mod ber;
pub mod dn;
mod frame;
mod operation;
pub mod reply;
mod request;
mod response;
mod result_code;

pub use frame::{Envelope, FrameError, MessageId, envelope};
pub use operation::OperationKind;
pub use request::{Authentication, BindRequest, Control, Controls, Request, SearchRequest, until_nul};
pub use response::{LdapResult, Response, ResponseKind};
pub use result_code::ResultCode;

/// Object identifiers the proxy knows by name.
pub mod oid {
    /// RFC 4511 §4.14.1
    pub const START_TLS: &str = "1.3.6.1.4.1.1466.20037";
    /// RFC 4511 §4.4.1
    pub const NOTICE_OF_DISCONNECTION: &str = "1.3.6.1.4.1.1466.20036";
    /// RFC 3062
    pub const PASSWORD_MODIFY: &str = "1.3.6.1.4.1.4203.1.11.1";
    /// RFC 4532
    pub const WHO_AM_I: &str = "1.3.6.1.4.1.4203.1.11.3";
    /// RFC 2696
    pub const PAGED_RESULTS: &str = "1.2.840.113556.1.4.319";
    /// draft-ietf-ldapext-ldapv3-vlv
    pub const VIRTUAL_LIST_VIEW: &str = "2.16.840.1.113730.3.4.9";
    /// RFC 2891
    pub const SERVER_SORT: &str = "1.2.840.113556.1.4.473";
    /// RFC 3296
    pub const MANAGE_DSA_IT: &str = "2.16.840.1.113730.3.4.2";
    /// MS-ADTS: LDAP_SERVER_DIRSYNC_OID
    pub const DIR_SYNC: &str = "1.2.840.113556.1.4.841";
    /// MS-ADTS: LDAP_SERVER_NOTIFICATION_OID
    pub const NOTIFICATION: &str = "1.2.840.113556.1.4.528";
    /// MS-ADTS: LDAP_SERVER_EXTENDED_DN_OID
    pub const EXTENDED_DN: &str = "1.2.840.113556.1.4.529";
    /// MS-ADTS: LDAP_SERVER_SHOW_DELETED_OID
    pub const SHOW_DELETED: &str = "1.2.840.113556.1.4.417";
    /// MS-ADTS: LDAP_SERVER_SEARCH_OPTIONS_OID
    pub const SEARCH_OPTIONS: &str = "1.2.840.113556.1.4.1340";
    /// MS-ADTS: LDAP_SERVER_DOMAIN_SCOPE_OID
    pub const DOMAIN_SCOPE: &str = "1.2.840.113556.1.4.1339";
    /// MS-ADTS: LDAP_SERVER_SD_FLAGS_OID
    pub const SD_FLAGS: &str = "1.2.840.113556.1.4.801";
    /// RFC 4533
    pub const CONTENT_SYNC: &str = "1.3.6.1.4.1.4203.1.9.1.1";
    /// draft-ietf-ldapext-psearch
    pub const PERSISTENT_SEARCH: &str = "2.16.840.1.113730.3.4.3";
}
