//! How the commands speak to a running proxy: one small blocking HTTP request each.

use std::borrow::Cow;
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

use crate::{admin, config};

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
    /// The first that takes the connection is asked.
    places: Vec<AdminAddress>,
    /// Where the token is, or why that can't be told. Only a change needs it, so it is read for one and not before.
    token_file: Option<Result<PathBuf, String>>,
}

/// What a place answered.
struct Answer<'c> {
    place: &'c AdminAddress,
    status: u16,
    body: Vec<u8>,
    /// Why the places before it weren't asked.
    failures: Vec<String>,
}

impl AdminClient {
    /// The admin side these options mean; an error says what to give.
    pub fn new(args: &AdminArgs) -> Result<Self, String> {
        let client = match &args.admin {
            Some(address) => Self { places: vec![address.clone()], token_file: None },
            None => {
                let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
                Self::of_this_machine(Path::new(DEFAULT_SOCKET), Path::new(DEFAULT_CONFIG), credentials.as_deref())?
            }
        };
        Ok(Self { token_file: args.token_file.clone().map(Ok).or(client.token_file), ..client })
    }

    /// The socket, unless there is none; then what `[admin]` of the configuration says, with its token file. The rest of the
    /// configuration doesn't matter here and may be broken.
    fn of_this_machine(socket: &Path, config: &Path, credentials: Option<&Path>) -> Result<Self, String> {
        let is_absent = std::fs::symlink_metadata(socket).is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
        let mut places: Vec<_> = (!is_absent).then(|| AdminAddress::Unix(socket.to_owned())).into_iter().collect();
        let admin =
            std::fs::read_to_string(config).ok().and_then(|text| text.parse::<toml::Table>().ok()?.remove("admin"));
        let text = |key| admin.as_ref()?.get(key)?.as_str();
        let file = |text| config::file(text, config.parent().unwrap_or(Path::new("")), credentials);
        let configured = [
            text("socket").and_then(file).map(AdminAddress::Unix),
            text("address").map(|address| AdminAddress::Http(address.into())),
        ];
        for place in configured.into_iter().flatten() {
            if !places.contains(&place) {
                places.push(place);
            }
        }
        if places.is_empty() {
            return Err(format!(
                "there is no {} and no [admin] in {}: say where the proxy is with --admin unix:PATH or --admin http://HOST:PORT",
                socket.display(),
                config.display()
            ));
        }
        let token_file = text("token_file").map(|written| {
            file(written)
                .ok_or_else(|| format!("only the service knows where {written} is: give a copy with --token-file FILE"))
        });
        Ok(Self { places, token_file })
    }

    /// `GET path`
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, String> {
        Self::json(self.exchange("GET", path, "")?)
    }

    /// `POST path` with a JSON body.
    pub fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, String> {
        let body = serde_json::to_string(body).expect("request bodies are structs of strings and numbers");
        Self::json(self.exchange("POST", path, &body)?)
    }

    /// `GET path`: whether the answer is a success, and its text.
    pub fn probe(&self, path: &str) -> Result<(bool, String), String> {
        let answer = self.exchange("GET", path, "")?;
        Ok((answer.is_success(), answer.text().into_owned()))
    }

    fn json<T: DeserializeOwned>(answer: Answer<'_>) -> Result<T, String> {
        #[derive(serde::Deserialize)]
        struct Problem {
            error: String,
        }
        let Answer { place, status, body, failures } = &answer;
        if answer.is_success() {
            return serde_json::from_slice(body)
                .map_err(|error| format!("{place} answered something else than expected: {error}"));
        }
        let error = match serde_json::from_slice::<Problem>(body) {
            Ok(Problem { error }) => error,
            Err(_) => format!("{place} answered HTTP {status}: {}", answer.text()),
        };
        Err(after(failures, error))
    }

    /// One request. What can't be connected to has not been asked, so the next place may be.
    fn exchange(&self, method: &str, path: &str, body: &str) -> Result<Answer<'_>, String> {
        let mut failures = Vec::new();
        for place in &self.places {
            let failed = |error: io::Error| format!("no answer from {place}: {error}");
            match place.connect() {
                Ok(stream) => {
                    let request = self.request(place, method, path, body);
                    let request = request.map_err(|error| after(&failures, error))?;
                    let response = speak(stream, request.as_bytes()).map_err(failed)?;
                    let (status, body) = parse_response(&response).map_err(failed)?;
                    return Ok(Answer { place, status, body, failures });
                }
                Err(error) => failures.push(failed(error)),
            }
        }
        Err(failures.join("\n"))
    }

    fn request(&self, place: &AdminAddress, method: &str, path: &str, body: &str) -> Result<Zeroizing<String>, String> {
        let (host, is_open) = match place {
            AdminAddress::Unix(_) => ("localhost", true),
            AdminAddress::Http(authority) => (authority.as_str(), method == "GET"),
        };
        let mut request = Zeroizing::new(format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n",
            body.len()
        ));
        if let Some(file) = self.token_file.as_ref().filter(|_| !is_open) {
            let file = file.as_ref().map_err(String::clone)?;
            let token = admin::read_token(file);
            let token = token.map_err(|error| format!("can't read the token file {}: {error}", file.display()))?;
            request.push_str("Authorization: Bearer ");
            request.push_str(&token);
            request.push_str("\r\n");
        }
        request.push_str("\r\n");
        request.push_str(body);
        Ok(request)
    }
}

/// What is wrong, and before it why other places weren't asked: there it might have been right.
fn after(failures: &[String], error: String) -> String {
    [failures, &[error]].concat().join("\n")
}

impl Answer<'_> {
    fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    fn text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(self.body.trim_ascii())
    }
}

/// A connection to either kind of place.
trait Stream: Read + Write {}

