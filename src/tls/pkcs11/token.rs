//! One key: signs, and gets over a token that was away.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use cryptoki::context::Pkcs11;
use cryptoki::types::AuthPin;
use rustls::SignatureScheme;

use super::error::{Remedy, TokenError};
use super::mechanism::{PublicKey, input, mechanism, output};
use super::module::{Module, Opened};
use super::search;
use crate::config::TokenKey;

/// A private key in a token.
pub(super) struct Token {
    /// Tells its sessions from those of other keys of the module.
    number: u64,
    /// Loaded when it is first needed.
    module: OnceLock<Arc<Module>>,
    schemes: OnceLock<Vec<SignatureScheme>>,
    wanted: TokenKey,
    /// Wiped when dropped. Kept for the login after a token comes back.
    pin: Option<AuthPin>,
    public_key: PublicKey,
    turns: Turns,
    trouble: Mutex<Option<Trouble>>,
}

/// Why nothing is signed, and until when the token isn't asked. `None` is for ever, and about the PIN alone: no session is
/// opened with it any more.
struct Trouble {
    error: TokenError,
    until: Option<Instant>,
}

/// Between two looks at a token that is away. Handshakes fail at once meanwhile, instead of queueing for it.
const PAUSE: Duration = Duration::from_secs(2);

impl Token {
    /// The key, which isn't looked for yet.
    pub(super) fn new(wanted: TokenKey, pin: Option<&[u8]>, public_key: PublicKey) -> Result<Self, TokenError> {
        static NUMBERS: AtomicU64 = AtomicU64::new(0);
        Ok(Self {
            number: NUMBERS.fetch_add(1, Ordering::Relaxed),
            module: OnceLock::new(),
            schemes: OnceLock::new(),
            turns: Turns::new(wanted.sessions),
            pin: pin.map(auth_pin).transpose()?,
            wanted,
            public_key,
            trouble: Mutex::default(),
        })
    }

    /// Finds the key, and has it sign for `public_key`.
    pub(super) fn prove(&self) -> Result<(), TokenError> {
        let module = self.module()?;
        let look = || {
            let library = module.library();
            let _alone = module.opening();
            let (opened, mechanisms) = search::open(&library, &self.wanted, self.pin.as_ref(), &self.public_key)?;
            module.keep(self.number, opened);
            Ok(mechanisms)
        };
        let mechanisms = match look() {
            // A token that was plugged in after the module had started may need a restart to be seen.
            Err(TokenError { remedy: Remedy::Reconnect, .. }) => module.restart().and_then(|()| look()),
            other => other,
        }?;
        let schemes = self.schemes.get_or_init(|| self.public_key.schemes(|mechanism| mechanisms.contains(&mechanism)));
        let Some(scheme) = schemes.first() else {
            let message = "the token has none of the mechanisms that TLS signs with";
            return Err(TokenError::new("private_key", message, "see pkcs11-tool --list-mechanisms"));
        };
        let signature = self.sign(*scheme, TRIAL)?;
        if self.public_key.verifies(*scheme, TRIAL, &signature) {
            return Ok(());
        }
        let message = "the token's key doesn't match the certificate: it made a signature that doesn't verify";
        Err(TokenError::new("private_key", message, "name the key the certificate was issued for"))
    }

    /// Those it can make, best first; before it was found, those that such keys can.
    pub(super) fn schemes(&self) -> &[SignatureScheme] {
        self.schemes.get_or_init(|| self.public_key.schemes(|_| true))
    }

    pub(super) fn public_key(&self) -> &PublicKey {
        &self.public_key
    }

    /// A signature as TLS sends it. Blocks.
    pub(super) fn sign(&self, scheme: SignatureScheme, message: &[u8]) -> Result<Vec<u8>, TokenError> {
        let _turn = self.turns.take();
        self.after_trouble()?;
        let mut signed = self.sign_once(scheme, message);
        // Sessions end with the token, with its daemon and at the module's whim: a fresh one, then a fresh start.
        if is_lost(&signed) {
            self.close();
            signed = self.sign_once(scheme, message);
        }
        if is_lost(&signed) {
            signed = self.module().and_then(|module| module.restart()).and_then(|()| self.sign_once(scheme, message));
        }
        self.note(signed.as_ref().err());
        signed
    }

