//! `[[listener]]` and its policy.

use std::sync::Arc;

use super::tls::tls;
use crate::config::kind::{Choice, File, Flag, address, host, list, name, networks, number, oids, string, text};
use crate::config::reading::nearest;
use crate::config::settings::{Listener, ListenerProtocol, Policy, Referrals, SaslLayer, Tls};
use crate::config::table::Table;
use crate::config::value::{self, Refusal};
use crate::ldap::OperationKind;

/// What a listener may refer to.
pub(super) struct Surroundings {
    /// `[tls]`: whether it is written, and what it says unless it is wrong.
    pub(super) tls: Option<Option<Arc<Tls>>>,
    /// The names of the pools.
    pub(super) pools: Vec<String>,
}

pub(super) fn listener(t: &mut Table<'_, '_, '_>, around: &Surroundings) -> Option<Listener> {
    let name = t.key("name", "Its name in metrics and logs; the address if left out.").optional(name());
    let address = t.key("address", "IP address and port to listen on.").required(address());
    let protocol = t
        .key("protocol", "ldaps: TLS from the first byte; ldap: cleartext, with StartTLS if it has a certificate.")
        .default(Choice(PROTOCOLS), ListenerProtocol::Ldaps);
    let trusted_networks =
        t.key("trusted_networks", "Who may connect; there is no implicit everyone.").optional(networks().of_some());
    let denied_networks = t
        .key("denied_networks", "Who may not, out of those; the longest prefix decides.")
        .default(networks(), Vec::new());
    let trusted_networks_file = t
        .key("trusted_networks_file", "More trusted networks: one a line, # comments; read again on reload.")
        .optional(File);
    let pool = t.key("pool", "NAME of the [pools.NAME] that serves it.").required(super::pool::name());
    let proxy_protocol_from = t
        .key("proxy_protocol_from", "Load balancers that must send a PROXY header, and are believed.")
        .default(networks(), Vec::new());
    let referrals = t
        .key("referrals", "What happens to referrals to the pool's own hosts or domain.")
        .default(Choice(REFERRALS), Referrals::default());
    let public_name = t.key("public_name", "The host name clients use, for rewritten referrals.").optional(host());
    let policy = t.table("policy", "What clients of this listener may do.", policy);
    let own_tls = t.optional_table("tls", "As [tls], instead of it for this listener.", tls);

    if !t.has("trusted_networks") && !t.has("trusted_networks_file") {
        t.missing("trusted_networks", "list who may connect, such as [\"10.0.0.0/16\"]; there is no implicit everyone");
    }
    for network in trusted_networks.iter().flatten() {
        if network.prefix_len() == 0 {
            t.warn(
                "trusted_networks",
                format!("{network} trusts every address"),
                "name the networks your clients are in",
            );
        }
        if denied_networks.contains(network) {
            t.warn("denied_networks", format!("{network} is trusted as well as denied, and denied wins"), "");
        }
    }
    if let Some(pool) = pool.as_ref().filter(|pool| !around.pools.contains(pool)) {
        let help = match nearest(pool, around.pools.iter().map(String::as_str)) {
            Some(name) => format!("did you mean \"{name}\"?"),
            None => format!("pools of this file: {}", around.pools.join(", ")),
        };
        t.error("pool", format!("there is no [pools.{pool}]"), help);
    }
    if referrals != Referrals::Rewrite {
        t.no_effect("public_name", "referrals = \"rewrite\"");
    } else if !t.has("public_name") {
        t.missing("public_name", "referrals = \"rewrite\" needs the host name clients use");
    }
    if protocol == ListenerProtocol::Ldaps && own_tls.is_none() && around.tls.is_none() {
        t.error(
            "protocol",
            "protocol \"ldaps\" needs a certificate",
            "add [tls], or [listener.tls] for this listener alone",
        );
    }

    let (address, pool) = (address?, pool?);
    Some(Listener {
        name: name.unwrap_or_else(|| address.to_string()),
        address,
        protocol,
        trusted_networks: trusted_networks.unwrap_or_default(),
        denied_networks,
        trusted_networks_file,
        pool,
        proxy_protocol_from,
        referrals,
        public_name,
        policy,
        tls: own_tls.map(|tls| tls.map(Arc::new)).or_else(|| around.tls.clone()).flatten(),
    })
}

