//! Towards the client: reading the backend, matching its responses, delivering them.

use std::task::{Context, Poll};

use tokio::io::AsyncWrite;
use tokio::task::coop;
use tokio::time::Instant;

use super::account::Tally;
use super::{Link, Moved, Passing, Run, wait_for};
use crate::buffer::Source;
use crate::failure::EndReason;
use crate::ldap::{self, Response, ResponseKind};
use crate::referral::{Outcome, Referrals};
use crate::session::state::Layer;
use crate::session::verdict::{Ending, ResponseVerdict};

/// A response longer than this passes to the client as it arrives; a shorter one waits until it is whole, so that a
/// backend lost in the middle of it leaves the client's stream intact.
const PASS_FROM: usize = 32 * 1024;
/// Octets a final response may have: it is read whole.
const MOST_FINAL: usize = 16 * 1024 * 1024;

impl<T: Source + AsyncWrite + Unpin> Run<T> {
    pub(super) fn read_upstream(&mut self, cx: &mut Context<'_>, now: Instant) -> Moved {
        let Link::Up(up) = &mut self.link else { return Moved::No };
        if self.dry.upstream || !self.to_client.is_empty() || self.responses_left == 0 {
            return Moved::No;
        }
        match up.inbox.poll_top_up(cx, &mut up.upstream.stream) {
            Poll::Pending => {
                self.dry.upstream = coop::has_budget_remaining();
                up.inbox.shrink();
                Moved::No
            }
            Poll::Ready(Ok(count)) if count > 0 => {
                self.responses_left = self.responses_left.saturating_sub(count);
                up.upstream.heard();
                up.upstream.backend().metrics().received(count);
                if self.state.layer() == Layer::Opaque {
                    self.clock.active = now;
                }
                up.awaited = up.awaited.map(|_| now);
                self.take_responses(cx, now);
                if let Link::Up(up) = &mut self.link {
                    self.dry.upstream = wait_for(&mut up.upstream.stream, cx);
                }
                Moved::Yes
            }
            Poll::Ready(_) => {
                self.lose(now);
                Moved::Yes
            }
        }
    }

