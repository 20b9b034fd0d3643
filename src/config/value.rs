//! The values of a configuration file that are written as text: pure functions from text to type and back.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};

use super::settings::BackendAddress;

/// Why a text is not the value it should be, and what would be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// One sentence without a full stop; the text itself is shown beside it.
    pub message: String,
    /// What to write instead.
    pub help: Option<String>,
}

impl Refusal {
    fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), help: None }
    }

    fn help(self, help: impl Into<String>) -> Self {
        Self { help: Some(help.into()), ..self }
    }
}

/// A network in CIDR form, or an address as the network of its own.
///
/// IPv4-mapped IPv6 networks are refused, since such clients are matched as the IPv4 clients they are; so are host bits,
/// since nobody can tell which network was meant.
pub fn network(text: &str) -> Result<IpNet, Refusal> {
    let network = match (text.parse::<IpAddr>(), text.parse::<IpNet>()) {
        (Ok(address), _) => IpNet::from(address),
        (_, Ok(network)) => network,
        _ => {
            return Err(Refusal::new("not a network").help("a network such as \"10.0.0.0/16\" or an address"));
        }
    };
    if let IpNet::V6(v6) = network
        && let Some(v4) = v6.addr().to_ipv4_mapped()
    {
        let refusal = Refusal::new("an IPv4-mapped network matches nobody: such clients are IPv4 clients here");
        let v4 = v6.prefix_len().checked_sub(96).and_then(|length| Ipv4Net::new(v4, length).ok());
        return Err(match v4 {
            Some(v4) => refusal.help(format!("write \"{}\"", v4.trunc())),
            None => refusal.help("write the IPv4 network"),
        });
    }
    if network.addr() != network.network() {
        return Err(Refusal::new("the address has bits set beyond the prefix length").help(format!(
            "the network is \"{}\"; the address alone is \"{}\"",
            network.trunc(),
            network.addr()
        )));
    }
    Ok(network)
}

/// `IP:PORT`, with brackets around an IPv6 address.
pub(super) fn socket_address(text: &str) -> Result<SocketAddr, Refusal> {
    const HELP: &str = "an IP address and a port, such as \"0.0.0.0:636\" or \"[::]:636\"";
    text.parse().map_err(|_| match (text.parse::<IpAddr>(), text.strip_prefix("*:"), text.rsplit_once(':')) {
        (Ok(address), ..) => {
            Refusal::new("the port is missing").help(format!("write \"{}\"", SocketAddr::new(address, 636)))
        }
        (_, Some(port), _) => Refusal::new("not an address to listen on").help(format!("write \"[::]:{port}\"")),
        (_, _, Some((_, port))) if port.parse::<u16>().is_ok() => {
            Refusal::new("not an IP address: host names are not resolved here").help(HELP)
        }
        _ => Refusal::new("not an IP address and port").help(HELP),
    })
}

/// `IP` or `IP:PORT` of a DNS server, port 53 where none is written.
pub(super) fn name_server(text: &str) -> Result<SocketAddr, Refusal> {
    (text.parse().map(|address: IpAddr| SocketAddr::new(address, 53)))
        .or_else(|_| text.parse())
        .map_err(|_| Refusal::new("not the address of a DNS server").help("such as \"10.0.0.2\" or \"10.0.0.2:53\""))
}

/// `IP`, `IP:PORT`, `NAME`, `NAME:PORT` or `srv:NAME`.
pub(super) fn backend_address(text: &str, default_port: u16) -> Result<BackendAddress, Refusal> {
    if let Some(service) = text.strip_prefix("srv:") {
        return service_name(service).map(BackendAddress::Service);
    }
    if let Some((scheme, rest)) = text.split_once("://") {
        return Err(Refusal::new("not an address: it is a URL").help(format!(
            "write \"{}\"{}",
            rest.trim_end_matches('/'),
            if scheme == "ldaps" { " and protocol = \"ldaps\" in the pool" } else { "" }
        )));
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(BackendAddress::Socket(address)).and_then(with_a_port);
    }
    if let Ok(address) = text.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        return Ok(BackendAddress::Socket(SocketAddr::new(address, default_port)));
    }
    let (name, port) = match text.rsplit_once(':') {
        None => (text, default_port),
        Some((name, port)) => (name, port.parse().map_err(|_| Refusal::new(NO_PORT))?),
    };
    host_name(name).map(|name| BackendAddress::Host { name, port }).and_then(with_a_port)
}

