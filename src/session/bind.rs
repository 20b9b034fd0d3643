//! Who a session is, as far as the proxy knows (RFC 4511 §4.2, RFC 4513 §4). Pure.

use tokio::time::Instant;

use super::operations::KeptBind;
use crate::ldap::{Authentication, BindRequest, MessageId, ResultCode};
use crate::throttle::BindName;

/// A session's authentication state.
#[derive(Debug, Default)]
pub struct BindState {
    identity: Identity,
    /// Who the session was before the bind that is awaited.
    earlier: Identity,
    step: Step,
}

/// What the answer to a bind comes to.
#[derive(Debug, Default)]
pub struct Bound {
    /// Whether the client may now begin a SASL security layer (RFC 4513 §5.2.1.4).
    pub may_begin_layer: bool,
    /// Who the session is now bound as, or who was refused, where a simple bind said so.
    pub name: Option<Box<str>>,
}

/// Who the session is bound as.
#[derive(Debug, Default)]
pub enum Identity {
    /// Nobody. Also while a bind is under way, and after one failed (RFC 4513 §4).
    #[default]
    Anonymous,
    /// A name without a password (RFC 4513 §5.1.2): no authentication took place.
    Unauthenticated,
    /// A name and a password, kept so that the bind can be replayed on another backend.
    Simple(Credential),
    /// A SASL mechanism, or another that can't be replayed: its state lives in the backend.
    Stateful,
}

/// A successful simple bind.
#[derive(Debug)]
pub struct Credential {
    /// The BindRequest as received.
    pub request: KeptBind,
    /// When it succeeded.
    pub since: Instant,
}

/// How far a bind has come.
#[derive(Debug, Default, PartialEq, Eq)]
enum Step {
    /// None is under way.
    #[default]
    Idle,
    /// A BindRequest awaits its response.
    Awaiting { id: MessageId, method: Method, name: Option<Box<str>> },
    /// The backend answered saslBindInProgress: the client's next step is due.
    Continuing,
}

/// How a bind proves its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// No name, with or without a password.
    Anonymous,
    /// Name without password.
    Unauthenticated,
    /// Name and password.
    Simple,
    /// SASL.
    Sasl,
    /// SASL that proves no name: ANONYMOUS, or the last step of an NTLM null session.
    SaslAnonymous,
    /// Anything else, such as Sicily.
    Other,
}

impl Method {
    /// The method of a bind. Samba reads names and passwords up to the first NUL.
    pub fn of(bind: &BindRequest<'_>) -> Self {
        match bind.authentication {
            Authentication::Simple(_) if bind.is_nameless() => Self::Anonymous,
            Authentication::Simple([] | [0, ..]) => Self::Unauthenticated,
            Authentication::Simple(_) => Self::Simple,
            Authentication::Sasl { .. } if BindName::of(bind) == BindName::Anonymous => Self::SaslAnonymous,
            Authentication::Sasl { .. } => Self::Sasl,
            Authentication::Other(_) => Self::Other,
        }
    }
}

impl BindState {
    /// Who the session is bound as.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Who the session was before the bind that is awaited, and nobody if none is.
    pub fn earlier(&self) -> &Identity {
        &self.earlier
    }

    /// Whether the session's requests carry an authenticated name.
    pub fn is_authenticated(&self) -> bool {
        matches!(self.identity, Identity::Simple(_) | Identity::Stateful)
    }

    /// The bind whose response is awaited.
    pub fn awaiting(&self) -> Option<MessageId> {
        match self.step {
            Step::Awaiting { id, .. } => Some(id),
            Step::Idle | Step::Continuing => None,
        }
    }

    /// Whether a SASL exchange is between two steps.
    pub fn is_continuing(&self) -> bool {
        self.step == Step::Continuing
    }

    /// Whether the exchange's state lives in the backend: a SASL step is under way or one has succeeded.
    pub fn is_stateful(&self) -> bool {
        matches!(self.identity, Identity::Stateful)
            || matches!(
                self.step,
                Step::Continuing | Step::Awaiting { method: Method::Sasl | Method::SaslAnonymous | Method::Other, .. }
            )
    }

    /// A bind was received, by which a simple one gives this name: the earlier identity ends with what it has asked (§4.2.1).
    pub fn request(&mut self, id: MessageId, method: Method, name: Option<Box<str>>) {
        self.earlier = std::mem::take(&mut self.identity);
        self.step = Step::Awaiting { id, method, name };
    }

    /// The awaited bind was answered; `kept` is its request, if it may be replayed.
    pub fn response(&mut self, code: ResultCode, kept: Option<KeptBind>, now: Instant) -> Bound {
        let Step::Awaiting { method, name, .. } = std::mem::take(&mut self.step) else { return Bound::default() };
        self.earlier = Identity::Anonymous;
        match code {
            ResultCode::SASL_BIND_IN_PROGRESS => {
                self.step = Step::Continuing;
                Bound::default()
            }
            ResultCode::SUCCESS => {
                self.identity = match (method, kept) {
                    (Method::Anonymous | Method::SaslAnonymous, _) => Identity::Anonymous,
                    (Method::Unauthenticated, _) => Identity::Unauthenticated,
                    (Method::Simple, Some(request)) => Identity::Simple(Credential { request, since: now }),
                    (Method::Simple | Method::Sasl | Method::Other, _) => Identity::Stateful,
                };
                Bound {
                    may_begin_layer: matches!(method, Method::Sasl | Method::SaslAnonymous),
                    name: name.filter(|_| method == Method::Simple),
                }
            }
            _ => Bound { may_begin_layer: false, name },
        }
    }

    /// A bind ended without the backend's answer.
    pub fn fail(&mut self) {
        *self = Self::default();
    }

