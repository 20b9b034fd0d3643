//! Stands in for `pkcs11` in a build without it: the configuration lets no key in a token through.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;

use rustls::sign::{Signer, SigningKey};
use rustls::{SignatureAlgorithm, SignatureScheme};
use x509_parser::certificate::X509Certificate;

use super::Finding;
use crate::config::TokenKey;

#[derive(Debug, Default)]
pub(super) struct Measured(());

#[derive(Debug)]
pub(super) struct Threads(Infallible);

impl Threads {
    pub(super) fn start(_: usize) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(super) async fn run<T>(&self, _: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        match self.0 {}
    }
}

#[derive(Debug)]
pub(super) struct KeyInToken(Infallible);

impl KeyInToken {
    pub(super) fn new(
        _: &TokenKey,
        _: Option<&[u8]>,
        _: &X509Certificate<'_>,
        _: &str,
        _: &Measured,
    ) -> Result<Arc<Self>, Finding> {
        Err(Finding::error("private_key", "this build can't use keys in tokens", "build it with --features pkcs11"))
    }

    pub(super) fn prove(&self) -> Result<(), Finding> {
        match self.0 {}
    }
}

impl SigningKey for KeyInToken {
    fn choose_scheme(&self, _: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        match self.0 {}
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        match self.0 {}
    }
}
