//! The words of LDAP.

use super::{Refusal, host_name};
use crate::ldap::dn::Dn;

/// An object identifier in dotted form (RFC 4512 §1.4).
pub(in crate::config) fn object_identifier(text: &str) -> Result<String, Refusal> {
    let arc = |arc: &str| arc == "0" || (!arc.starts_with('0') && arc.parse::<u128>().is_ok());
    if text.contains('.') && text.split('.').all(arc) {
        Ok(text.into())
    } else {
        Err(Refusal::new("not an object identifier").help("numbers with dots, such as \"1.3.6.1.4.1.4203.1.11.1\""))
    }
}

/// The name of a SASL mechanism (RFC 4422 §3.1).
pub(in crate::config) fn sasl_mechanism(text: &str) -> Result<String, Refusal> {
    let allowed = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_');
    if (1..=20).contains(&text.len()) && text.bytes().all(allowed) {
        return Ok(text.into());
    }
    let refusal = Refusal::new("not the name of a SASL mechanism");
    Err(match text.to_ascii_uppercase() {
        upper if upper != text && upper.len() <= 20 && upper.bytes().all(allowed) => {
            refusal.help(format!("write \"{upper}\""))
        }
        _ => refusal.help("capitals, digits, hyphens and underscores, such as \"GSSAPI\" or \"GSS-SPNEGO\""),
    })
}

/// A distinguished name (RFC 4514), only so far as to catch what plainly isn't one; empty is the root.
pub(in crate::config) fn distinguished_name(text: &str) -> Result<String, Refusal> {
    if text.is_empty() || text.split_once('=').is_some_and(|(kind, _)| !kind.trim().is_empty()) {
        return Ok(text.into());
    }
    let refusal = Refusal::new("not a distinguished name");
    Err(match host_name(text) {
        Ok(domain) if domain.contains('.') => refusal.help(format!(
            "write \"{}\"",
            domain.split('.').map(|part| format!("DC={part}")).collect::<Vec<_>>().join(",")
        )),
        _ => refusal.help("such as \"DC=corp,DC=example,DC=com\""),
    })
}

/// A distinguished name that a policy can compare others with.
pub(in crate::config) fn subtree(text: &str) -> Result<String, Refusal> {
    let name = distinguished_name(text)?;
    if Dn::parse(&name).is_none() {
        return Err(Refusal::new("not a distinguished name that others can be compared with").help(
            "ATTRIBUTE=VALUE between commas, without quotes and `+`, such as \"OU=People,DC=corp,DC=example,DC=com\"",
        ));
    }
    Ok(name)
}

/// A search filter (RFC 4515), only so far as that its parentheses pair up.
pub(in crate::config) fn filter(text: &str) -> Result<String, Refusal> {
    let mut depth = 0_i32;
    let closed_early = text.bytes().enumerate().any(|(index, byte)| {
        depth += i32::from(byte == b'(') - i32::from(byte == b')');
        depth <= 0 && index + 1 < text.len()
    });
    if text.starts_with('(') && text.ends_with(')') && depth == 0 && !closed_early {
        Ok(text.into())
    } else {
        Err(Refusal::new("not a search filter: its parentheses don't pair up")
            .help("such as \"(sAMAccountName=probe)\""))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::refusal;
    use super::*;

    #[test]
    fn words_of_ldap() {
        assert!(object_identifier("1.3.6.1.4.1.1466.20037").is_ok());
        for text in ["1", "1.", "1.02", "1.a", ""] {
            assert!(object_identifier(text).is_err(), "{text}");
        }
        assert!(sasl_mechanism("GSS-SPNEGO").is_ok());
        assert!(refusal(sasl_mechanism("gssapi")).contains("write \"GSSAPI\""));
        assert!(distinguished_name("").is_ok());
        assert!(distinguished_name("DC=corp,DC=example").is_ok());
        assert!(refusal(distinguished_name("corp.example.com")).contains("DC=corp,DC=example,DC=com"));
        for text in ["", "DC=corp,DC=example", r"OU=R\26D, DC=corp"] {
            assert!(subtree(text).is_ok(), "{text}");
        }
        for text in ["DC=corp,example", "OU=a+b,DC=x", "DC=corp,", r#"OU="a,b",DC=x"#] {
            assert!(distinguished_name(text).is_ok(), "{text}: a probe may search there");
            assert!(refusal(subtree(text)).contains("ATTRIBUTE=VALUE"), "{text}");
        }
        assert!(refusal(subtree("corp.example.com")).contains("DC=corp,DC=example,DC=com"));
        for text in ["(a=b)", "(&(a=b)(c=d))"] {
            assert!(filter(text).is_ok(), "{text}");
        }
        for text in ["", "a=b", "(a=b", "(a=b)(c=d)", "((a=b)", ")(a=b("] {
            assert!(filter(text).is_err(), "{text}");
        }
    }
}