    /// Replaces a credential that is too old to be replayed by the knowledge that there was one.
    pub fn forget_credential(&mut self) {
        if matches!(self.identity, Identity::Simple(_)) {
            self.identity = Identity::Stateful;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept() -> Option<KeptBind> {
        Some(KeptBind::new(b"bind"))
    }

    fn after(method: Method, code: u32) -> BindState {
        let mut state = BindState::default();
        state.request(1, method, Some("cn=x".into()));
        assert!(matches!(state.identity(), Identity::Anonymous), "rule 12");
        assert_eq!(state.awaiting(), Some(1));
        let bound = state.response(ResultCode(code), kept(), Instant::now());
        let sasl = matches!(method, Method::Sasl | Method::SaslAnonymous);
        assert_eq!(bound.may_begin_layer, sasl && code == 0, "rule 27: only after a successful SASL bind");
        assert_eq!(state.awaiting(), None);
        state
    }

    /// Each as Samba reads it: what it takes for anonymous must not get an authenticated session's limits.
    #[test]
    fn methods() {
        let simple =
            |name, password| Method::of(&BindRequest { name, authentication: Authentication::Simple(password) });
        assert_eq!(simple(b"", b""), Method::Anonymous);
        assert_eq!(simple(b"", b"secret"), Method::Anonymous);
        assert_eq!(simple(b"\0cn=x", b"secret"), Method::Anonymous);
        assert_eq!(simple(b"cn=x", b""), Method::Unauthenticated);
        assert_eq!(simple(b"cn=x", b"\0secret"), Method::Unauthenticated);
        assert_eq!(simple(b"cn=x", b"secret"), Method::Simple);
        let sasl = |mechanism, credentials: &[u8]| {
            let authentication = Authentication::Sasl { mechanism, credentials: Some(credentials) };
            Method::of(&BindRequest { name: b"", authentication })
        };
        assert_eq!(sasl(b"GSSAPI", b"ticket"), Method::Sasl);
        assert_eq!(sasl(b"ANONYMOUS", b"me"), Method::SaslAnonymous);
        // The null session: its user is a NUL, at the end.
        let mut authenticate = *b"NTLMSSP\0\x03\0\0\0\
            \0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x40\0\0\0\x02\0\x02\0\x40\0\0\0\
            \0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x05\x82\x08\x62\0\0";
        assert_eq!(sasl(b"NTLM", &authenticate), Method::SaslAnonymous);
        authenticate[64] = b'x';
        assert_eq!(sasl(b"NTLM", &authenticate), Method::Sasl);
    }

    #[test]
    fn rule_25_identities() {
        assert!(matches!(after(Method::Simple, 0).identity(), Identity::Simple(_)));
        assert!(matches!(after(Method::Simple, 49).identity(), Identity::Anonymous));
        assert!(matches!(after(Method::Anonymous, 0).identity(), Identity::Anonymous));
        assert!(matches!(after(Method::Sasl, 0).identity(), Identity::Stateful));
        assert!(matches!(after(Method::SaslAnonymous, 0).identity(), Identity::Anonymous));
        assert!(matches!(after(Method::Other, 0).identity(), Identity::Stateful));
    }

    #[test]
    fn rule_26_an_unauthenticated_bind_is_no_authentication() {
        let state = after(Method::Unauthenticated, 0);
        assert!(matches!(state.identity(), Identity::Unauthenticated) && !state.is_authenticated());
    }

    #[test]
    fn rule_12_a_bind_discards_the_earlier_identity_even_if_it_fails() {
        let mut state = after(Method::Simple, 0);
        assert!(state.is_authenticated());
        state.request(2, Method::Simple, None);
        state.response(ResultCode::INVALID_CREDENTIALS, kept(), Instant::now());
        assert!(!state.is_authenticated());
    }

    #[test]
    fn a_name_is_told_of_whom_it_is_and_of_whom_it_was_refused() {
        for (method, code, told) in [
            (Method::Simple, 0, true),
            (Method::Simple, 49, true),
            (Method::Unauthenticated, 0, false),
            (Method::Unauthenticated, 53, true),
            (Method::Sasl, 14, false),
        ] {
            let mut state = BindState::default();
            state.request(1, method, Some("cn=x".into()));
            let bound = state.response(ResultCode(code), None, Instant::now());
            assert_eq!(bound.name.is_some(), told, "{method:?} {code}");
        }
    }

    #[test]
    fn the_earlier_identity_lasts_until_the_bind_is_answered() {
        let mut state = after(Method::Simple, 0);
        state.request(2, Method::Simple, None);
        assert!(matches!(state.earlier(), Identity::Simple(_)) && !state.is_authenticated());
        state.response(ResultCode::INVALID_CREDENTIALS, kept(), Instant::now());
        assert!(matches!(state.earlier(), Identity::Anonymous));
    }

    #[test]
    fn sasl_steps_hold_state_in_the_backend() {
        let state = after(Method::Sasl, 14);
        assert!(state.is_continuing() && state.is_stateful() && !state.is_authenticated());
        let mut state = after(Method::Sasl, 14);
        state.request(2, Method::Simple, None);
        state.response(ResultCode::SUCCESS, kept(), Instant::now());
        assert!(
            matches!(state.identity(), Identity::Simple(_)) && !state.is_stateful(),
            "another mechanism aborts SASL"
        );
    }

    #[test]
    fn credentials_do_not_print() {
        let mut state = BindState::default();
        state.request(1, Method::Simple, None);
        state.response(ResultCode::SUCCESS, Some(KeptBind::new(b"hunter2")), Instant::now());
        assert!(!format!("{state:?}").contains("hunter2") && !format!("{state:?}").contains("104, 117"));
    }
}
