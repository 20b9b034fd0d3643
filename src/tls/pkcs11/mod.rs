//! Private keys that stay in a token (an HSM) and sign there, through PKCS#11.
//!
//! `module` keeps the library and its sessions, `search` finds token and key, [`Token`] signs and gets over a token
//! that was away, `mechanism` knows what TLS and PKCS#11 call the same thing. rustls signs in the middle of a
//! handshake, and a token takes milliseconds or, when it is in trouble, seconds. [`Threads`] are where such handshakes
//! are made, so that no session waits for one.

mod error;
mod mechanism;
mod module;
mod search;
mod threads;
mod token;

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use rustls::sign::{Signer, SigningKey};
use rustls::{Error, SignatureAlgorithm, SignatureScheme};
use x509_parser::certificate::X509Certificate;

use super::Finding;
use crate::config::TokenKey;
use crate::metrics::Metrics;
use error::TokenError;
use mechanism::PublicKey;
pub(super) use threads::Threads;
use token::Token;

/// Where signatures are counted, once the metrics are known.
pub(super) type Measured = Arc<OnceLock<Arc<Metrics>>>;

impl KeyInToken {
    /// The key, which isn't looked for yet.
    ///
    /// # Errors
    /// No key of the certificate's type can be in a token, or the PIN is no text.
    pub(super) fn new(
        key: &TokenKey,
        pin: Option<&[u8]>,
        leaf: &X509Certificate<'_>,
        label: &str,
        measured: &Measured,
    ) -> Result<Arc<Self>, Finding> {
        let public_key = PublicKey::of(leaf).ok_or_else(|| {
            let help = "use RSA of 2048 to 8192 bits, ECDSA P-256 or P-384";
            Finding::error("private_key", "a key in a token can't be of this certificate's type", help)
        })?;
        let token = Token::new(key.clone(), pin, public_key).map_err(TokenError::into_finding)?;
        Ok(Arc::new(Self { token: Arc::new(token), label: label.into(), measured: Arc::clone(measured) }))
    }

    /// Looks the key up and lets it sign once, for the certificate that it must belong to.
    ///
    /// Waits for the token, [`PATIENCE`] at most; on a runtime of several threads, the others take over meanwhile.
    ///
    /// # Errors
    /// What keeps the key from signing, or that the signature isn't the certificate's.
    pub(super) fn prove(&self) -> Result<(), Finding> {
        let token = Arc::clone(&self.token);
        within_patience(move || token.prove()).map_err(TokenError::into_finding)
    }
}

/// A thread that the module never lets go is left behind: nothing can end it.
fn within_patience<T: Send + 'static>(
    ask: impl FnOnce() -> Result<T, TokenError> + Send + 'static,
) -> Result<T, TokenError> {
    let wait = || {
        let (answer, answered) = std::sync::mpsc::sync_channel(1);
        std::thread::spawn(move || {
            let _ = answer.send(ask());
        });
        answered.recv_timeout(PATIENCE).unwrap_or_else(|_| {
            let help = "see whether its daemon runs and the HSM can be reached";
            Err(TokenError::lost(format!("the PKCS#11 module gave no answer within {PATIENCE:?}"), help))
        })
    };
    match tokio::runtime::Handle::try_current() {
        Ok(runtime) if runtime.runtime_flavor() == tokio::runtime::RuntimeFlavor::MultiThread => {
            tokio::task::block_in_place(wait)
        }
        _ => wait(),
    }
}

const PATIENCE: Duration = Duration::from_secs(15);

/// A private key as rustls sees it.
#[derive(Debug, Clone)]
pub(super) struct KeyInToken {
    token: Arc<Token>,
    /// The certificate's name in the metrics.
    label: Arc<str>,
    measured: Measured,
}

impl SigningKey for KeyInToken {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        let scheme = *self.token.schemes().iter().find(|scheme| offered.contains(scheme))?;
        Some(Box::new(OneSignature { key: self.clone(), scheme }))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        self.token.public_key().algorithm()
    }
}

#[derive(Debug)]
struct OneSignature {
    key: KeyInToken,
    scheme: SignatureScheme,
}

impl Signer for OneSignature {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        let started = Instant::now();
        let signature = self.key.token.sign(self.scheme, message);
        if let Some(metrics) = self.key.measured.get() {
            metrics.token_signed(&self.key.label, started.elapsed(), signature.is_ok());
        }
        signature.map_err(|error| Error::General(error.to_string()))
    }

    fn scheme(&self) -> SignatureScheme {
        self.scheme
    }
}
