//! The user's name in an NTLM AUTHENTICATE message (MS-NLMP §2.2.1.3), bare or wrapped in SPNEGO (RFC 4178 §4.2).

use crate::ldap::ber::{self, Reader};

/// Whom an NTLM message names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Identity {
    /// No NTLM message.
    None,
    /// An NTLM message that names nobody yet.
    Later,
    /// An AUTHENTICATE message without a user: a null session.
    Anonymous,
    /// A user, and the domain where one is named.
    User { domain: String, user: String },
    /// NTLM whose names servers may read differently, now or in a step to come, or a piece of SPNEGO that may hold it.
    Unreadable,
}

/// What begins every message, and what begins two of them with their types.
const SIGNATURE: &[u8] = b"NTLMSSP\0";
const NEGOTIATE: &[u8] = b"NTLMSSP\0\x01\0\0\0";
const AUTHENTICATE: &[u8] = b"NTLMSSP\0\x03\0\0\0";
/// Offsets of the fields' descriptors in an AUTHENTICATE message: length, allocated length, offset.
const DOMAIN_NAME: usize = 28;
const USER_NAME: usize = 36;
/// Offsets of the flags.
const NEGOTIATE_FLAGS: usize = 12;
const AUTHENTICATE_FLAGS: usize = 60;
/// NTLMSSP_NEGOTIATE_UNICODE
const UNICODE: u8 = 0x01;

/// The tags that begin SPNEGO.
const INITIAL_CONTEXT_TOKEN: u8 = 0x60;
const NEG_TOKEN_RESP: u8 = 0xA1;

/// Whom the credentials of a SASL bind name, where the mechanism is NTLM or SPNEGO around it.
pub(super) fn identity(credentials: &[u8]) -> Identity {
    match token(credentials) {
        Some(token) if token.starts_with(AUTHENTICATE) => named(token).unwrap_or(Identity::Unreadable),
        Some(token) if token.starts_with(NEGOTIATE) && is_unicode(token, NEGOTIATE_FLAGS) => Identity::Later,
        _ if is_piece(credentials) || credentials.windows(SIGNATURE.len()).any(|window| window == SIGNATURE) => {
            Identity::Unreadable
        }
        _ => Identity::None,
    }
}

/// Whom an AUTHENTICATE message names, if every server reads that alike.
fn named(message: &[u8]) -> Option<Identity> {
    let names = field(message, DOMAIN_NAME).zip(field(message, USER_NAME));
    let (domain, user) = names.filter(|_| is_unicode(message, AUTHENTICATE_FLAGS))?;
    // Samba reads both up to the first NUL.
    if matches!(user.as_bytes(), [] | [0, ..]) {
        return Some(Identity::Anonymous);
    }
    // With one of the others, a domain would make the whole name another form.
    let plain = !user.contains('\0') && !domain.contains(['\0', '=', '@', '\\']);
    plain.then_some(Identity::User { domain, user })
}

/// Whether the names are UTF-16. Samba goes by what the NEGOTIATE message asked for, others by what the AUTHENTICATE message
/// says, so both must ask for it; every client of today does.
fn is_unicode(message: &[u8], flags: usize) -> bool {
    message.get(flags..flags + 4).is_some_and(|flags| flags[0] & UNICODE != 0)
}

/// Whether it is SPNEGO that isn't whole. Samba joins the pieces of several steps.
fn is_piece(credentials: &[u8]) -> bool {
    matches!(credentials, [INITIAL_CONTEXT_TOKEN | NEG_TOKEN_RESP, ..]) && Reader::new(credentials).element().is_none()
}

