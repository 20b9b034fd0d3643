//! How the commands speak to a running proxy: one small blocking HTTP request each.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

const DEFAULT_SOCKET: &str = "/run/ldaps-proxy/admin.sock";
const DEFAULT_CONFIG: &str = "/etc/ldaps-proxy/ldaps-proxy.toml";
/// A proxy under load answers in milliseconds; a reload may take a while.
const TIMEOUT: Duration = Duration::from_secs(30);
/// 9000 sessions take some 3 MB.
const MAX_RESPONSE_BYTES: u64 = 64 * 1024 * 1024;

/// The options of every command that speaks to a running proxy.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct AdminArgs {
    /// Where the proxy's admin side listens: unix:PATH or http://HOST:PORT [default:
    /// unix:/run/ldaps-proxy/admin.sock, else the [admin] of the default configuration]
    #[arg(long, value_name = "ADDRESS")]
    pub admin: Option<AdminAddress>,
    /// File with the admin token, which changes over http need
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
}

/// Where the admin side listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdminAddress {
    /// `unix:PATH`
    Unix(PathBuf),
    /// `http://HOST:PORT`: host and port as in the URL.
    Http(String),
}

impl FromStr for AdminAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(path) = text.strip_prefix("unix:").filter(|path| !path.is_empty()) {
            return Ok(Self::Unix(path.into()));
        }
        let authority = text.strip_prefix("http://").map(|rest| rest.strip_suffix('/').unwrap_or(rest));
        match authority {
            Some(authority) if !authority.is_empty() && !authority.contains(['/', '@', '?', '#', ' ']) => {
                let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
                Ok(Self::Http(if has_port { authority.to_owned() } else { format!("{authority}:80") }))
            }
            _ => Err("expected unix:PATH or http://HOST:PORT".into()),
        }
    }
}

impl fmt::Display for AdminAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Http(authority) => write!(f, "http://{authority}"),
        }
    }
}

/// A running proxy's admin side.
pub struct AdminClient {
    address: AdminAddress,
    token: Option<Zeroizing<String>>,
}

impl AdminClient {
    /// The admin side these options mean; an error says what to give.
    pub fn new(args: &AdminArgs) -> Result<Self, String> {
        let (address, token_file) = match &args.admin {
            Some(address) => (address.clone(), None),
            None => default_address(Path::new(DEFAULT_SOCKET), Path::new(DEFAULT_CONFIG))?,
        };
        let token = match args.token_file.as_ref().or(token_file.as_ref()) {
            Some(path) => Some(read_token(path)?),
            None => None,
        };
        Ok(Self { address, token })
    }

    /// `GET path`
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, String> {
        self.json("GET", path, "")
    }

    /// `POST path` with a JSON body.
    pub fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, String> {
        let body = serde_json::to_string(body).expect("request bodies are structs of strings and numbers");
        self.json("POST", path, &body)
    }

    /// `GET path`: whether the answer is a success, and its text.
    pub fn probe(&self, path: &str) -> Result<(bool, String), String> {
        let (status, body) = self.exchange("GET", path, "")?;
        Ok(((200..300).contains(&status), String::from_utf8_lossy(&body).trim().to_owned()))
    }

    fn json<T: DeserializeOwned>(&self, method: &str, path: &str, body: &str) -> Result<T, String> {
        #[derive(serde::Deserialize)]
        struct Problem {
            error: String,
        }
        let (status, body) = self.exchange(method, path, body)?;
        if (200..300).contains(&status) {
            return serde_json::from_slice(&body)
                .map_err(|error| format!("{} answered something else than expected: {error}", self.address));
        }
        Err(match serde_json::from_slice::<Problem>(&body) {
            Ok(Problem { error }) => error,
            Err(_) => format!("{} answered HTTP {status}: {}", self.address, String::from_utf8_lossy(&body).trim()),
        })
    }

    fn exchange(&self, method: &str, path: &str, body: &str) -> Result<(u16, Vec<u8>), String> {
        let failed = |error: io::Error| format!("no answer from {}: {error}", self.address);
        let host = match &self.address {
            AdminAddress::Unix(_) => "localhost",
            AdminAddress::Http(authority) => authority,
        };
        let mut request = Zeroizing::new(format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n",
            body.len()
        ));
        if let Some(token) = &self.token {
            request.push_str("Authorization: Bearer ");
            request.push_str(token);
            request.push_str("\r\n");
        }
        request.push_str("\r\n");
        request.push_str(body);
        let response = self.send(request.as_bytes()).map_err(failed)?;
        parse_response(&response).map_err(failed)
    }

    fn send(&self, request: &[u8]) -> io::Result<Vec<u8>> {
        match &self.address {
            AdminAddress::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(TIMEOUT))?;
                stream.set_write_timeout(Some(TIMEOUT))?;
                speak(stream, request)
            }
            AdminAddress::Http(authority) => {
                let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
                for address in authority.to_socket_addrs()? {
                    match TcpStream::connect_timeout(&address, TIMEOUT) {
                        Ok(stream) => {
                            stream.set_read_timeout(Some(TIMEOUT))?;
                            stream.set_write_timeout(Some(TIMEOUT))?;
                            return speak(stream, request);
                        }
                        Err(error) => failure = error,
                    }
                }
                Err(failure)
            }
        }
    }
}

