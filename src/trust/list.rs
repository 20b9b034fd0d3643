//! The format of `trusted_networks_file`.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

/// A line of a list file that is no network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LineError {
    /// Counted from 1.
    pub line: usize,
    /// The text found, without its comment.
    pub found: String,
    /// What is wrong with it.
    pub error: NetworkError,
}

impl fmt::Display for LineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {:?}: {}", self.line, self.found, self.error)
    }
}

/// Why a text is no network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetworkError {
    /// Neither an address nor a network.
    Syntax,
    /// Bits are set outside the prefix. The network and the host that may have been meant differ much in size, so the
    /// writer must say which.
    HostBits {
        /// The network it would be.
        network: IpNet,
        /// The address written.
        address: IpAddr,
    },
}

impl std::error::Error for NetworkError {}

impl fmt::Display for NetworkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Syntax => f.write_str("not a network: write one such as 10.0.0.0/16, 2001:db8::/32 or 10.0.1.10"),
            Self::HostBits { network, address } => {
                write!(f, "bits are set outside the prefix: write {network} for the network or {address} for the host")
            }
        }
    }
}

/// Reads a list file: one network or address a line; `#` starts a comment; blank lines don't count, nor does the byte order
/// mark with which Notepad begins.
///
/// # Errors
/// Every line that is no network.
pub fn parse_list(text: &str) -> Result<Vec<IpNet>, Vec<LineError>> {
    let mut networks = Vec::new();
    let mut errors = Vec::new();
    for (index, line) in text.strip_prefix('\u{feff}').unwrap_or(text).lines().enumerate() {
        let found = line.split('#').next().unwrap_or_default().trim();
        if found.is_empty() {
            continue;
        }
        match parse_network(found) {
            Ok(network) => networks.push(network),
            Err(error) => errors.push(LineError { line: index + 1, found: found.to_owned(), error }),
        }
    }
    if errors.is_empty() { Ok(networks) } else { Err(errors) }
}

/// A network in CIDR notation; an address alone is a network of one.
///
/// # Errors
/// [`NetworkError`]
pub fn parse_network(text: &str) -> Result<IpNet, NetworkError> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(address.into());
    }
    let network: IpNet = text.parse().map_err(|_| NetworkError::Syntax)?;
    if network.addr() != network.network() {
        return Err(NetworkError::HostBits { network: network.trunc(), address: network.addr() });
    }
    Ok(network)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_blanks_and_both_families() {
        let text = "# offices\r\n10.0.0.0/16   # Dublin\n\n  2001:db8::/32\t\n10.0.1.10\n";
        let networks: Vec<String> = parse_list(text).unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(networks, ["10.0.0.0/16", "2001:db8::/32", "10.0.1.10/32"]);
        assert_eq!(parse_list("# none\n\n").unwrap(), []);
        assert_eq!(parse_list("\u{feff}10.0.1.10\r\n").unwrap().len(), 1);
    }

    #[test]
    fn every_bad_line_is_named() {
        let errors = parse_list("10.0.0.0/16\n10.0.0.0/33\n# fine\n10.0.0.5/8 # typo\nexample.com\n").unwrap_err();
        let shown: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(errors.iter().map(|error| error.line).collect::<Vec<_>>(), [2, 4, 5]);
        assert_eq!(
            shown[1],
            "line 4: \"10.0.0.5/8\": bits are set outside the prefix: write 10.0.0.0/8 for the network or 10.0.0.5 for the \
             host"
        );
    }
}
