//! `[[listener]]` and what its policy lets through.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use ipnet::IpNet;

use super::Tls;

/// `[[listener]]`
#[derive(Debug, Clone, PartialEq)]
pub struct Listener {
    /// `name`, by default the address as written. Unique.
    pub name: String,
    /// `address`
    pub address: SocketAddr,
    /// `protocol`
    pub protocol: ListenerProtocol,
    /// `trusted_networks`
    pub trusted_networks: Vec<IpNet>,
    /// `denied_networks`
    pub denied_networks: Vec<IpNet>,
    /// `trusted_networks_file`: one network a line, `#` comments.
    pub trusted_networks_file: Option<PathBuf>,
    /// `pool`: a key of [`Config::pools`].
    pub pool: String,
    /// `proxy_protocol_from`: peers whose PROXY header is required and believed.
    pub proxy_protocol_from: Vec<IpNet>,
    /// `referrals`
    pub referrals: Referrals,
    /// `public_name`: the host name clients use for us, for rewritten referrals.
    pub public_name: Option<String>,
    /// `[listener.policy]`
    pub policy: Policy,
    /// `[listener.tls]`, else `[tls]`. Always present for `ldaps`; for `ldap` its presence offers StartTLS.
    pub tls: Option<Arc<Tls>>,
}

/// `protocol` of a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListenerProtocol {
    /// TLS from the first byte.
    Ldaps,
    /// Cleartext, with StartTLS where the listener has a certificate.
    Ldap,
}

/// `referrals` of a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Referrals {
    /// Forward as received.
    #[default]
    Pass,
    /// Point those naming the pool's own hosts or domain at `ldaps://<public_name>`.
    Rewrite,
    /// Remove those naming the pool's own hosts or domain.
    Drop,
}

/// `[listener.policy]`; `None` in an allow list means "all".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// `read_only`
    pub read_only: bool,
    /// `allow_anonymous`
    pub allow_anonymous: bool,
    /// `allow_unauthenticated`
    pub allow_unauthenticated: bool,
    /// `allow_cleartext_bind`: on a cleartext listener, binds before StartTLS.
    pub allow_cleartext_bind: bool,
    /// `operations`
    pub operations: Option<Vec<crate::ldap::OperationKind>>,
    /// `extended_operations`: object identifiers.
    pub extended_operations: Option<Vec<String>>,
    /// `sasl_mechanisms`
    pub sasl_mechanisms: Option<Vec<String>>,
    /// `base_dns`
    pub base_dns: Option<Vec<String>>,
    /// `denied_controls`: object identifiers.
    pub denied_controls: Vec<String>,
    /// `sasl_layer`
    pub sasl_layer: SaslLayer,
    /// `max_size_limit`: entries a search may ask for.
    pub max_size_limit: Option<u32>,
    /// `bind_names`: patterns, `*` matches any run of characters, letters compare without case.
    pub bind_names: Option<Vec<String>>,
    /// `denied_bind_names`
    pub denied_bind_names: Vec<String>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            read_only: false,
            allow_anonymous: true,
            allow_unauthenticated: false,
            allow_cleartext_bind: false,
            operations: None,
            extended_operations: None,
            sasl_mechanisms: None,
            base_dns: None,
            denied_controls: Vec::new(),
            sasl_layer: SaslLayer::Tunnel,
            max_size_limit: None,
            bind_names: None,
            denied_bind_names: Vec::new(),
        }
    }
}

/// `sasl_layer` of a policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SaslLayer {
    /// A client that negotiates a SASL security layer becomes an opaque byte tunnel.
    #[default]
    Tunnel,
    /// Such a client is refused, since its operations can't be inspected.
    Refuse,
}
