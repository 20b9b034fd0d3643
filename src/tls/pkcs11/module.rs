//! A PKCS#11 library: loaded once, never unloaded, its sessions kept for the next signature.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::object::ObjectHandle;
use cryptoki::session::Session;

use super::error::TokenError;

/// A loaded library, which a process may have initialized only once, whoever uses it.
pub(super) struct Module {
    path: PathBuf,
    /// Read by every call into the library, written by [`Self::restart`] alone: C_Finalize while another thread is in
    /// the library is undefined behaviour (PKCS#11 3.0 §5.4).
    library: RwLock<Pkcs11>,
    /// Sessions nobody signs with, by their key's number.
    idle: Mutex<HashMap<u64, Vec<Opened>>>,
    opening: Mutex<()>,
}

/// A session that is logged in, and the key in it.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) session: Session,
    pub(super) key: ObjectHandle,
}

impl Module {
    /// The module at `path`, loaded and initialized where it wasn't yet.
    pub(super) fn load(path: &Path) -> Result<Arc<Self>, TokenError> {
        static MODULES: Mutex<BTreeMap<PathBuf, Arc<Module>>> = Mutex::new(BTreeMap::new());
        let mut modules = MODULES.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(module) = modules.get(path) {
            return Ok(Arc::clone(module));
        }
        let library = Pkcs11::new(path).map_err(|error| {
            let help = "name the library of the HSM's maker, such as /usr/lib/softhsm/libsofthsm2.so";
            TokenError::new("pkcs11_module", format!("{} is no PKCS#11 module: {error}", path.display()), help)
        })?;
        initialize(&library)?;
        let module = Self {
            path: path.into(),
            library: RwLock::new(library),
            idle: Mutex::default(),
            opening: Mutex::default(),
        };
        let module = Arc::new(module);
        modules.insert(path.into(), Arc::clone(&module));
        Ok(module)
    }

    /// The library, which isn't restarted while the guard lives.
    pub(super) fn library(&self) -> RwLockReadGuard<'_, Pkcs11> {
        self.library.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The right to open sessions and to log in, which one has at a time: whoever is next must know what became of the PIN.
    pub(super) fn opening(&self) -> MutexGuard<'_, ()> {
        self.opening.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session from [`Self::keep`]. Hold [`Self::library`] from here to there.
    pub(super) fn take(&self, key: u64) -> Option<Opened> {
        self.idle().get_mut(&key)?.pop()
    }

    /// Keeps a session for the key's next signature.
    pub(super) fn keep(&self, key: u64, opened: Opened) {
        self.idle().entry(key).or_default().push(opened);
    }

    /// Closes a key's sessions.
    pub(super) fn close(&self, key: u64) {
        // A restart closes them all; who drops a key needn't wait for that.
        let Ok(_library) = self.library.try_read() else { return };
        let closing = self.idle().remove(&key);
        drop(closing);
    }

    /// Finalizes and initializes the library, which forgets all sessions and looks for its tokens anew; not while
    /// another thread is in it.
    pub(super) fn restart(&self) -> Result<(), TokenError> {
        let Ok(library) = self.library.try_write() else { return Ok(()) };
        tracing::info!(module = %self.path.display(), "starting the PKCS#11 module again");
        // Their handles mean nothing afterwards, or another session.
        self.idle().clear();
        // It may have failed to initialize the last time.
        let _ = library.clone().finalize();
        initialize(&library)
    }

    fn idle(&self) -> MutexGuard<'_, HashMap<u64, Vec<Opened>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn initialize(library: &Pkcs11) -> Result<(), TokenError> {
    match library.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
        Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => Ok(()),
        other => Ok(other?),
    }
}

impl fmt::Debug for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Module({})", self.path.display())
    }
}
