//! A second reader of LDAP envelopes, written from RFC 4511 and X.690 alone and for clarity alone: it wants all octets
//! and recurses where the proxy's reader counts offsets.

/// What the octets begin with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// A message.
    Message(Message),
    /// The beginning of one, perhaps.
    Incomplete,
    /// Nothing that may ever become one.
    Malformed,
}

/// An LDAPMessage's envelope (RFC 4511 §4.1.1). Offsets count from its first octet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    pub length: u64,
    pub id: u32,
    pub tag: u8,
    pub content: (u64, u64),
}

/// Reads the message that `octets` begin with, of at most `limit` octets.
pub fn message(octets: &[u8], limit: u64) -> Found {
    read(octets, limit).map_or_else(|found| found, Found::Message)
}

fn read(octets: &[u8], limit: u64) -> Result<Message, Found> {
    let (tag, start, length) = header(octets, 0)?;
    let end = start + length;
    if tag != 0x30 || end > limit {
        return Err(Found::Malformed);
    }
    let (id, operation) = integer(octets, start, end)?;
    inside(operation, end)?;
    let (tag, content, length) = header_inside(octets, operation, end)?;
    let content = (content, content + length);
    inside_or_at(content.1, end)?;
    Ok(Message { length: end, id, tag, content })
}

/// A messageID, and where what follows it starts.
fn integer(octets: &[u8], at: u64, end: u64) -> Result<(u32, u64), Found> {
    inside(at, end)?;
    let (tag, start, length) = header_inside(octets, at, end)?;
    inside_or_at(start + length, end)?;
    if tag != 0x02 || length == 0 || length > 4 {
        return Err(Found::Malformed);
    }
    let mut id = 0_i64;
    for index in 0..length {
        let octet = octet(octets, start + index)?;
        id = if index == 0 { i64::from(octet as i8) } else { id * 256 + i64::from(octet) };
    }
    let id = u32::try_from(id).map_err(|_| Found::Malformed)?;
    Ok((id, start + length))
}

/// A header that must not need octets beyond `end`.
fn header_inside(octets: &[u8], at: u64, end: u64) -> Result<(u8, u64, u64), Found> {
    let whole = usize::try_from(end).is_ok_and(|end| octets.len() >= end);
    let part = if whole { &octets[..end as usize] } else { octets };
    match header(part, at) {
        Err(Found::Incomplete) if whole => Err(Found::Malformed),
        header => header,
    }
}

/// Tag, where the content starts, and the content's length (X.690 §8.1.3).
fn header(octets: &[u8], at: u64) -> Result<(u8, u64, u64), Found> {
    let tag = octet(octets, at)?;
    // Both readers refuse a wrong outer tag before they wait for more.
    if at == 0 && tag != 0x30 {
        return Err(Found::Malformed);
    }
    let first = octet(octets, at + 1)?;
    let count = match first {
        0..=0x7F => return Ok((tag, at + 2, u64::from(first))),
        0x81..=0x84 => u64::from(first - 0x80),
        _ => return Err(Found::Malformed),
    };
    let mut length = 0;
    for index in 0..count {
        length = length * 256 + u64::from(octet(octets, at + 2 + index)?);
    }
    Ok((tag, at + 2 + count, length))
}

fn octet(octets: &[u8], at: u64) -> Result<u8, Found> {
    usize::try_from(at).ok().and_then(|at| octets.get(at)).copied().ok_or(Found::Incomplete)
}

fn inside(at: u64, end: u64) -> Result<(), Found> {
    if at < end { Ok(()) } else { Err(Found::Malformed) }
}

fn inside_or_at(at: u64, end: u64) -> Result<(), Found> {
    if at <= end { Ok(()) } else { Err(Found::Malformed) }
}
