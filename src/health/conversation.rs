//! One connection on which probes ask, one question at a time.

use std::io;

use ldap3_proto::proto::LdapOp;
use ldap3_proto::{LdapCodec, LdapSearchResultEntry};
use tokio::io::AsyncWriteExt as _;
use tokio_util::bytes::{Bytes, BytesMut};
use tokio_util::codec::Decoder as _;

use super::judgement::Failure;
use super::request::{self, Search};
use crate::ldap::{Envelope, LdapResult, MessageId, OperationKind, Response, ResponseKind, ResultCode};
use crate::upstream::{Stream, read_pdu};

/// Octets a response may have: a rootDSE has some thousand.
const MOST_RESPONSE: usize = 256 * 1024;
const MOST_MESSAGE_ID: MessageId = 0x7FFF_FFFF;

/// A connection to a backend. After an error it is of no more use.
#[derive(Debug)]
pub(super) struct Conversation {
    stream: Stream,
    received: BytesMut,
    last_id: MessageId,
}

impl Conversation {
    pub(super) fn new(stream: Stream) -> Self {
        Self { stream, received: BytesMut::new(), last_id: 0 }
    }

    /// Binds by name and password.
    pub(super) async fn bind(&mut self, name: &str, password: &[u8]) -> Result<(), Failure> {
        let id = self.next_id();
        self.send(&request::bind(id, name, password)).await?;
        let (envelope, pdu) = self.answer(id).await?;
        let answer = Answer::read(&pdu, envelope)?;
        let diagnostic = || String::from_utf8_lossy(answer.result.diagnostic).into_owned();
        match answer.result.code {
            _ if answer.kind != ResponseKind::Final(OperationKind::Bind) => {
                Err(Failure::Wrong("the backend answered a bind with something else".to_owned()))
            }
            ResultCode::SUCCESS => Ok(()),
            ResultCode::INVALID_CREDENTIALS => Err(Failure::CredentialsRefused(diagnostic())),
            ResultCode::STRONGER_AUTH_REQUIRED => Err(Failure::StrongerAuthRequired),
            code => Err(Failure::Wrong(format!("the bind got {code}, {:?}", diagnostic()))),
        }
    }

    /// Searches until the result is complete or `enough` entries have come, which `keep` is shown.
    pub(super) async fn search(
        &mut self,
        search: &Search,
        enough: usize,
        mut keep: impl FnMut(LdapSearchResultEntry),
    ) -> Result<usize, Failure> {
        let id = self.next_id();
        self.send(&search.encode(id)).await?;
        let mut entries = 0;
        loop {
            let (envelope, pdu) = self.answer(id).await?;
            match ResponseKind::from_tag(envelope.tag) {
                Some(ResponseKind::Entry) => {
                    entries += 1;
                    keep(entry(&pdu)?);
                    if entries >= enough {
                        return Ok(entries);
                    }
                }
                Some(ResponseKind::Reference | ResponseKind::Intermediate) => {}
                _ => {
                    let code = Answer::read(&pdu, envelope)?.result.code;
                    let is_whole =
                        code == ResultCode::SUCCESS || (code == SIZE_LIMIT_EXCEEDED && search.size_limit > 0);
                    return if is_whole { Ok(entries) } else { Err(Failure::Wrong(format!("the search got {code}"))) };
                }
            }
        }
    }

    /// Takes its leave, so that the backend logs no broken connection.
    pub(super) async fn unbind(mut self) {
        let id = self.next_id();
        if self.send(&request::unbind(id)).await.is_ok() {
            // Whatever becomes of it, the connection ends here.
            let _ = self.stream.shutdown().await;
        }
    }

    fn next_id(&mut self) -> MessageId {
        self.last_id = if self.last_id == MOST_MESSAGE_ID { 1 } else { self.last_id + 1 };
        self.last_id
    }

    async fn send(&mut self, pdu: &[u8]) -> Result<(), Failure> {
        self.stream.write_all(pdu).await.map_err(broken)?;
        self.stream.flush().await.map_err(broken)
    }

    async fn answer(&mut self, id: MessageId) -> Result<(Envelope, Bytes), Failure> {
        let (envelope, pdu) = read_pdu(&mut self.stream, &mut self.received, MOST_RESPONSE).await.map_err(broken)?;
        if envelope.message_id == id {
            return Ok((envelope, pdu));
        }
        Err(match Answer::read(&pdu, envelope) {
            Ok(notice) if envelope.message_id == 0 => Failure::Unreachable(format!(
                "the backend ends the connection: {}, {:?}",
                notice.result.code,
                String::from_utf8_lossy(notice.result.diagnostic)
            )),
            _ => Failure::Wrong("the backend answered what it wasn't asked".to_owned()),
        })
    }
}

/// RFC 4511 §4.1.9
const SIZE_LIMIT_EXCEEDED: ResultCode = ResultCode(4);

struct Answer<'a> {
    kind: ResponseKind,
    result: LdapResult<'a>,
}

impl<'a> Answer<'a> {
    fn read(pdu: &'a [u8], envelope: Envelope) -> Result<Self, Failure> {
        Response::new(pdu, envelope)
            .and_then(|response| Some(Self { kind: response.kind(), result: response.result()? }))
            .ok_or_else(|| Failure::Wrong("the backend answered with something that isn't a result".to_owned()))
    }
}

fn entry(pdu: &[u8]) -> Result<LdapSearchResultEntry, Failure> {
    let decoded = LdapCodec::new(Some(MOST_RESPONSE), None).decode(&mut BytesMut::from(pdu));
    match decoded.ok().flatten().map(|message| message.op) {
        Some(LdapOp::SearchResultEntry(entry)) => Ok(entry),
        _ => Err(Failure::Wrong("an entry that can't be decoded".to_owned())),
    }
}

fn broken(error: io::Error) -> Failure {
    Failure::Unreachable(error.to_string())
}