    fn sign_once(&self, scheme: SignatureScheme, message: &[u8]) -> Result<Vec<u8>, TokenError> {
        let module = self.module()?;
        let library = module.library();
        let opened = match module.take(self.number) {
            Some(opened) => opened,
            None => self.open(module, &library)?,
        };
        let signature = opened.session.sign(&mechanism(scheme), opened.key, &input(scheme, message))?;
        module.keep(self.number, opened);
        Ok(output(scheme, signature))
    }

    fn open(&self, module: &Module, library: &Pkcs11) -> Result<Opened, TokenError> {
        let _alone = module.opening();
        if let Some(Trouble { error, until: None }) = &*self.trouble() {
            return Err(error.clone());
        }
        let opened = search::open(library, &self.wanted, self.pin.as_ref(), &self.public_key);
        // At once: others wait here who passed `after_trouble` before there was any.
        if let Some(refused) = opened.as_ref().err().filter(|error| error.remedy == Remedy::NewPin) {
            self.note(Some(refused));
        }
        opened.map(|(opened, _mechanisms)| opened)
    }

    /// The standing error, unless it is this caller's turn to look again.
    fn after_trouble(&self) -> Result<(), TokenError> {
        match &mut *self.trouble() {
            Some(Trouble { until: Some(until), .. }) if *until <= Instant::now() => *until = Instant::now() + PAUSE,
            Some(Trouble { error, until: Some(_) }) => return Err(error.clone()),
            // A session that is there may sign all the same.
            Some(Trouble { until: None, .. }) | None => {}
        }
        Ok(())
    }

    fn note(&self, error: Option<&TokenError>) {
        let mut trouble = self.trouble();
        if matches!(&*trouble, Some(Trouble { until: None, .. })) {
            // A PIN stays refused, whatever sessions from before still sign.
            return;
        }
        let until = match error.map(|error| error.remedy) {
            None => {
                if trouble.take().is_some() {
                    tracing::info!(key = %self.wanted.uri, "the token signs again");
                }
                return;
            }
            Some(Remedy::None) => return,
            Some(Remedy::Reconnect) => Some(Instant::now() + PAUSE),
            Some(Remedy::NewPin) => None,
        };
        let error = error.expect("only errors have a remedy").clone();
        if trouble.is_none() {
            tracing::error!(key = %self.wanted.uri, %error, "the token doesn't sign: handshakes fail");
        }
        *trouble = Some(Trouble { error, until });
    }

    fn module(&self) -> Result<&Arc<Module>, TokenError> {
        if let Some(module) = self.module.get() {
            return Ok(module);
        }
        let path = self.wanted.module.as_deref().expect("the configuration wants a module for every key in a token");
        let module = Module::load(path)?;
        Ok(self.module.get_or_init(|| module))
    }

    /// Ends its sessions.
    fn close(&self) {
        if let Some(module) = self.module.get() {
            module.close(self.number);
        }
    }

    fn trouble(&self) -> MutexGuard<'_, Option<Trouble>> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({})", self.wanted.uri)
    }
}

const TRIAL: &[u8] = b"ldaps-proxy: does this key belong to the certificate?";

fn is_lost<T>(signed: &Result<T, TokenError>) -> bool {
    signed.as_ref().is_err_and(|error| error.remedy == Remedy::Reconnect)
}

/// PKCS#11 2.40 and later have PINs in UTF-8.
fn auth_pin(pin: &[u8]) -> Result<AuthPin, TokenError> {
    let text = std::str::from_utf8(pin);
    text.map(|text| AuthPin::from(Box::<str>::from(text))).map_err(|_| TokenError::pin("the PIN isn't UTF-8 text"))
}

/// A semaphore for threads: so many signatures at a time.
struct Turns {
    free: Mutex<usize>,
    freed: Condvar,
}

impl Turns {
    fn new(count: usize) -> Self {
        Self { free: Mutex::new(count), freed: Condvar::new() }
    }

    fn take(&self) -> Turn<'_> {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        *self.freed.wait_while(free, |free| *free == 0).unwrap_or_else(PoisonError::into_inner) -= 1;
        Turn(self)
    }
}

struct Turn<'a>(&'a Turns);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *self.0.free.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.0.freed.notify_one();
    }
}
