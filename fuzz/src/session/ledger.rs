//! What was asked, forwarded and answered in one session, and what must never be.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use ldaps_proxy::ldap::{
    Authentication, Envelope, FrameError, MessageId, OperationKind, Request, Response, ResponseKind, envelope, oid,
};

/// A longer response passes to the client before it is whole, so it may be cut off.
const PASS_FROM: usize = 32 * 1024;
/// The messageID under which the proxy abandons what has timed out.
const OWN_ID: MessageId = 0x7FFF_FFFF;

/// The account of one session.
#[derive(Default)]
pub struct Ledger {
    /// Octets from the client that are no whole request yet; `None` once they can't become one.
    client_tail: Option<Vec<u8>>,
    /// Octets to the client that are no whole response yet.
    told_tail: Vec<u8>,
    /// Octets from the present backend that are no whole response yet; `None` once they can't become one.
    answer_tail: Option<Vec<u8>>,
    /// Octets to the present backend that are no whole request yet.
    forwarded_tail: Vec<u8>,
    requests: HashMap<Vec<u8>, Copies>,
    asked: BTreeMap<MessageId, usize>,
    answered: BTreeMap<MessageId, usize>,
    abandoned: BTreeSet<MessageId>,
    /// What the present backend has been asked and has not answered.
    open: Vec<(MessageId, OperationKind)>,
    /// The client got a notice of disconnection.
    pub told: bool,
    /// Octets pass unread from here on.
    pub tunnel: bool,
    /// The proxy abandons what takes too long.
    pub times_out: bool,
}

/// How often one request was sent by the client and received by backends.
#[derive(Default)]
struct Copies {
    sent: usize,
    received: usize,
}

impl Ledger {
    pub fn new(times_out: bool) -> Self {
        Self { client_tail: Some(Vec::new()), answer_tail: Some(Vec::new()), times_out, ..Self::default() }
    }

    /// The client sends octets.
    pub fn client_sends(&mut self, octets: &[u8]) {
        let Some(mut tail) = self.client_tail.take() else { return };
        tail.extend(octets);
        loop {
            match take_pdu(&mut tail) {
                Err(_) => return,
                Ok(Some((pdu, envelope))) => {
                    let Some(request) = Request::new(&pdu, envelope) else { return };
                    self.ask(&request);
                }
                Ok(None) => break,
            }
        }
        self.client_tail = Some(tail);
    }

    fn ask(&mut self, request: &Request<'_>) {
        self.requests.entry(request.pdu().to_vec()).or_default().sent += 1;
        match request.kind() {
            OperationKind::Unbind => {}
            OperationKind::Abandon => self.abandoned.extend(request.abandoned_id()),
            _ => *self.asked.entry(request.message_id()).or_default() += 1,
        }
    }

    /// The backend receives octets.
    pub fn backend_receives(&mut self, octets: &[u8]) {
        if self.tunnel {
            return;
        }
        let mut tail = std::mem::take(&mut self.forwarded_tail);
        tail.extend(octets);
        while let Some((pdu, envelope)) = take_pdu(&mut tail).expect("backends get well-formed requests") {
            let request = Request::new(&pdu, envelope).expect("backends get requests");
            self.forwarded(&request);
        }
        self.forwarded_tail = tail;
    }

    fn forwarded(&mut self, request: &Request<'_>) {
        let (id, kind) = (request.message_id(), request.kind());
        assert_ne!(id, 0, "rule 6");
        assert!(kind != OperationKind::Extended || !is_start_tls_to_samba(request.content()), "rule 20");
        let own = kind == OperationKind::Abandon && id == OWN_ID && self.times_out;
        let most = match kind {
            OperationKind::Bind if is_simple(request) => usize::MAX,
            OperationKind::Search | OperationKind::Compare => 2,
            OperationKind::Extended if request.extended_name() == Some(oid::WHO_AM_I.as_bytes()) => 2,
            _ => 1,
        };
        match self.requests.get_mut(request.pdu()) {
            Some(copies) => {
                copies.received += 1;
                let allowed = copies.sent.saturating_mul(most);
                assert!(
                    own || copies.received <= allowed,
                    "{kind} sent {} times, received {}",
                    copies.sent,
                    copies.received
                );
            }
            None => assert!(own, "nobody has sent {:02x?}", request.pdu()),
        }
        match kind {
            OperationKind::Unbind => {}
            OperationKind::Abandon => self.open.retain(|(open, _)| Some(*open) != request.abandoned_id()),
            _ => self.open.push((id, kind)),
        }
    }

