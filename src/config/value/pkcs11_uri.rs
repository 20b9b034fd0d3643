//! RFC 7512: names of objects in a token.

use std::path::PathBuf;

use super::Refusal;
use crate::config::settings::TokenKey;

/// A `pkcs11:` URI of a private key, with at least a token and an object to go by.
///
/// What could be meant by a URI but isn't understood is refused, rather than matching more than was asked for.
pub(in crate::config) fn pkcs11_uri(text: &str) -> Result<TokenKey, Refusal> {
    let rest = text.strip_prefix(SCHEME).ok_or_else(|| Refusal::new("not a pkcs11: URI").help(EXAMPLE))?;
    let (path, query) = rest.split_once('?').map_or((rest, None), |(path, query)| (path, Some(query)));
    let mut key = TokenKey { uri: text.into(), ..TokenKey::default() };
    for (name, value) in attributes(path, ';')? {
        let text = || text_of(name, &value);
        let is_new = match name {
            "token" => key.token.replace(text()?).is_none(),
            "manufacturer" => key.manufacturer.replace(text()?).is_none(),
            "model" => key.model.replace(text()?).is_none(),
            "serial" => key.serial.replace(text()?).is_none(),
            "slot-id" => {
                let number = text()?.parse().map_err(|_| Refusal::new("slot-id is no number"))?;
                key.slot.replace(number).is_none()
            }
            "object" => key.object.replace(text()?).is_none(),
            "id" => key.id.replace(value.clone()).is_none(),
            "type" if value == b"private" => true,
            "type" => return Err(Refusal::new("the key must be a private one").help("type=private, or leave it out")),
            _ => return Err(unknown(name, PATH)),
        };
        if !is_new {
            return Err(Refusal::new(format!("{name} is there twice")));
        }
    }
    for (name, value) in query.map_or(Ok(Vec::new()), |query| attributes(query, '&'))? {
        let text = || text_of(name, &value);
        match name {
            "module-path" => key.module = Some(PathBuf::from(text()?)),
            "pin-source" => key.pin_file = Some(pin_file(&text()?)?),
            "pin-value" => {
                let refusal = Refusal::new("a PIN doesn't belong in this file, which many may read");
                return Err(refusal.help("put it into a file and name that in private_key_passphrase_file"));
            }
            _ => return Err(unknown(name, QUERY)),
        }
    }
    if key.token.is_none() && key.serial.is_none() && key.slot.is_none() {
        return Err(Refusal::new("no token is named").help(format!("by token=, serial= or slot-id=: {EXAMPLE}")));
    }
    if key.object.is_none() && key.id.is_none() {
        return Err(Refusal::new("no object is named").help(format!("by object= or id=: {EXAMPLE}")));
    }
    Ok(key)
}

pub(in crate::config) const SCHEME: &str = "pkcs11:";
const EXAMPLE: &str = "such as \"pkcs11:token=corp;object=ldap\"";
const PATH: &str = "token, manufacturer, model, serial, slot-id, object, id, type";
const QUERY: &str = "module-path, pin-source";

fn unknown(name: &str, known: &str) -> Refusal {
    Refusal::new(format!("\"{}\" is not understood in a pkcs11: URI", name.escape_debug()))
        .help(format!("known here: {known}"))
}

fn attributes(text: &str, separator: char) -> Result<Vec<(&str, Vec<u8>)>, Refusal> {
    let attribute = |text: &str| -> Result<_, Refusal> {
        let example = || Refusal::new(format!("\"{}\" is no name=value", text.escape_debug())).help(EXAMPLE);
        let (name, value) = text.split_once('=').ok_or_else(example)?;
        Ok((name.len(), percent_decoded(value)?))
    };
    (text.split(separator).filter(|part| !part.is_empty()))
        .map(|part| attribute(part).map(|(name, value)| (&part[..name], value)))
        .collect()
}

fn text_of(name: &str, value: &[u8]) -> Result<String, Refusal> {
    match std::str::from_utf8(value) {
        Ok(text) if !text.is_empty() && !text.chars().any(char::is_control) => Ok(text.into()),
        _ => Err(Refusal::new(format!("{name} must be a text without control characters"))),
    }
}

