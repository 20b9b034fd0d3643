//! What a policy says to binds.

use super::{Policy, Refused, Standing, undecodable, unwilling};
use crate::failure::Refusal;
use crate::ldap::{Authentication, Request, ResultCode};
use crate::throttle::{BindName, LoginName};

impl Policy {
    /// `allow_cleartext_bind`, `allow_unauthenticated`, `allow_anonymous`, `sasl_mechanisms`, `bind_names` and
    /// `denied_bind_names`.
    pub(super) fn judge_bind(&self, request: &Request<'_>, standing: Standing) -> Result<(), Refused> {
        let Some(bind) = request.bind() else { return Err(undecodable("the bind cannot be read")) };
        let name = BindName::of(&bind);
        if name != BindName::Anonymous && !standing.encrypted && !self.settings.allow_cleartext_bind {
            return Err(Refused {
                code: ResultCode::CONFIDENTIALITY_REQUIRED,
                reason: Refusal::ConfidentialityRequired,
                diagnostic: "binds need TLS here: use ldaps, or StartTLS before the bind".into(),
            });
        }
        self.judge_mechanism(bind.authentication)?;
        match name {
            BindName::Anonymous if self.settings.allow_anonymous => Ok(()),
            BindName::Anonymous => {
                let what = "this listener does not serve anonymous clients: bind with a name and a password";
                Err(unwilling(Refusal::Anonymous, what))
            }
            BindName::Unauthenticated(_) if !self.settings.allow_unauthenticated => {
                let what = "a bind with a name needs a password: RFC 4513 section 5.1.2";
                Err(unwilling(Refusal::Unauthenticated, what))
            }
            BindName::Unauthenticated(name) | BindName::Named(name) => self.judge_name(&name),
            BindName::Later => Ok(()),
            BindName::Unseen if self.bind_names.is_none() && self.denied_bind_names.is_empty() => Ok(()),
            BindName::Unseen => {
                let what = "this listener admits by name, and this mechanism hides the name: use a simple bind or NTLM";
                Err(unwilling(Refusal::BindName, what))
            }
            // Always: it may be a null session, which has no more than the limits of one, or guess at any name's password.
            BindName::Unreadable => Err(Refused {
                code: ResultCode::PROTOCOL_ERROR,
                reason: Refusal::Undecodable,
                diagnostic:
                    "not every server reads this NTLM or SPNEGO token alike: send it whole, with names in Unicode"
                        .into(),
            }),
        }
    }

    fn judge_mechanism(&self, authentication: Authentication<'_>) -> Result<(), Refused> {
        let Some(allowed) = &self.settings.sasl_mechanisms else { return Ok(()) };
        let is_allowed = match authentication {
            Authentication::Simple(_) => true,
            Authentication::Sasl { mechanism, .. } => {
                allowed.iter().any(|one| one.as_bytes().eq_ignore_ascii_case(mechanism))
            }
            Authentication::Other(_) => false,
        };
        if is_allowed {
            return Ok(());
        }
        let instead = if allowed.is_empty() { "a simple bind".to_owned() } else { allowed.join(", ") };
        let what = format!("this listener does not serve that authentication mechanism: use {instead}");
        Err(unwilling(Refusal::SaslMechanism, what))
    }

    /// A name that can't be told from a denied one is denied: GUIDs, SIDs, DNs that not everybody reads alike, and
    /// principals with escapes. Other names of the account pass: nothing in them tells whose they are, and to refuse every DN
    /// and `name@suffix` would keep out those whom nobody denied.
    fn judge_name(&self, name: &LoginName) -> Result<(), Refused> {
        let allowed = self.bind_names.as_ref().is_none_or(|patterns| patterns.iter().any(|one| one.matches(name)));
        let unclear = name.account().is_none() && !self.denied_bind_names.is_empty();
        if allowed && !unclear && !self.denied_bind_names.iter().any(|one| one.may_match(name)) {
            return Ok(());
        }
        Err(unwilling(Refusal::BindName, "this listener does not let that name bind"))
    }
}