/// How [`backend_address`] is written back.
pub(super) fn show_backend_address(address: &BackendAddress) -> String {
    match address {
        BackendAddress::Socket(address) => address.to_string(),
        BackendAddress::Host { name, port } => format!("{name}:{port}"),
        BackendAddress::Service(name) => format!("srv:{name}"),
    }
}

/// A host name in lower case, without a trailing dot (RFC 1123 §2.1, and the underscore that Windows allows).
pub(super) fn host_name(text: &str) -> Result<String, Refusal> {
    let name = text.strip_suffix('.').unwrap_or(text);
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if name.len() > 253 || !name.split('.').all(label) {
        return Err(
            Refusal::new("not a host name").help("letters, digits and hyphens, such as \"dc1.corp.example.com\"")
        );
    }
    if name.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit())) {
        return Err(Refusal::new("neither an IP address nor a host name: a name's last part is not a number"));
    }
    Ok(name.to_ascii_lowercase())
}

/// A host name or an IP address: what a certificate may be issued to.
pub(super) fn server_name(text: &str) -> Result<String, Refusal> {
    text.parse::<IpAddr>().map(|address| address.to_string()).or_else(|_| host_name(text))
}

/// `2s`, `15m`, `12h`, `500ms`, `1h30m`; at most a year.
pub(super) fn duration(text: &str) -> Result<Duration, Refusal> {
    const HELP: &str = "a number with its unit, such as \"500ms\", \"2s\", \"15m\", \"12h\" or \"1h30m\"";
    const MOST: Duration = Duration::from_secs(365 * 86_400);
    let parse = || {
        let mut rest = text;
        let mut sum = Duration::ZERO;
        while !rest.is_empty() {
            let (number, after) = split_number(rest);
            let (unit, after) = after.split_at(after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len()));
            let (_, milliseconds) = DURATION_UNITS.iter().find(|(name, _)| *name == unit)?;
            sum = sum.checked_add(Duration::from_millis(number.parse::<u64>().ok()?.checked_mul(*milliseconds)?))?;
            rest = after;
        }
        Some(sum)
    };
    match parse().filter(|_| !text.is_empty()) {
        Some(duration) if duration > MOST => Err(Refusal::new("longer than a year").help(HELP)),
        Some(duration) => Ok(duration),
        None if text.parse::<u64>().is_ok() => {
            Err(Refusal::new("a duration needs its unit").help(format!("write \"{text}s\"")))
        }
        None => Err(Refusal::new("not a duration").help(HELP)),
    }
}

/// How [`duration`] is written back.
pub(super) fn show_duration(duration: &Duration) -> String {
    let mut rest = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let mut text = String::new();
    for (unit, milliseconds) in DURATION_UNITS.iter().rev() {
        if rest >= *milliseconds {
            text += &format!("{}{unit}", rest / milliseconds);
            rest %= milliseconds;
        }
    }
    if text.is_empty() { "0s".into() } else { text }
}

const DURATION_UNITS: [(&str, u64); 5] = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// `250 KiB`, `16 MiB`, `1 GiB` or `4096 B`, in bytes.
pub(super) fn size(text: &str) -> Result<u64, Refusal> {
    let (number, unit) = split_number(text.trim());
    let unit = unit.trim_start();
    let bytes = (SIZE_UNITS.iter().find(|(name, _)| *name == unit))
        .and_then(|(_, bytes)| number.parse::<u64>().ok()?.checked_mul(*bytes));
    bytes.ok_or_else(|| {
        let meant = SIZE_UNITS.iter().find(|(name, _)| {
            let first = unit.chars().next().map(|first| first.to_ascii_uppercase());
            number.parse::<u64>().is_ok() && unit.len() <= 3 && first.is_some_and(|first| name.starts_with(first))
        });
        Refusal::new("not a size").help(match meant {
            Some((name, _)) => format!("write \"{number} {name}\""),
            None => "such as \"250 KiB\", \"16 MiB\", \"1 GiB\", or a number of bytes".into(),
        })
    })
}

/// How [`size`] is written back.
pub(super) fn show_size(bytes: u64) -> String {
    let (unit, factor) = (SIZE_UNITS.iter().rev().find(|(_, factor)| bytes > 0 && bytes.is_multiple_of(*factor)))
        .unwrap_or(&SIZE_UNITS[0]);
    format!("{} {unit}", bytes / factor)
}