impl<T: Read + Write> Stream for T {}

impl AdminAddress {
    fn connect(&self) -> io::Result<Box<dyn Stream>> {
        match self {
            Self::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(TIMEOUT))?;
                stream.set_write_timeout(Some(TIMEOUT))?;
                Ok(Box::new(stream))
            }
            Self::Http(authority) => {
                let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
                for address in authority.to_socket_addrs()? {
                    match TcpStream::connect_timeout(&address, TIMEOUT) {
                        Ok(stream) => {
                            stream.set_read_timeout(Some(TIMEOUT))?;
                            stream.set_write_timeout(Some(TIMEOUT))?;
                            return Ok(Box::new(stream));
                        }
                        Err(error) => failure = error,
                    }
                }
                Err(failure)
            }
        }
    }
}

fn speak(mut stream: Box<dyn Stream>, request: &[u8]) -> io::Result<Vec<u8>> {
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

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, json};

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

    /// The client of a machine whose socket and configuration are in `folder`.
    fn of_folder(folder: &Path, credentials: Option<&Path>) -> Result<AdminClient, String> {
        AdminClient::of_this_machine(&folder.join("admin.sock"), &folder.join("ldaps-proxy.toml"), credentials)
    }

    #[test]
    fn the_default_is_the_socket_then_what_the_configuration_says() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let folder = folder.path();
        let socket = AdminAddress::Unix(folder.join("admin.sock"));
        let [other, address] =
            [AdminAddress::Unix(folder.join("other.sock")), AdminAddress::Http("127.0.0.1:9636".into())];
        let configured = |admin: &str| {
            std::fs::write(folder.join("ldaps-proxy.toml"), format!("[admin]\n{admin}")).expect("writes");
            of_folder(folder, None).map(|client| (client.places, client.token_file))
        };
        assert!(of_folder(folder, None).err().expect("there is nothing").contains("--admin"));
        let token_file = Some(Ok(folder.join("token")));
        let tcp = "address = \"127.0.0.1:9636\"\ntoken_file = \"token\"\n";
        assert_eq!(configured(tcp), Ok((vec![address.clone()], token_file.clone())));
        std::fs::write(folder.join("admin.sock"), "").expect("writes");
        assert_eq!(configured(tcp), Ok((vec![socket.clone(), address.clone()], token_file.clone())));
        let both = format!("socket = \"other.sock\"\n{tcp}");
        assert_eq!(configured(&both), Ok((vec![socket.clone(), other, address], token_file)));
        assert_eq!(configured("socket = \"admin.sock\""), Ok((vec![socket], None)));
    }

    #[test]
    fn a_token_among_credentials_is_found_where_they_are_told() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let folder = folder.path();
        let admin = "[admin]\naddress = \"127.0.0.1:9636\"\ntoken_file = \"${CREDENTIALS_DIRECTORY}/token\"\n";
        std::fs::write(folder.join("ldaps-proxy.toml"), admin).expect("writes");
        let token_file = |credentials| of_folder(folder, credentials).expect("there is an address").token_file;
        assert_eq!(token_file(Some(Path::new("/run/c"))), Some(Ok("/run/c/token".into())));
        assert!(token_file(None).expect("one is named").is_err_and(|error| error.contains("--token-file")));
    }

    /// What one request to these places brings, with a server that answers `{}` at the last of them, and what it was sent.
    fn asked(
        token_file: Option<Result<PathBuf, String>>,
        ask: impl FnOnce(&AdminClient) -> Result<Json, String>,
    ) -> (Result<Json, String>, String) {
        let server = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        let address = server.local_addr().expect("it is bound");
        let served = std::thread::spawn(move || {
            let (mut stream, _) = server.accept().expect("a connection");
            let mut request = [0; 4096];
            let length = stream.read(&mut request).expect("a request, or the end");
            // A client that gave up doesn't read it.
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}");
            String::from_utf8_lossy(&request[..length]).into_owned()
        });
        let nowhere = tempfile::tempdir().expect("a temporary folder").path().join("admin.sock");
        let places = vec![AdminAddress::Unix(nowhere), AdminAddress::Http(address.to_string())];
        let answer = ask(&AdminClient { places, token_file });
        // Ends the server where nobody came.
        let _ = TcpStream::connect(address);
        (answer, served.join().expect("it doesn't panic"))
    }

    #[test]
    fn the_address_is_asked_where_the_socket_is_out_of_reach() {
        let (answer, request) = asked(None, |client| client.get("/api/v1/status"));
        assert_eq!(answer, Ok(json!({})));
        assert!(request.starts_with("GET /api/v1/status "), "{request}");
    }

    #[test]
    fn only_a_change_needs_the_token() {
        let unreadable = || Some(Ok(PathBuf::from("/nonexistent/token")));
        assert_eq!(asked(unreadable(), |client| client.get("/")).0, Ok(json!({})));
        let (refused, request) = asked(unreadable(), |client| client.post("/", &json!({})));
        let both = |error: String| error.contains("no answer from unix:") && error.contains("/nonexistent/token");
        assert!(refused.is_err_and(both) && request.is_empty(), "the socket would have needed none: {request}");
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), "secret\n").expect("writes");
        let (changed, request) = asked(Some(Ok(file.path().into())), |client| client.post("/", &json!({})));
        assert!(changed.is_ok() && request.contains("\r\nAuthorization: Bearer secret\r\n"), "{request}");
    }

    #[test]
    fn every_place_that_was_tried_is_told() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let places = ["one", "two"].map(|name| AdminAddress::Unix(folder.path().join(name))).to_vec();
        let told = AdminClient { places, token_file: None }.probe("/readyz").expect_err("nobody is there");
        assert_eq!(told.lines().filter(|line| line.contains("no answer from unix:")).count(), 2, "{told}");
    }
}
