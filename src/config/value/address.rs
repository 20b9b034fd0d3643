//! Networks, addresses and host names.

use std::net::{IpAddr, SocketAddr};

use ipnet::{IpNet, Ipv4Net};

use super::Refusal;
use crate::config::settings::BackendAddress;

/// A network in CIDR form, or an address as the network of its own.
///
/// IPv4-mapped IPv6 networks are refused, since such clients are matched as the IPv4 clients they are; so are host bits,
/// since nobody can tell which network was meant.
pub(in crate::config) fn network(text: &str) -> Result<IpNet, Refusal> {
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
pub(in crate::config) fn socket_address(text: &str) -> Result<SocketAddr, Refusal> {
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
pub(in crate::config) fn name_server(text: &str) -> Result<SocketAddr, Refusal> {
    (text.parse().map(|address: IpAddr| SocketAddr::new(address, 53)))
        .or_else(|_| text.parse())
        .map_err(|_| Refusal::new("not the address of a DNS server").help("such as \"10.0.0.2\" or \"10.0.0.2:53\""))
}

/// `IP`, `IP:PORT`, `NAME`, `NAME:PORT` or `srv:NAME`.
pub(in crate::config) fn backend_address(text: &str, default_port: u16) -> Result<BackendAddress, Refusal> {
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
pub(in crate::config) fn show_backend_address(address: &BackendAddress) -> String {
    match address {
        BackendAddress::Socket(address) => address.to_string(),
        BackendAddress::Host { name, port } => format!("{name}:{port}"),
        BackendAddress::Service(name) => format!("srv:{name}"),
    }
}

/// A host name in lower case, without a trailing dot (RFC 1123 §2.1, and the underscore that Windows allows).
pub(in crate::config) fn host_name(text: &str) -> Result<String, Refusal> {
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
pub(in crate::config) fn server_name(text: &str) -> Result<String, Refusal> {
    text.parse::<IpAddr>().map(|address| address.to_string()).or_else(|_| host_name(text))
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

#[cfg(test)]
mod tests {
    use super::super::tests::refusal;
    use super::*;

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
}
