//! `ldaps-proxy`: the LDAPS front door for AWS Simple AD.
//!
//! The modules, in the order a byte from a client meets them:
//!
//! 1. [`listener`] accepts; [`trust`] and [`proxy_protocol`] say who may enter and who it really is.
//! 2. [`tls`] terminates.
//! 3. [`session`] frames ([`ldap`]), keeps the bind state and the operations in flight, and moves PDUs both ways.
//!    [`policy`], [`throttle`] and [`referral`] judge single requests and responses.
//! 4. [`pool`] chooses a backend ([`balance`]) and opens an [`upstream`] to it.
//!
//! Beside the path, acting on it through handles only: [`health`], [`discovery`], [`admin`], [`lifecycle`].
//! [`metrics`] and [`access_log`] are written to from everywhere. [`app`] is the only place that wires the parts together.

pub mod access_log;
pub mod admin;
pub mod app;
pub mod balance;
mod buffer;
pub mod build_info;
pub mod cli;
pub mod config;
pub mod discovery;
pub mod embedded;
pub mod failure;
pub mod health;
pub mod ldap;
pub mod lifecycle;
pub mod listener;
pub mod log;
pub mod metrics;
#[cfg(any(test, fuzzing))]
pub mod pipe;
pub mod policy;
pub mod pool;
pub mod proxy_protocol;
pub mod referral;
pub mod session;
pub mod throttle;
pub mod tls;
pub mod trust;
pub mod upstream;
