//! The journal as an output: its socket and its native protocol.

use std::io;
use std::os::unix::net::UnixDatagram;

use serde_json::Value;

const SOCKET: &str = "/run/systemd/journal/socket";

/// A socket to the journal.
///
/// # Errors
/// It can't be reached.
pub(super) fn open() -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket
        .connect(SOCKET)
        .map_err(|error| io::Error::new(error.kind(), format!("can't reach the journal at {SOCKET}: {error}")))?;
    Ok(socket)
}

/// An entry in the journal's native protocol: the line as its message and, where that is JSON, its texts and numbers as
/// fields to search by (`LDAPS_PROXY_RESULT=busy`). Priority 6 is "informational".
pub(super) fn entry(line: &[u8]) -> Vec<u8> {
    let mut entry = b"PRIORITY=6\nSYSLOG_IDENTIFIER=ldaps-proxy\nLDAPS_PROXY_LOG=access\n".to_vec();
    field(&mut entry, "MESSAGE", line);
    for (name, value) in serde_json::from_slice::<serde_json::Map<_, _>>(line).unwrap_or_default() {
        let name = format!("LDAPS_PROXY_{}", name.to_ascii_uppercase());
        match value {
            Value::String(text) => field(&mut entry, &name, text.as_bytes()),
            Value::Number(number) => field(&mut entry, &name, number.to_string().as_bytes()),
            _ => {}
        }
    }
    entry
}

/// With its length, since a client's words may hold a line's end.
fn field(entry: &mut Vec<u8>, name: &str, value: &[u8]) {
    entry.extend_from_slice(name.as_bytes());
    entry.push(b'\n');
    entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
    entry.extend_from_slice(value);
    entry.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_entry_has_the_line_and_its_fields() {
        let written = entry(br#"{"event":"operation","session":7,"dn":"a\nPRIORITY=0","tls":{"version":"1.3"}}"#);
        let field = |name: &str, value: &[u8]| {
            [name.as_bytes(), b"\n", &(value.len() as u64).to_le_bytes(), value, b"\n"].concat()
        };
        for (name, value) in [("EVENT", &b"operation"[..]), ("SESSION", b"7"), ("DN", b"a\nPRIORITY=0")] {
            let wanted = field(&format!("LDAPS_PROXY_{name}"), value);
            assert!(written.windows(wanted.len()).any(|window| window == wanted), "{name}");
        }
        let text = entry(b"a line of text");
        assert!(text.ends_with(&field("MESSAGE", b"a line of text")));
    }
}
