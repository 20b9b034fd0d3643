//! Listening sockets that were open before us: systemd's socket activation, sd_listen_fds(3).

use std::io;
use std::net::{SocketAddr, TcpListener};

use listenfd::ListenFd;
use socket2::SockRef;

use crate::{config, listener};

/// What systemd listens on for us. Held until the process ends, so that a listener that a reload closes can come back.
#[derive(Debug, Default)]
pub struct Inherited(Vec<Socket>);

#[derive(Debug)]
struct Socket {
    /// `FileDescriptorName=` of the socket unit, by default the unit's own name.
    name: String,
    address: SocketAddr,
    listener: TcpListener,
}

impl Inherited {
    /// Takes the sockets that the environment announces. Call it before there are threads, as it changes the environment.
    ///
    /// # Errors
    /// A descriptor that is no listening TCP socket.
    pub fn take() -> io::Result<Self> {
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut passed = ListenFd::from_env();
        let mut names = names.split(':');
        let mut sockets = Vec::with_capacity(passed.len());
        for index in 0..passed.len() {
            let name = names.next().unwrap_or_default();
            let socket = passed.take_tcp_listener(index).and_then(|listener| {
                let listener = listener.expect("each index is taken once");
                Socket::new(name, listener)
            });
            let explain = |error| {
                io::Error::new(
                    io::ErrorKind::InvalidInput,
                    format!("socket {index} ({name}) of the service manager: {error}"),
                )
            };
            sockets.push(socket.map_err(explain)?);
        }
        Ok(Self(sockets))
    }

    /// The socket of a listener: the one bound to its address, else the one with its name.
    pub fn find(&self, settings: &config::Listener) -> Option<io::Result<tokio::net::TcpListener>> {
        let socket = self.0.iter().find(|socket| socket.address == settings.address);
        let socket = socket.or_else(|| self.0.iter().find(|socket| socket.name == settings.name))?;
        Some(socket.listener.try_clone().and_then(tokio::net::TcpListener::from_std))
    }

    /// The addresses that none of these listeners takes: connections to them would wait in the kernel for ever.
    pub fn unclaimed(&self, listeners: &[config::Listener]) -> Vec<SocketAddr> {
        let claimed = |socket: &&Socket| {
            listeners.iter().any(|settings| socket.address == settings.address || socket.name == settings.name)
        };
        self.0.iter().filter(|socket| !claimed(socket)).map(|socket| socket.address).collect()
    }
}

impl Socket {
    fn new(name: &str, listener: TcpListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let socket = SockRef::from(&listener);
        if !socket.is_listener()? {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it does not listen: is Accept=yes set?"));
        }
        // A socket unit's own defaults are other ones.
        listener::listen(&socket)?;
        let address = listener.local_addr()?;
        Ok(Self { name: name.to_owned(), address, listener })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inherited(name: &str) -> (Inherited, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        let address = listener.local_addr().expect("it is bound");
        (Inherited(vec![Socket::new(name, listener).expect("it listens")]), address)
    }

    fn listener(name: &str, address: SocketAddr) -> config::Listener {
        let text = format!(
            "[[listener]]\nname = {name:?}\naddress = \"{address}\"\nprotocol = \"ldap\"\ntrusted_networks = [\"127.0.0.1/32\"]\n\
             pool = \"p\"\n[pools.p]\nbackends = [\"127.0.0.1:389\"]"
        );
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), text).expect("writes");
        let loaded = config::load(file.path()).unwrap_or_else(|found| panic!("{found}"));
        loaded.config.listeners.into_iter().next().expect("there is one")
    }

    #[tokio::test]
    async fn a_listener_gets_the_socket_of_its_address_or_name_again_and_again() {
        let (sockets, address) = inherited("corp");
        let elsewhere = "127.0.0.1:1".parse().expect("an address");
        for settings in [listener("other", address), listener("corp", elsewhere), listener("corp", elsewhere)] {
            let socket = sockets.find(&settings).expect("a socket").expect("it can be cloned");
            assert_eq!(socket.local_addr().expect("it is bound"), address);
        }
        let stranger = listener("other", elsewhere);
        assert!(sockets.find(&stranger).is_none());
        assert_eq!(sockets.unclaimed(&[stranger]), [address]);
        assert_eq!(sockets.unclaimed(&[listener("corp", elsewhere)]), []);
    }

    #[test]
    fn a_connected_socket_is_refused() {
        let (_sockets, address) = inherited("corp");
        let connected = std::net::TcpStream::connect(address).expect("it listens");
        let socket: std::os::fd::OwnedFd = connected.into();
        assert!(Socket::new("corp", socket.into()).is_err());
    }
}