/// The mechanism's token: all of it where nothing is wrapped around, else the one token that SPNEGO carries.
fn token(credentials: &[u8]) -> Option<&[u8]> {
    const OBJECT_IDENTIFIER: u8 = 0x06;
    const NEG_TOKEN_INIT: u8 = 0xA0;

    let mut outer = Reader::new(credentials);
    let negotiation = match outer.peek()? {
        INITIAL_CONTEXT_TOKEN => {
            let mut initial = Reader::new(outer.take(INITIAL_CONTEXT_TOKEN)?);
            initial.take(OBJECT_IDENTIFIER)?;
            initial.take(NEG_TOKEN_INIT)?
        }
        NEG_TOKEN_RESP => outer.take(NEG_TOKEN_RESP)?,
        _ => return Some(credentials),
    };
    // mechToken of an init and responseToken of a resp are both [2]. Of two, nobody knows which one a server takes.
    let mut fields = Reader::new(Reader::new(negotiation).take(ber::SEQUENCE)?);
    let mut tokens = std::iter::from_fn(|| fields.element()).filter(|field| field.tag == 0xA2);
    let token = tokens.next()?;
    if tokens.next().is_some() {
        return None;
    }
    Reader::new(token.content).take(ber::OCTET_STRING)
}

/// The UTF-16 text that the descriptor at `descriptor` points to.
fn field(message: &[u8], descriptor: usize) -> Option<String> {
    let [length, length_high, _, _, offset @ ..] = message.get(descriptor..descriptor + 8)?.first_chunk::<8>()?;
    let length = usize::from(u16::from_le_bytes([*length, *length_high]));
    let offset = usize::try_from(u32::from_le_bytes(*offset)).ok()?;
    let octets = message.get(offset..offset.checked_add(length)?)?;
    let (units, odd) = octets.as_chunks::<2>();
    odd.is_empty().then(|| {
        char::decode_utf16(units.iter().map(|unit| u16::from_le_bytes(*unit)))
            .map(|c| c.unwrap_or('\u{FFFD}'))
            .collect()
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn wide(text: &str) -> Vec<u8> {
        text.encode_utf16().flat_map(u16::to_le_bytes).collect()
    }

    fn authenticate(domain: &[u8], user: &[u8], unicode: bool) -> Vec<u8> {
        let mut message = AUTHENTICATE.to_vec();
        message.resize(64, 0);
        message[AUTHENTICATE_FLAGS] = u8::from(unicode);
        for (descriptor, text) in [(DOMAIN_NAME, domain), (USER_NAME, user)] {
            let length = u16::try_from(text.len()).unwrap().to_le_bytes();
            let offset = u32::try_from(message.len()).unwrap().to_le_bytes();
            message[descriptor..descriptor + 8].copy_from_slice(&[&length[..], &length, &offset].concat());
            message.extend(text);
        }
        message
    }

    /// One BER element; the long form where it is needed.
    fn element(tag: u8, content: &[u8]) -> Vec<u8> {
        let length = u16::try_from(content.len()).unwrap().to_be_bytes();
        [&[tag, 0x82][..], &length, content].concat()
    }

    fn response(fields: &[Vec<u8>]) -> Vec<u8> {
        element(0xA1, &element(0x30, &fields.concat()))
    }

    fn response_token(token: &[u8]) -> Vec<u8> {
        element(0xA2, &element(0x04, token))
    }

    #[test]
    fn names() {
        let user = |domain: &str, user: &str| Identity::User { domain: domain.into(), user: user.into() };
        let message = authenticate(&wide("CORP"), &wide("änn"), true);
        let named = user("CORP", "änn");
        let mic = element(0xA3, &element(0x04, &[1, 0, 0, 0]));
        assert_eq!(identity(&message), named);
        assert_eq!(identity(&response(&[response_token(&message), mic])), named);
        let init = element(0x30, &[element(0xA0, b""), response_token(&message)].concat());
        let spnego = b"\x06\x06\x2B\x06\x01\x05\x05\x02";
        assert_eq!(identity(&element(0x60, &[&spnego[..], &element(0xA0, &init)].concat())), named);

        let upn = authenticate(b"", &wide("ann@corp.example.com"), true);
        assert_eq!(identity(&upn), user("", "ann@corp.example.com"));
        for nobody in ["", "\0", "\0ann"] {
            assert_eq!(identity(&authenticate(&wide("CORP"), &wide(nobody), true)), Identity::Anonymous, "{nobody:?}");
        }
    }

    /// The last step of a GSS-SPNEGO bind as Samba's client sends it, without the responses to the challenge.
    #[test]
    fn a_real_token() {
        let message =
            b"NTLMSSP\0\x03\0\0\0\0\0\0\0\x40\0\0\0\0\0\0\0\x40\0\0\0\x08\0\x08\0\x40\0\0\0\x08\0\x08\0\x48\0\0\0\
            \x04\0\x04\0\x50\0\0\0\0\0\0\0\x54\0\0\0\x35\x82\x08\x62C\0O\0R\0P\0g\0o\0o\0d\0V\0M\0";
        let mut credentials = b"\xA1\x6D\x30\x6B\xA2\x57\x04\x55".to_vec();
        credentials.extend(message);
        credentials.push(0);
        credentials.extend(b"\xA3\x10\x04\x0E\x01\0\0\0\x77\x07\x6A\xD5\xA1\xAC\x65\xAC\0\0");
        assert_eq!(identity(&credentials), Identity::User { domain: "CORP".into(), user: "good".into() });
    }

    #[test]
    fn steps_without_a_name() {
        for credentials in [&b""[..], b"`\x08Kerberos", b"\xA1\x03\x30\x01\x00", b"username=\"ann\""] {
            assert_eq!(identity(credentials), Identity::None, "{credentials:02x?}");
        }
        let negotiate = [NEGOTIATE, b"\x35\x82\x08\x62"].concat();
        assert_eq!(identity(&negotiate), Identity::Later);
        assert_eq!(identity(&response(&[response_token(&negotiate)])), Identity::Later);
    }

    #[test]
    fn a_message_that_two_servers_might_read_differently() {
        let [ann, bob] = ["ann", "bob"].map(|user| authenticate(b"", &wide(user), true));
        let decoy = element(0xA1, &ann);
        let mut overrun = ann.clone();
        overrun[USER_NAME + 4] = 0xFF;
        for credentials in [
            response(&[response_token(&ann), response_token(&bob)]),
            response(&[decoy]),
            [b"x".to_vec(), ann.clone()].concat(),
            ann[..40].to_vec(),
            overrun,
            authenticate(b"", b"odd", true),
        ] {
            assert_eq!(identity(&credentials), Identity::Unreadable, "{credentials:02x?}");
        }
    }

    /// Most of these let ann log in to Samba 4.17, which tests/test_sasl.py shows; no honest client sends any of them.
    #[test]
    fn disguised_names() {
        let as_oem = authenticate(b"CORP", b"anna", true);
        let oem = [NEGOTIATE, b"\x06\x82\x08\xA2", &[0; 16]].concat();
        let whole = response(&[response_token(&authenticate(b"", &wide("ann"), true))]);
        for credentials in [
            authenticate(&wide("CORP"), &wide("ann"), false),
            authenticate(&wide("CORP"), &wide("ann\0junk"), true),
            authenticate(&wide("CORP\0junk"), &wide("ann"), true),
            authenticate(&wide("cn=x,dc=corp"), &wide("ann@corp.example.com"), true),
            authenticate(&wide("x@y"), &wide("ann@corp.example.com"), true),
            authenticate(&wide("x\\y"), &wide("ann@corp.example.com"), true),
            // What follows it is read by the flags in it, not by its own, as `as_oem` shows.
            oem.clone(),
            response(&[response_token(&oem)]),
            NEGOTIATE.to_vec(),
            // The rest comes in the next step.
            whole[..20].to_vec(),
            b"`".to_vec(),
        ] {
            assert_eq!(identity(&credentials), Identity::Unreadable, "{credentials:02x?}");
        }
        assert!(matches!(identity(&as_oem), Identity::User { user, .. } if user != "anna"));
    }

    proptest! {
        #[test]
        fn any_octets_can_be_read(start in 0_usize..70, garbage: Vec<u8>) {
            let message = authenticate(&wide("CORP"), &wide("ann"), true);
            let _ = identity(&[&message[..start.min(message.len())], &garbage].concat());
            let _ = identity(&response(&[response_token(&[AUTHENTICATE, &garbage].concat())]));
            let _ = identity(&garbage);
        }
    }
}