fn speak(mut stream: impl Read + Write, request: &[u8]) -> io::Result<Vec<u8>> {
    stream.write_all(request)?;
    let mut response = Vec::new();
    stream.take(MAX_RESPONSE_BYTES).read_to_end(&mut response)?;
    Ok(response)
}

/// The status and body of a whole response that ended with the connection. The proxy's answers have a length, never
/// chunks.
fn parse_response(response: &[u8]) -> io::Result<(u16, Vec<u8>)> {
    let malformed = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let end = response.windows(4).position(|window| window == b"\r\n\r\n").ok_or(malformed("this is not HTTP"))?;
    let head = std::str::from_utf8(&response[..end]).map_err(|_| malformed("this is not HTTP"))?;
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.")?.get(2..5)?.parse().ok());
    let header = |name: &str| {
        lines.clone().find_map(|line| line.split_once(':').filter(|(found, _)| found.eq_ignore_ascii_case(name)))
    };
    let body = &response[end + 4..];
    if header("transfer-encoding").is_some() {
        return Err(malformed("a chunked answer"));
    }
    if let Some((_, length)) = header("content-length")
        && length.trim().parse() != Ok(body.len())
    {
        return Err(malformed("the answer was cut short"));
    }
    Ok((status.ok_or(malformed("this is not HTTP"))?, body.to_vec()))
}

/// The socket, if it is there; else what `[admin]` of the configuration says, and its token file. The rest of the
/// configuration doesn't matter here and may be broken.
fn default_address(socket: &Path, config: &Path) -> Result<(AdminAddress, Option<PathBuf>), String> {
    if socket.exists() {
        return Ok((AdminAddress::Unix(socket.to_owned()), None));
    }
    let found = || {
        let config_text = std::fs::read_to_string(config).ok()?;
        let admin = config_text.parse::<toml::Table>().ok()?.remove("admin")?;
        let text = |key| Some(admin.get(key)?.as_str()?.to_owned());
        let beside_config = |path: String| config.parent().unwrap_or(Path::new("")).join(path);
        let address = match text("socket") {
            Some(path) => AdminAddress::Unix(beside_config(path)),
            None => AdminAddress::Http(text("address")?),
        };
        Some((address, text("token_file").map(beside_config)))
    };
    found().ok_or_else(|| {
        format!(
            "there is no {} and no [admin] in {}: say where the proxy is with --admin unix:PATH or --admin http://HOST:PORT",
            socket.display(),
            config.display()
        )
    })
}

fn read_token(path: &Path) -> Result<Zeroizing<String>, String> {
    let text = std::fs::read_to_string(path).map(Zeroizing::new);
    let text = text.map_err(|error| format!("can't read the token file {}: {error}", path.display()))?;
    Ok(Zeroizing::new(text.lines().next().unwrap_or_default().trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_unix_paths_or_plain_http_urls() {
        let parse = |text: &str| text.parse::<AdminAddress>();
        assert_eq!(parse("unix:/run/a.sock"), Ok(AdminAddress::Unix("/run/a.sock".into())));
        assert_eq!(parse("http://127.0.0.1:9636"), Ok(AdminAddress::Http("127.0.0.1:9636".into())));
        assert_eq!(parse("http://[::1]:9636/"), Ok(AdminAddress::Http("[::1]:9636".into())));
        assert_eq!(parse("http://proxy1"), Ok(AdminAddress::Http("proxy1:80".into())));
        for bad in ["", "unix:", "127.0.0.1:9636", "https://a:1", "http://", "http://a:1/path", "http://u@a:1"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_response_is_whole_or_an_error() {
        let parse = |text: &str| parse_response(text.as_bytes()).map_err(|error| error.to_string());
        let whole = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
        assert_eq!(parse(whole), Ok((200, b"{}".to_vec())));
        assert_eq!(parse("HTTP/1.0 503 Service Unavailable\r\n\r\nno"), Ok((503, b"no".to_vec())));
        assert!(parse(&whole[..whole.len() - 1]).is_err());
        assert!(parse("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n").is_err());
        assert!(parse("SSH-2.0\r\n\r\n").is_err());
        assert!(parse("").is_err());
    }

    #[test]
    fn the_default_is_the_socket_else_what_the_configuration_says() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (socket, config) = (folder.path().join("admin.sock"), folder.path().join("ldaps-proxy.toml"));
        assert!(default_address(&socket, &config).is_err_and(|error| error.contains("--admin")));
        std::fs::write(&config, "[admin]\naddress = \"127.0.0.1:9636\"\ntoken_file = \"token\"\n").expect("writes");
        let from_config = (AdminAddress::Http("127.0.0.1:9636".into()), Some(folder.path().join("token")));
        assert_eq!(default_address(&socket, &config), Ok(from_config));
        std::fs::write(&socket, "").expect("writes");
        assert_eq!(default_address(&socket, &config), Ok((AdminAddress::Unix(socket.clone()), None)));
    }
}