fn percent_decoded(text: &str) -> Result<Vec<u8>, Refusal> {
    let mut octets = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(octet) = octets.next() {
        decoded.push(match octet {
            b'%' => {
                let mut digit = || octets.next().and_then(|digit| char::from(digit).to_digit(16));
                match (digit(), digit()) {
                    (Some(high), Some(low)) => (high * 16 + low) as u8,
                    _ => return Err(Refusal::new("% must be followed by two hexadecimal digits")),
                }
            }
            other => other,
        });
    }
    Ok(decoded)
}

/// RFC 7512 §2.4: a `file:` URI or an absolute path. A command to run, which it allows too, is refused.
fn pin_file(source: &str) -> Result<PathBuf, Refusal> {
    let path = source.strip_prefix("file:").unwrap_or(source);
    let path = path.strip_prefix("//localhost").or_else(|| path.strip_prefix("//")).unwrap_or(path);
    if path.starts_with('/') {
        Ok(path.into())
    } else {
        Err(Refusal::new("pin-source must be a file").help("such as pin-source=file:/etc/ldaps-proxy/pin"))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_attribute_is_read() {
        let uri = "pkcs11:token=My%20token;manufacturer=Snake%20Oil;model=1.0;serial=DECAFBAD;slot-id=7;object=key;\
                   id=%00%fFa;type=private?module-path=/usr/lib/x.so&pin-source=file:///run/pin";
        let expected = TokenKey {
            uri: uri.into(),
            token: Some("My token".into()),
            manufacturer: Some("Snake Oil".into()),
            model: Some("1.0".into()),
            serial: Some("DECAFBAD".into()),
            slot: Some(7),
            object: Some("key".into()),
            id: Some(b"\x00\xffa".to_vec()),
            module: Some("/usr/lib/x.so".into()),
            pin_file: Some("/run/pin".into()),
            sessions: 0,
        };
        assert_eq!(pkcs11_uri(uri), Ok(expected));
        for source in ["/run/pin", "file:/run/pin", "file://localhost/run/pin"] {
            let key = pkcs11_uri(&format!("pkcs11:token=t;object=o?pin-source={source}")).unwrap();
            assert_eq!(key.pin_file.as_deref(), Some(Path::new("/run/pin")), "{source}");
        }
    }

    #[test]
    fn what_is_doubtful_is_refused() {
        for (uri, words) in [
            ("pkcs11:", "no token is named"),
            ("pkcs11:object=o", "no token is named"),
            ("pkcs11:token=t", "no object is named"),
            ("pkcs11:token=;object=o", "token must be a text"),
            ("pkcs11:token=t%0a;object=o", "token must be a text"),
            ("pkcs11:token=t;object=o%ff", "object must be a text"),
            ("pkcs11:token=t;token=u;object=o", "token is there twice"),
            ("pkcs11:token=t;object=o;type=cert", "must be a private one"),
            ("pkcs11:token=t;object=o;label=x", "\"label\" is not understood"),
            ("pkcs11:token=t;object", "\"object\" is no name=value"),
            ("pkcs11:token=t;object=%4", "two hexadecimal digits"),
            ("pkcs11:token=t;object=%+4", "two hexadecimal digits"),
            ("pkcs11:slot-id=x;object=o", "slot-id is no number"),
            ("pkcs11:token=t;object=o?pin-value=1234", "a PIN doesn't belong"),
            ("pkcs11:token=t;object=o?pin-source=|/bin/pin", "pin-source must be a file"),
            ("pkcs11:token=t;object=o?pin-source=pin", "pin-source must be a file"),
            ("pkcs11:token=t;object=o?module-name=softhsm2", "\"module-name\" is not understood"),
            ("PKCS11:token=t;object=o", "not a pkcs11: URI"),
        ] {
            let refusal = pkcs11_uri(uri).expect_err(uri);
            assert!(refusal.message.contains(words), "{uri}: {refusal:?}");
            assert!(!refusal.message.contains("1234"), "no PIN in a message: {refusal:?}");
        }
    }

    proptest! {
        #[test]
        fn any_octets_survive_percent_encoding(id in proptest::collection::vec(any::<u8>(), 1..40)) {
            let encoded: String = id.iter().map(|octet| format!("%{octet:02x}")).collect();
            let key = pkcs11_uri(&format!("pkcs11:token=t;id={encoded}")).unwrap();
            prop_assert_eq!(key.id, Some(id));
        }

        #[test]
        fn no_text_makes_it_panic(text in "pkcs11:\\PC{0,60}") {
            let _ = pkcs11_uri(&text);
        }
    }
}
