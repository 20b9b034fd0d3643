//! The small in-process directory behind `demo` and the tests.
//!
//! A [`Directory`] is a pure value: entries in memory, shaped as Samba 4 AD shows them, read-only. A [`Server`] answers LDAP
//! from it on a TCP port. In between, one conversation per connection holds what LDAP ties to a connection: who is bound, and
//! which paged searches are open.
//!
//! Where Samba and the RFCs differ it does what Samba 4.17 was seen to do, with these exceptions: it honours
//! sizeLimit and typesOnly, answers Who Am I? (RFC 4532), names the matched DN, and refuses an anonymous compare.

mod conversation;
mod corp;
mod directory;
mod dn;
mod entry;
mod filter;
mod paging;
mod root_dse;
mod server;
mod sorting;
mod value;

pub use corp::{ADMINISTRATOR_PASSWORD, USER_PASSWORD};
pub use directory::{Directory, Domain};
pub use dn::{Dn, InvalidDn};
pub use entry::Entry;
pub use server::Server;