    /// Deals with the responses in the upstream's inbox.
    fn take_responses(&mut self, cx: &mut Context<'_>, now: Instant) {
        let Link::Up(mut up) = std::mem::replace(&mut self.link, Link::Down) else { return };
        let octets = up.inbox.unread();
        let mut run = 0;
        let mut at = 0;
        let mut lost = false;
        let mut ending = None;
        let mut tally = Tally::default();
        while at < octets.len() {
            if self.state.layer() == Layer::Opaque {
                at = octets.len();
                break;
            }
            let rest = &octets[at..];
            match &mut up.passing {
                Passing::ToClient(left) => {
                    let count = (*left).min(rest.len());
                    at += count;
                    up.passing = if count == *left { Passing::Nothing } else { Passing::ToClient(*left - count) };
                    if up.passing == Passing::Nothing && !self.held_words.is_empty() {
                        self.deliver(cx, &octets[run..at]);
                        run = at;
                        self.to_client.queue(&std::mem::take(&mut self.held_words));
                        up.awaited = None;
                    }
                    continue;
                }
                Passing::ToNobody(left) => {
                    let count = (*left).min(rest.len());
                    self.deliver(cx, &octets[run..at]);
                    at += count;
                    run = at;
                    up.passing = if count == *left { Passing::Nothing } else { Passing::ToNobody(*left - count) };
                    continue;
                }
                Passing::Nothing => {}
            }
            let Ok(envelope) = ldap::envelope(rest, usize::MAX) else {
                lost = true;
                break;
            };
            let Some(envelope) = envelope else { break };
            let Some(kind) = ResponseKind::from_tag(envelope.tag) else {
                lost = true;
                break;
            };
            let is_whole = envelope.length <= rest.len();
            // Most responses are entries: they have no references, and nothing else is asked of them.
            if kind == ResponseKind::Entry && is_whole && self.state.part(envelope.message_id, kind, envelope.length) {
                at += envelope.length;
                continue;
            }
            let response = rest.get(..envelope.length).map(|pdu| Response::of_kind(kind, pdu, envelope));
            let verdict = match &response {
                Some(response) => self.state.response(response, now),
                None if envelope.length > PASS_FROM && !kind.is_final() => {
                    let is_awaited = self.state.part(envelope.message_id, kind, envelope.length);
                    up.passing = match is_awaited {
                        true => Passing::ToClient(envelope.length),
                        false => Passing::ToNobody(envelope.length),
                    };
                    continue;
                }
                None if envelope.length > MOST_FINAL => {
                    lost = true;
                    break;
                }
                None => break,
            };
            match verdict {
                ResponseVerdict::Forward(settled) => {
                    let treated = response.as_ref().map_or(Outcome::Unchanged, |response| self.treat(response));
                    if let (Some(settled), Some(response)) = (settled, &response) {
                        self.settle(settled, response, up.upstream.backend(), &mut tally, now);
                    }
                    if treated == Outcome::Unchanged {
                        at += envelope.length;
                        continue;
                    }
                    self.deliver(cx, &octets[run..at]);
                    at += envelope.length;
                    run = at;
                    if let Outcome::Replaced(pdu) = treated {
                        self.deliver(cx, &pdu);
                    }
                }
                ResponseVerdict::Ignore => {
                    self.deliver(cx, &octets[run..at]);
                    at += envelope.length;
                    run = at;
                }
                ResponseVerdict::Lost => {
                    lost = true;
                    break;
                }
                ResponseVerdict::ForwardAndEnd(reason) => {
                    at += envelope.length;
                    ending = Some(reason);
                    break;
                }
            }
        }
        self.count_tally(&mut tally, up.upstream.backend(), now);
        self.deliver(cx, &octets[run..at]);
        up.inbox.consume(at);
        up.inbox.shrink();
        self.link = Link::Up(up);
        self.show_in_flight();
        if lost {
            self.lose(now);
        } else if let Some(reason) = ending {
            self.end(Ending::silent(reason));
        }
    }

    /// Rewrites or drops references to the pool's own servers, where the listener says so.
    fn treat(&self, response: &Response<'_>) -> Outcome {
        match &self.settings.referrals {
            Some(mode) if response.has_references() => {
                let (hosts, domains) = self.settings.pool.now().own_names();
                Referrals::new(mode.clone(), hosts, domains).apply(response.pdu(), response.envelope())
            }
            _ => Outcome::Unchanged,
        }
    }

    /// Sends octets to the client, or queues them.
    pub(super) fn deliver(&mut self, cx: &mut Context<'_>, octets: &[u8]) {
        if octets.is_empty() {
            return;
        }
        self.count_sent(octets.len());
        self.to_client.send(cx, &mut self.client, octets);
    }

    pub(super) fn flush_client(&mut self, cx: &mut Context<'_>, now: Instant) -> Moved {
        let before = self.to_client.taken();
        let flushed = self.to_client.poll_flush(cx, &mut self.client);
        if self.to_client.taken() != before
            && let Link::Up(up) = &mut self.link
        {
            // It wasn't read while the client took what there was.
            up.awaited = up.awaited.map(|_| now);
        }
        match flushed {
            Poll::Ready(Ok(())) => {
                self.clock.client_stuck = None;
                self.own_words = self.held_words.len();
                if self.to_client.taken() == before { Moved::No } else { Moved::Yes }
            }
            Poll::Ready(Err(_)) => {
                self.end(Ending::silent(EndReason::ClientLost));
                Moved::Yes
            }
            Poll::Pending => {
                if self.to_client.taken() != before {
                    self.clock.client_stuck = None;
                }
                self.clock.client_stuck.get_or_insert(now);
                Moved::No
            }
        }
    }
}
