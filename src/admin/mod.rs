//! See it and steer it: metrics, health for load balancers, the status page and the API, over TCP and a Unix socket.
//!
//! Nothing here touches the data path: [`Control`] is all the admin side knows of the proxy, and `app` implements it.

mod access;
pub mod model;
mod page;
mod routes;
mod serve;
mod traffic;

use std::pin::Pin;

pub(crate) use page::duration;
pub use routes::read_token;
pub use serve::{Admin, Endpoint, Place, Running, places};

use model::{Session, Snapshot};

/// What the admin side may ask of the proxy. No call blocks; what takes time is a future.
pub trait Control: Send + Sync + 'static {
    /// The proxy now, without its sessions.
    fn snapshot(&self) -> Snapshot;

    /// The sessions open now, in any order.
    fn sessions(&self) -> Vec<Session>;

    /// Lets no new session onto this backend; idle sessions may be moved. Draining a drained backend is fine.
    fn drain(&self, backend: &str) -> Result<(), NotFound>;

    /// Takes a backend back into service.
    fn enable(&self, backend: &str) -> Result<(), NotFound>;

    /// Ends a session.
    fn kill(&self, session: u64) -> Result<(), NotFound>;

    /// Reloads configuration and certificates. What was changed, one line each; or what is wrong, and then nothing was
    /// changed.
    fn reload(&self) -> Reloading<'_>;

    /// Sets the log filter, as `[log] level`; or says what is wrong with it.
    fn log_level(&self, filter: &str) -> Result<(), String>;
}

/// A reload under way: what was changed, or what is wrong.
pub type Reloading<'a> = Pin<Box<dyn Future<Output = Result<Vec<String>, Vec<String>>> + Send + 'a>>;

/// There is no backend or session of this name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotFound;

#[cfg(test)]
mod tests;