    /// The backend sends octets.
    pub fn backend_sends(&mut self, octets: &[u8]) {
        let Some(mut tail) = self.answer_tail.take() else { return };
        tail.extend(octets);
        loop {
            match take_pdu(&mut tail) {
                Err(_) => return,
                Ok(Some((pdu, envelope))) => {
                    let Some(response) = Response::new(&pdu, envelope) else { return };
                    if response.kind().is_final() {
                        self.open.retain(|(open, _)| *open != response.message_id());
                    }
                }
                Ok(None) => break,
            }
        }
        self.answer_tail = Some(tail);
    }

    /// Whether the present backend has said something that isn't whole.
    pub fn is_mid_answer(&self) -> bool {
        self.answer_tail.as_ref().is_none_or(|tail| !tail.is_empty())
    }

    /// The session has another backend, or none.
    pub fn backend_changes(&mut self) {
        self.answer_tail = Some(Vec::new());
        self.forwarded_tail.clear();
        self.open.clear();
    }

    /// What the present backend could answer.
    pub fn open(&self) -> &[(MessageId, OperationKind)] {
        &self.open
    }

    /// The client receives octets.
    pub fn client_receives(&mut self, octets: &[u8]) {
        if self.tunnel {
            return;
        }
        let mut tail = std::mem::take(&mut self.told_tail);
        tail.extend(octets);
        while let Some((pdu, envelope)) = take_pdu(&mut tail).expect("clients get well-formed responses") {
            let response = Response::new(&pdu, envelope).expect("clients get responses");
            self.tell(&response);
        }
        self.told_tail = tail;
    }

    fn tell(&mut self, response: &Response<'_>) {
        assert!(!self.told, "something came after the notice of disconnection");
        let id = response.message_id();
        if id == 0 {
            self.told = response.is_notice_of_disconnection();
            return;
        }
        let asked = self.asked.get(&id).copied().unwrap_or_default();
        let answered = self.answered.entry(id).or_default();
        assert!(*answered < asked, "{:?} to {id}, for which nobody waits", response.kind());
        if response.kind().is_final() {
            *answered += 1;
        }
    }

    /// Whether the response that the client has got a part of was long enough to be cut.
    pub fn is_cut_in_a_long_response(&self) -> bool {
        matches!(envelope(&self.told_tail, usize::MAX), Ok(Some(envelope))
            if envelope.length > PASS_FROM && ResponseKind::from_tag(envelope.tag).is_some_and(|kind| !kind.is_final()))
    }

    /// Whether the client has got a part of a response.
    pub fn is_cut(&self) -> bool {
        !self.told_tail.is_empty()
    }

    /// The messageIDs of whole requests that have no final response and weren't abandoned.
    pub fn unanswered(&self) -> Vec<MessageId> {
        let waits = |(id, asked): (&MessageId, &usize)| {
            let answered = self.answered.get(id).copied().unwrap_or_default();
            (answered < *asked && !self.abandoned.contains(id)).then_some(*id)
        };
        self.asked.iter().filter_map(waits).collect()
    }

    /// TLS starts: what the client sent after asking for it, before the handshake, is lost (§4.14.1).
    pub fn start_tls(&mut self) {
        assert!(!self.is_cut() && !self.told, "the last word before the handshake is a whole response");
        self.client_tail = Some(Vec::new());
        self.answered = self.asked.clone();
    }
}

fn is_simple(request: &Request<'_>) -> bool {
    request.bind().is_some_and(|bind| matches!(bind.authentication, Authentication::Simple(_)))
}

/// Whether Samba reads an extended request as StartTLS: it takes length octets that LDAP forbids, and an object identifier
/// ends for it at the first NUL.
fn is_start_tls_to_samba(content: &[u8]) -> bool {
    let [0x80, first, rest @ ..] = content else { return false };
    let octets = match *first {
        0..=0x7F => 0,
        0x80 => 1,
        long => usize::from(long & 0x7F),
    };
    let Some((length, name)) = rest.split_at_checked(octets) else { return false };
    // Its sum is 32 bits wide.
    let long = length.iter().fold(0_u32, |sum, octet| sum << 8 | u32::from(*octet));
    let length = if octets == 0 { u32::from(*first) } else { long };
    let name = name.get(..length as usize).unwrap_or_default();
    name.split(|octet| *octet == 0).next() == Some(oid::START_TLS.as_bytes())
}

/// Takes off the PDU that `octets` begin with; `None` while it isn't whole.
fn take_pdu(octets: &mut Vec<u8>) -> Result<Option<(Vec<u8>, Envelope)>, FrameError> {
    match envelope(octets, usize::MAX)? {
        Some(envelope) if envelope.length <= octets.len() => {
            let rest = octets.split_off(envelope.length);
            Ok(Some((std::mem::replace(octets, rest), envelope)))
        }
        _ => Ok(None),
    }
}
