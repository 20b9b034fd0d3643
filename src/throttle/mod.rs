//! The failed-login throttle, per name and per address.
//!
//! It stands before AD's account lockout: whoever guesses passwords through the proxy is told to wait before the account
//! is locked for everybody. An attempt is charged when it is let through and settled when its result is known, so that a
//! hundred guesses at once are no way round; where only such charges stand in the way, as when an application opens all its
//! connections at once, there is a result worth waiting for. Only `invalidCredentials` (49) is a failure; a result of 53 with a
//! diagnostic is the answer to a throttled attempt, never 49, which applications take for a wrong password.
//!
//! - **A name's** failures are forgotten all at once: on a success, as AD does, and after a window without a failure, as
//!   AD's lockout counter does. A bucket that refilled steadily would let a patient attacker reach the lockout. With
//!   `failures_per_name` below the domain's lockoutThreshold and `window` not below its lockoutObservationWindow, guesses
//!   at one name through one proxy can't lock its account. Several copies don't know of each other, so each gets
//!   lockoutThreshold / copies, rounded down; and whoever knows names of an account that aren't linked has a budget for each.
//! - **An address's** failures (IPv6 by /64) refill steadily, since many people may share one, and a success of one
//!   doesn't excuse the others. An attacker with one good account must not wash the address clean with it.
//!
//! Names are linked by [`LoginName::account`], which says what can't be. All names that can't be linked to an account
//! share one bucket, which a success of one leaves as it was: whoever has an account could wash it clean with a GUID of his.
//! Kerberos shows no name here, and its passwords are checked by the KDC: only the address is counted.

mod buckets;
mod login_name;
mod ntlm;

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use buckets::{Buckets, Charge, Empty, Refill};

pub use login_name::{BindName, LoginName, is_escaped_principal};

use crate::config;
use crate::failure::Refusal;
use crate::ldap::ResultCode;
use crate::trust::client_network;

/// The failed logins of names and addresses. Counts are lost with it: keep it over a reload that leaves its settings be.
#[derive(Debug)]
pub struct LoginThrottle {
    names: Option<Buckets>,
    addresses: Option<Buckets>,
}

/// A login attempt that was let through. [Settle](Self::settle) it; dropped, it stays counted as a failure,
/// since a client that hangs up too early to be told has had its guess all the same.
#[derive(Debug)]
#[must_use = "an attempt that is not settled counts as a failure"]
pub struct Attempt(Box<Charges>);

/// Boxed, since every session has room for an attempt, and few at a time make one.
#[derive(Debug)]
struct Charges {
    throttle: Arc<LoginThrottle>,
    name: Option<Charge>,
    /// Whether the name's bucket is its account's own.
    linked: bool,
    address: Option<Charge>,
}

/// An attempt that must wait; answer with `unwillingToPerform` (53).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Throttled {
    /// [`Refusal::ThrottledName`] or [`Refusal::ThrottledAddress`].
    pub reason: Refusal,
    /// When the next attempt may pass, if nobody else takes it; `None` if that hangs on attempts whose results aren't known yet.
    pub retry_after: Option<Duration>,
}

impl std::error::Error for Throttled {}

/// The diagnosticMessage.
impl fmt::Display for Throttled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whose = if self.reason == Refusal::ThrottledName { "for this name" } else { "from this address" };
        let Some(retry_after) = self.retry_after else {
            return write!(f, "too many logins {whose} at once: try again");
        };
        let seconds = retry_after.as_secs_f64().ceil();
        write!(f, "too many failed logins {whose}: correct the stored password and try again in {seconds} seconds")
    }
}

impl LoginThrottle {
    /// Counts as `settings` say; where they say nothing, lets everything pass at no cost.
    pub fn new(settings: &config::LoginThrottle) -> Self {
        let buckets = |budget: Option<u32>, refill| budget.map(|budget| Buckets::new(budget, settings.window, refill));
        Self {
            names: buckets(settings.failures_per_name, Refill::WhenQuiet),
            addresses: buckets(settings.failures_per_address, Refill::Steady),
        }
    }

    /// Whether it lets everything pass.
    pub const fn is_off(&self) -> bool {
        self.names.is_none() && self.addresses.is_none()
    }

    /// Lets a bind of this name from this address through, or not. Every BindRequest is an attempt, each step of a SASL
    /// exchange too.
    ///
    /// # Errors
    /// [`Throttled`]
    pub fn attempt(self: &Arc<Self>, name: &BindName, address: IpAddr, now: Instant) -> Result<Attempt, Throttled> {
        let throttled = |reason| {
            move |empty| {
                let retry_after = if let Empty::Failed(retry_after) = empty { Some(retry_after) } else { None };
                Throttled { reason, retry_after }
            }
        };
        let linked = name.named().is_some_and(|name| name.account().is_some());
        let charge_name = self.names.as_ref().zip(name.named()).map(|(names, name)| names.charge(&name.account(), now));
        let name = charge_name.transpose().map_err(throttled(Refusal::ThrottledName))?;
        let charge_address =
            self.addresses.as_ref().map(|addresses| addresses.charge(&client_network(address), now)).transpose();
        let address = charge_address.map_err(throttled(Refusal::ThrottledAddress)).inspect_err(|_| {
            if let Some((names, charge)) = self.names.as_ref().zip(name.as_ref()) {
                names.give_back(charge, now);
            }
        })?;
        Ok(Attempt(Box::new(Charges { throttle: Arc::clone(self), name, linked, address })))
    }
}