fn policy(t: &mut Table<'_, '_, '_>) -> Policy {
    let default = Policy::default();
    let policy = Policy {
        read_only: t
            .key("read_only", "Refuse every operation that may change the directory.")
            .default(Flag, default.read_only),
        allow_anonymous: t
            .key("allow_anonymous", "Let clients work without a bind.")
            .default(Flag, default.allow_anonymous),
        allow_unauthenticated: t
            .key("allow_unauthenticated", "Let through binds with a name and no password, which prove nothing.")
            .default(Flag, default.allow_unauthenticated),
        allow_cleartext_bind: t
            .key("allow_cleartext_bind", "With protocol \"ldap\", allow binds before StartTLS.")
            .default(Flag, default.allow_cleartext_bind),
        operations: t
            .key("operations", "The only operations allowed.")
            .optional(list(text("an operation", operation, ToString::to_string)).of_some()),
        extended_operations: t.key("extended_operations", "The only extended operations allowed.").optional(oids()),
        sasl_mechanisms: t
            .key("sasl_mechanisms", "The only SASL mechanisms allowed.")
            .optional(list(string("a SASL mechanism such as \"GSSAPI\"", value::sasl_mechanism))),
        base_dns: t
            .key("base_dns", "The only subtrees requests may name.")
            .optional(list(string("a distinguished name", value::subtree)).of_some()),
        denied_controls: t.key("denied_controls", "Controls that are refused.").default(oids(), Vec::new()),
        max_size_limit: t
            .key("max_size_limit", "The most entries a search may ask for.")
            .optional(number(1..=u64::from(i32::MAX.unsigned_abs()))),
        bind_names: t
            .key("bind_names", "The only names that may bind; * stands for any characters.")
            .optional(list(name()).of_some()),
        denied_bind_names: t
            .key(
                "denied_bind_names",
                "Names that may not bind, with * too; an account may have others, which pass: prefer bind_names.",
            )
            .default(list(name()), Vec::new()),
        sasl_layer: default.sasl_layer,
    };
    let Policy { allow_unauthenticated, allow_cleartext_bind, .. } = policy;
    let restricts = policy != Policy { allow_unauthenticated, allow_cleartext_bind, ..Policy::default() };
    let sasl_layer = t
        .key("sasl_layer", "Clients that encrypt inside SASL, unseen; \"refuse\" is the default beside a restriction.")
        .default(Choice(SASL_LAYERS), if restricts { SaslLayer::Refuse } else { default.sasl_layer });
    if restricts && sasl_layer == SaslLayer::Tunnel {
        t.warn(
            "sasl_layer",
            "inside a tunnel the restrictions of this policy can't be kept",
            "write \"refuse\", the default here",
        );
    }
    Policy { sasl_layer, ..policy }
}

fn operation(text: &str) -> Result<OperationKind, Refusal> {
    text.parse().map_err(|_| {
        let names = OperationKind::ALL.map(OperationKind::as_str);
        let help = match nearest(text, names.into_iter()) {
            Some(name) => format!("did you mean \"{name}\"? allowed: {}", names.join(", ")),
            None => format!("allowed: {}", names.join(", ")),
        };
        Refusal { message: "not an LDAP operation".into(), help: Some(help) }
    })
}

const PROTOCOLS: &[(&str, ListenerProtocol)] = &[("ldaps", ListenerProtocol::Ldaps), ("ldap", ListenerProtocol::Ldap)];

const REFERRALS: &[(&str, Referrals)] =
    &[("pass", Referrals::Pass), ("rewrite", Referrals::Rewrite), ("drop", Referrals::Drop)];

const SASL_LAYERS: &[(&str, SaslLayer)] = &[("tunnel", SaslLayer::Tunnel), ("refuse", SaslLayer::Refuse)];
