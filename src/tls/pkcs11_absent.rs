//! Stands in for `pkcs11` in a build without it: the configuration lets no key in a token through.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;

use rustls::sign::SigningKey;
use x509_parser::certificate::X509Certificate;

use super::Finding;
use crate::config::TokenKey;

pub(super) type Measured = ();

#[derive(Debug)]
pub(super) struct Threads(Infallible);

impl Threads {
    pub(super) fn start(_: usize) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(super) async fn run<T>(&self, _: impl Future<Output = io::Result<T>>) -> io::Result<T> {
        match self.0 {}
    }
}

pub(super) fn open(
    _: &TokenKey,
    _: Option<&[u8]>,
    _: &X509Certificate<'_>,
    _: &str,
    (): &Measured,
) -> Result<Arc<dyn SigningKey>, Finding> {
    Err(Finding::error("private_key", "this build can't use keys in tokens", "build it with --features pkcs11"))
}