const SIZE_UNITS: [(&str, u64); 4] = [("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];

/// An object identifier in dotted form (RFC 4512 §1.4).
pub(super) fn object_identifier(text: &str) -> Result<String, Refusal> {
    let arc = |arc: &str| arc == "0" || (!arc.starts_with('0') && arc.parse::<u128>().is_ok());
    if text.contains('.') && text.split('.').all(arc) {
        Ok(text.into())
    } else {
        Err(Refusal::new("not an object identifier").help("numbers with dots, such as \"1.3.6.1.4.1.4203.1.11.1\""))
    }
}

/// The name of a SASL mechanism (RFC 4422 §3.1).
pub(super) fn sasl_mechanism(text: &str) -> Result<String, Refusal> {
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
pub(super) fn distinguished_name(text: &str) -> Result<String, Refusal> {
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

/// A search filter (RFC 4515), only so far as that its parentheses pair up.
pub(super) fn filter(text: &str) -> Result<String, Refusal> {
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

/// A level, or levels per module: `info`, `info,ldaps_proxy::health=debug`.
pub(super) fn log_level(text: &str) -> Result<String, Refusal> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    for directive in text.split(',') {
        let (target, level) =
            directive.rsplit_once('=').map_or((None, directive), |(target, level)| (Some(target), level));
        if target.is_some_and(|target| target.trim().is_empty()) {
            return Err(Refusal::new("a module is missing before `=`"));
        }
        if !LEVELS.contains(&level) {
            let refusal = Refusal::new(format!("\"{level}\" is not a level"));
            return Err(
                refusal.help(format!("one of {}, or such as \"info,ldaps_proxy::health=debug\"", LEVELS.join(", ")))
            );
        }
    }
    Ok(text.into())
}

/// A text that isn't empty and has no control characters: it ends up in labels and on terminals.
pub(super) fn name(text: &str) -> Result<String, Refusal> {
    if text.is_empty() || text.chars().any(char::is_control) {
        Err(Refusal::new("must be a text of at least one character, without control characters"))
    } else {
        Ok(text.into())
    }
}

/// The owner and name of SRV records: `_ldap._tcp.corp.example.com`.
fn service_name(text: &str) -> Result<String, Refusal> {
    let name = host_name(text)?;
    let labels: Vec<_> = name.split('.').collect();
    if labels.len() > 2 && labels[0].starts_with('_') && labels[1].starts_with('_') {
        Ok(name)
    } else {
        Err(Refusal::new("not the name of SRV records").help(format!("write \"srv:_ldap._tcp.{name}\"")))
    }
}

fn with_a_port(address: BackendAddress) -> Result<BackendAddress, Refusal> {
    match &address {
        BackendAddress::Socket(socket) if socket.port() == 0 => Err(Refusal::new(NO_PORT)),
        BackendAddress::Host { port: 0, .. } => Err(Refusal::new(NO_PORT)),
        _ => Ok(address),
    }
}

const NO_PORT: &str = "the port is not a number of 1 to 65535";

fn split_number(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn refusal<T: std::fmt::Debug>(result: Result<T, Refusal>) -> String {
        let refusal = result.expect_err("the value is wrong");
        format!("{} | {}", refusal.message, refusal.help.unwrap_or_default())
    }

    #[test]
    fn networks() {
        for text in ["10.0.0.0/16", "10.1.2.3/32", "0.0.0.0/0", "::/0", "fd00::/8"] {
            assert_eq!(network(text).map(|network| network.to_string()), Ok(text.into()));
        }
        assert_eq!(network("10.1.2.3").map(|network| network.to_string()), Ok("10.1.2.3/32".into()));
        assert_eq!(network("fd00::1").map(|network| network.prefix_len()), Ok(128));
        for (text, expected) in [
            ("10.0.0.5/16", "\"10.0.0.0/16\""),
            ("::ffff:10.0.0.0/112", "\"10.0.0.0/16\""),
            ("::ffff:10.0.0.7", "\"10.0.0.7/32\""),
            ("10.0.0.0/33", "not a network"),
            ("10.0.0", "not a network"),
            ("", "not a network"),
        ] {
            assert!(refusal(network(text)).contains(expected), "{text}: {}", refusal(network(text)));
        }
    }

    #[test]
    fn backends() {
        for (text, shown) in [
            ("10.0.1.10", "10.0.1.10:389"),
            ("10.0.1.10:3268", "10.0.1.10:3268"),
            ("::1", "[::1]:389"),
            ("[::1]", "[::1]:389"),
            ("[::1]:390", "[::1]:390"),
            ("DC1.corp.example.com.", "dc1.corp.example.com:389"),
            ("dc1:390", "dc1:390"),
            ("srv:_ldap._tcp.corp.example.com", "srv:_ldap._tcp.corp.example.com"),
        ] {
            assert_eq!(backend_address(text, 389).map(|address| show_backend_address(&address)), Ok(shown.into()));
        }
        for (text, expected) in [
            ("ldap://10.0.1.10:389/", "write \"10.0.1.10:389\""),
            ("ldaps://dc1", "protocol = \"ldaps\""),
            ("10.0.1.300", "neither"),
            ("10.0.1.300:389", "neither"),
            ("dc1:x", "port"),
            ("dc1:0", "port"),
            ("10.0.1.10:0", "port"),
            ("", "not a host name"),
            ("dc 1", "not a host name"),
            ("srv:corp.example.com", "write \"srv:_ldap._tcp.corp.example.com\""),
        ] {
            let refusal = refusal(backend_address(text, 389));
            assert!(refusal.contains(expected), "{text}: {refusal}");
        }
    }

    #[test]
    fn addresses_to_listen_on() {
        assert_eq!(socket_address("[::]:636").map(|address| address.port()), Ok(636));
        for (text, expected) in [
            ("10.0.0.1", "write \"10.0.0.1:636\""),
            ("::", "write \"[::]:636\""),
            ("*:636", "write \"[::]:636\""),
            ("localhost:636", "host names"),
            ("636", "not an IP address and port"),
        ] {
            let refusal = refusal(socket_address(text));
            assert!(refusal.contains(expected), "{text}: {refusal}");
        }
        assert_eq!(name_server("10.0.0.2"), Ok(([10, 0, 0, 2], 53).into()));
        assert_eq!(name_server("10.0.0.2:5353"), Ok(([10, 0, 0, 2], 5353).into()));
        assert!(name_server("dns").is_err());
    }

    #[test]
    fn durations() {
        for (text, milliseconds) in [("500ms", 500), ("2s", 2000), ("15m", 900_000), ("1h30m", 5_400_000), ("0s", 0)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(milliseconds)));
            assert_eq!(show_duration(&Duration::from_millis(milliseconds)), text);
        }
        assert!(refusal(duration("30")).contains("write \"30s\""));
        assert!(refusal(duration("400d")).contains("a year"));
        for text in ["", "s", "1.5s", "-1s", "2 s", "2S", "2weeks", "99999999999999999999s", "99999999999999999h"] {
            assert!(refusal(duration(text)).contains("not a duration"), "{text}");
        }
    }

    #[test]
    fn sizes() {
        for (text, bytes) in
            [("250 KiB", 256_000), ("16 MiB", 16 << 20), ("1 GiB", 1 << 30), ("1000 B", 1000), ("0 B", 0)]
        {
            assert_eq!(size(text), Ok(bytes));
            assert_eq!(show_size(bytes), text);
        }
        assert_eq!(size("250KiB"), Ok(256_000));
        assert!(refusal(size("250 KB")).contains("write \"250 KiB\""));
        assert!(refusal(size("16m")).contains("write \"16 MiB\""));
        for text in ["", "KiB", "-1 KiB", "1.5 MiB", "1 TiB!", "99999999999999999999 B", "99999999999999 GiB"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

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
        for text in ["(a=b)", "(&(a=b)(c=d))"] {
            assert!(filter(text).is_ok(), "{text}");
        }
        for text in ["", "a=b", "(a=b", "(a=b)(c=d)", "((a=b)", ")(a=b("] {
            assert!(filter(text).is_err(), "{text}");
        }
        assert!(log_level("info,ldaps_proxy::health=debug").is_ok());
        assert!(refusal(log_level("inof")).contains("\"inof\" is not a level"));
    }

    proptest! {
        #[test]
        fn what_is_written_back_reads_the_same(milliseconds in 0u64..31_536_000_000, bytes in 0u64..1 << 40) {
            let length = Duration::from_millis(milliseconds);
            prop_assert_eq!(duration(&show_duration(&length)), Ok(length));
            prop_assert_eq!(size(&show_size(bytes)), Ok(bytes));
        }

        #[test]
        fn no_text_panics(text in ".{0,40}") {
            let _ = (network(&text), socket_address(&text), backend_address(&text, 389), duration(&text), size(&text));
            let _ = (distinguished_name(&text), filter(&text), log_level(&text), sasl_mechanism(&text));
        }
    }
}
