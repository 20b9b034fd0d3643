//! TLS: what is served to clients ([`ServerTls`]), what is asked of backends ([`UpstreamTls`]), and the certificates.
//!
//! A certificate's way in: `pem` reads the files, `import` puts body, chain and key together, [`lint`](fn@lint) judges
//! them, `resolver` offers them to clients by name and key type. [`FileWatcher`] says when to do it again.
//! After a handshake, [`Handshake`] says what was agreed; when there is none, [`HandshakeFailure`] says why.
//!
//! The crypto provider is aws-lc-rs, passed explicitly everywhere: no process-wide default is ever installed.

mod certificate;
mod chain;
mod client_auth;
mod failure;
mod finding;
mod handshake;
mod hello;
mod import;
mod lint;
mod pem;
#[cfg(feature = "pkcs11")]
mod pkcs11;
#[cfg(not(feature = "pkcs11"))]
#[path = "pkcs11_absent.rs"]
mod pkcs11;
mod policy;
mod resolver;
mod served;
mod server;
#[cfg(test)]
mod server_tests;
mod stream;
#[cfg(test)]
mod testing;
mod tickets;
mod upstream;
mod watch;

pub use certificate::{CertificateInfo, replacements};
pub use failure::HandshakeFailure;
pub use finding::{Finding, Severity};
pub use handshake::Handshake;
pub use lint::{EXPIRY_WARNING, lint};
pub use rustls_pki_types::UnixTime;
pub use served::{Served, remind_of_expiry};
pub use server::try_token;
pub use server::{Loaded, ServerTls};
pub use stream::ServerStream;
pub use upstream::UpstreamTls;
pub use watch::{FileWatcher, Snapshot};