impl Attempt {
    /// Settles an attempt by its result: `invalidCredentials` is a failure, `success` forgives the account its failures, and
    /// anything else, such as `saslBindInProgress` or `unavailable`, is none of the two.
    pub fn settle(mut self, result: ResultCode, now: Instant) {
        let charges = &mut *self.0;
        if let Some((names, charge)) = charges.throttle.names.as_ref().zip(charges.name.take()) {
            match result {
                ResultCode::INVALID_CREDENTIALS => names.keep(&charge, now),
                ResultCode::SUCCESS if charges.linked => names.forgive(&charge, now),
                _ => names.give_back(&charge, now),
            }
        }
        if let Some((addresses, charge)) = charges.throttle.addresses.as_ref().zip(charges.address.take()) {
            match result {
                ResultCode::INVALID_CREDENTIALS => addresses.keep(&charge, now),
                _ => addresses.give_back(&charge, now),
            }
        }
    }
}

impl Drop for Charges {
    fn drop(&mut self) {
        let charged = [(&self.throttle.names, self.name.take()), (&self.throttle.addresses, self.address.take())];
        for (buckets, charge) in charged {
            if let Some((buckets, charge)) = buckets.as_ref().zip(charge) {
                buckets.leave(&charge);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);
    const WRONG: ResultCode = ResultCode::INVALID_CREDENTIALS;

    fn throttle(failures_per_name: Option<u32>, failures_per_address: Option<u32>) -> Arc<LoginThrottle> {
        let window = 10 * MINUTE;
        Arc::new(LoginThrottle::new(&config::LoginThrottle { failures_per_name, failures_per_address, window }))
    }

    /// One attempt, settled at once.
    fn login(
        throttle: &Arc<LoginThrottle>,
        name: &str,
        address: &str,
        result: ResultCode,
        now: Instant,
    ) -> Result<(), Throttled> {
        let name = BindName::Named(LoginName::new(name.as_bytes()));
        let attempt = throttle.attempt(&name, address.parse().unwrap(), now)?;
        attempt.settle(result, now);
        Ok(())
    }

    #[test]
    fn a_name_in_all_its_forms_has_one_budget() {
        let throttle = throttle(Some(3), None);
        let now = Instant::now();
        login(&throttle, "ann@corp.example.com", "10.0.0.1", WRONG, now).unwrap();
        login(&throttle, "CORP\\Ann", "10.0.0.2", WRONG, now).unwrap();
        login(&throttle, "CN=Ann,OU=People,DC=corp,DC=example,DC=com", "10.0.0.3", WRONG, now).unwrap();
        let later = now + MINUTE;
        let throttled = login(&throttle, "ann", "10.0.0.4", ResultCode::SUCCESS, later).unwrap_err();
        assert_eq!(throttled, Throttled { reason: Refusal::ThrottledName, retry_after: Some(9 * MINUTE) });
        assert_eq!(
            throttled.to_string(),
            "too many failed logins for this name: correct the stored password and try again in 540 seconds"
        );
        login(&throttle, "bob", "10.0.0.1", WRONG, later).unwrap();
        login(&throttle, "ann", "10.0.0.4", WRONG, now + 10 * MINUTE).unwrap();
    }

    #[test]
    fn names_that_cannot_be_linked_share_a_budget() {
        let throttle = throttle(Some(2), None);
        let now = Instant::now();
        login(&throttle, "<GUID=1>;a", "10.0.0.1", WRONG, now).unwrap();
        login(&throttle, "<GUID=1>;b", "10.0.0.1", WRONG, now).unwrap();
        login(&throttle, "cn=\"ann\",dc=corp", "10.0.0.1", WRONG, now).unwrap_err();
    }

    #[test]
    fn a_success_forgives_nobody_the_failures_of_names_that_cannot_be_linked() {
        let throttle = throttle(Some(2), None);
        let now = Instant::now();
        login(&throttle, "<GUID=1>", "10.0.0.1", WRONG, now).unwrap();
        for _ in 0..3 {
            login(&throttle, "<GUID=2>", "10.0.0.1", ResultCode::SUCCESS, now).unwrap();
        }
        login(&throttle, "<GUID=1>", "10.0.0.1", WRONG, now).unwrap();
        login(&throttle, "<GUID=1>", "10.0.0.1", WRONG, now).unwrap_err();
    }

    /// Or the failures of months would add up for whoever logs in by such a name all day.
    #[test]
    fn a_success_of_a_name_that_cannot_be_linked_leaves_the_others_quiet() {
        let throttle = throttle(Some(2), None);
        let start = Instant::now();
        login(&throttle, "<GUID=1>", "10.0.0.1", WRONG, start).unwrap();
        for minute in 1..10 {
            login(&throttle, "<GUID=2>", "10.0.0.1", ResultCode::SUCCESS, start + minute * MINUTE).unwrap();
        }
        login(&throttle, "<GUID=1>", "10.0.0.1", WRONG, start + 10 * MINUTE).unwrap();
        login(&throttle, "<GUID=1>", "10.0.0.1", WRONG, start + 10 * MINUTE).unwrap();
        login(&throttle, "<GUID=1>", "10.0.0.1", WRONG, start + 10 * MINUTE).unwrap_err();
    }

    /// AD's counter restarts only after a whole window without a failure, so a trickle must not pass either.
    #[test]
    fn a_patient_attacker_gets_no_more_than_the_budget_until_it_is_quiet() {
        let throttle = throttle(Some(4), None);
        let start = Instant::now();
        let trickle = |minute| login(&throttle, "ann", "10.0.0.1", WRONG, start + minute * MINUTE);
        for minute in [0, 9, 18, 27] {
            trickle(minute).unwrap();
        }
        assert_eq!(trickle(36).unwrap_err().retry_after, Some(MINUTE));
        trickle(37).unwrap();
    }

    #[test]
    fn a_success_forgives_the_name_but_not_the_address() {
        let throttle = throttle(Some(2), Some(3));
        let now = Instant::now();
        login(&throttle, "ann", "10.0.0.1", WRONG, now).unwrap();
        login(&throttle, "ann", "10.0.0.1", ResultCode::SUCCESS, now).unwrap();
        login(&throttle, "ann", "10.0.0.1", WRONG, now).unwrap();
        login(&throttle, "ann", "10.0.0.1", WRONG, now).unwrap();
        assert_eq!(login(&throttle, "ann", "10.0.0.2", WRONG, now).unwrap_err().reason, Refusal::ThrottledName);
        let throttled = login(&throttle, "bob", "10.0.0.1", WRONG, now).unwrap_err();
        assert_eq!(throttled.reason, Refusal::ThrottledAddress);
        // The refusal for the address has not cost the name anything.
        for _ in 0..2 {
            login(&throttle, "bob", "10.0.0.2", WRONG, now).unwrap();
        }
    }

    #[test]
    fn guesses_at_once_are_charged_before_their_results() {
        let throttle = throttle(Some(3), None);
        let now = Instant::now();
        let name = BindName::Named(LoginName::new(b"ann"));
        let attempt = || throttle.attempt(&name, "10.0.0.1".parse().unwrap(), now);
        let mut under_way = [attempt().unwrap(), attempt().unwrap(), attempt().unwrap()].into_iter();
        let is_worth_waiting = || attempt().unwrap_err().retry_after.is_none();
        assert!(is_worth_waiting());

        let mut settle = |result| under_way.next().unwrap().settle(result, now);
        settle(ResultCode::UNAVAILABLE);
        drop(attempt().unwrap());
        assert!(is_worth_waiting());
        settle(WRONG);
        assert!(is_worth_waiting(), "the third may be a success, which forgives all");
        settle(ResultCode::SUCCESS);
        let _ = attempt().unwrap();
    }

    #[test]
    fn only_names_to_be_proven_are_charged() {
        let throttle = throttle(Some(1), None);
        let now = Instant::now();
        let address = "10.0.0.1".parse().unwrap();
        login(&throttle, "ann", "10.0.0.1", WRONG, now).unwrap();
        let unauthenticated = BindName::Unauthenticated(LoginName::new(b"ann"));
        for name in [BindName::Anonymous, BindName::Later, BindName::Unseen, unauthenticated] {
            let attempt = throttle.attempt(&name, address, now).unwrap();
            attempt.settle(ResultCode::SUCCESS, now);
        }
        login(&throttle, "ann", "10.0.0.1", WRONG, now).unwrap_err();
    }

    #[test]
    fn ipv6_counts_by_64() {
        let throttle = throttle(None, Some(1));
        let now = Instant::now();
        login(&throttle, "ann", "2001:db8:0:1::1", WRONG, now).unwrap();
        login(&throttle, "bob", "2001:db8:0:1:ffff::2", WRONG, now).unwrap_err();
        login(&throttle, "bob", "2001:db8:0:2::1", WRONG, now).unwrap();
        login(&throttle, "cyd", "192.0.2.1", WRONG, now).unwrap();
        login(&throttle, "cyd", "::ffff:192.0.2.1", WRONG, now).unwrap_err();
    }

    #[test]
    fn off_by_default() {
        let throttle = Arc::new(LoginThrottle::new(&config::LoginThrottle::default()));
        assert!(throttle.is_off());
        for _ in 0..1000 {
            login(&throttle, "ann", "10.0.0.1", WRONG, Instant::now()).unwrap();
        }
    }
}
