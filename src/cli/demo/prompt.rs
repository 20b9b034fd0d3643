//! What may be typed while the demo runs.

use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{getpgrp, tcgetpgrp};
use tokio::sync::mpsc;

use super::EmbeddedDirectory;
use crate::embedded::Server;

pub(super) const HELP: &str = "type `stop 1`, `start 1`, `stop 2`, `start 2` to see failover, `quit` to end";

/// Carries out the commands until `quit`, and says what happened. Never returns when the lines end without it.
pub(super) async fn obey(
    mut lines: mpsc::Receiver<String>,
    directories: &mut [EmbeddedDirectory],
    mut say: impl FnMut(&str),
) {
    while let Some(line) = lines.recv().await {
        match Command::parse(&line, directories.len()) {
            None if line.trim().is_empty() => {}
            None => say(HELP),
            Some(Command::Quit) => return,
            Some(Command::Stop(place)) => {
                say(&stop(&mut directories[place]).await);
                if directories.iter().all(|directory| directory.server.is_none()) {
                    say("no directory is left: clients get unavailable (52) and may stay connected");
                }
            }
            Some(Command::Start(place)) => say(&start(&mut directories[place])),
        }
    }
    std::future::pending().await
}

/// The lines of standard input. A thread of their own reads them: a read that blocks in the runtime would delay its end.
pub(super) fn standard_input() -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel(1);
    std::thread::spawn(move || {
        let input = std::io::stdin();
        let is_terminal = input.is_terminal();
        let mut lines = input.lines();
        loop {
            if is_terminal {
                await_line();
            }
            let Some(Ok(line)) = lines.next() else { break };
            if sender.blocking_send(line).is_err() {
                break;
            }
        }
    });
    receiver
}

/// Waits until a line of the terminal can be read, which it can at once. A process in the background is stopped, all of it, for
/// wanting to read, and one that is sent there while it reads as well. A terminal gives one line for each read.
fn await_line() {
    const PAUSE: Duration = Duration::from_millis(500);
    let input = std::io::stdin();
    let is_ours = || !tcgetpgrp(&input).is_ok_and(|foreground| foreground != getpgrp());
    loop {
        let mut waiting = [PollFd::new(input.as_fd(), PollFlags::POLLIN)];
        let is_there = poll(&mut waiting, PollTimeout::NONE).is_ok();
        if is_there && is_ours() {
            return;
        }
        std::thread::sleep(PAUSE);
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Command {
    /// The place of a directory, from 0.
    Stop(usize),
    Start(usize),
    Quit,
}

impl Command {
    /// People count the directories from 1.
    fn parse(line: &str, directories: usize) -> Option<Self> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let place = |number: &str| {
            let number = number.parse::<usize>().ok().filter(|number| (1..=directories).contains(number))?;
            Some(number - 1)
        };
        match words.as_slice() {
            ["stop", number] => place(number).map(Self::Stop),
            ["start", number] => place(number).map(Self::Start),
            ["quit"] => Some(Self::Quit),
            _ => None,
        }
    }
}

async fn stop(directory: &mut EmbeddedDirectory) -> String {
    match directory.server.take() {
        Some(server) => {
            server.stop().await;
            format!("{directory} is stopped and its connections are cut: try the search again")
        }
        None => format!("{directory} is stopped already"),
    }
}

fn start(directory: &mut EmbeddedDirectory) -> String {
    if directory.server.is_some() {
        return format!("{directory} is running already");
    }
    match Server::bind(directory.address, Arc::clone(&directory.contents), directory.name) {
        Ok(server) => {
            directory.server = Some(server);
            format!("{directory} is running: new sessions may go to it as soon as its probes pass")
        }
        Err(error) => format!("{directory} can't be started: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::embedded::Directory;
    use tokio::net::TcpStream;

    #[test]
    fn commands() {
        let table = [
            ("stop 1", Some(Command::Stop(0))),
            ("  start   2 ", Some(Command::Start(1))),
            ("quit", Some(Command::Quit)),
            ("stop 0", None),
            ("stop 3", None),
            ("stop", None),
            ("stop 1 2", None),
            ("", None),
            ("halt", None),
        ];
        for (line, command) in table {
            assert_eq!(Command::parse(line, 2), command, "{line:?}");
        }
    }

    #[tokio::test]
    async fn stop_and_start() {
        let contents = Arc::new(Directory::corp());
        let mut directories = [EmbeddedDirectory::start("dc1", contents).expect("a free port")];
        let address = directories[0].address;
        assert!(TcpStream::connect(address).await.is_ok());
        assert!(start(&mut directories[0]).contains("running already"));
        stop(&mut directories[0]).await;
        assert!(TcpStream::connect(address).await.is_err());
        assert!(stop(&mut directories[0]).await.contains("stopped already"));

        let (sender, receiver) = mpsc::channel(8);
        for line in ["", "start 1", "what", "quit"] {
            sender.send(line.to_owned()).await.expect("there is room");
        }
        let mut said = Vec::new();
        obey(receiver, &mut directories, |line| said.push(line.to_owned())).await;
        assert!(
            matches!(said.as_slice(), [started, help] if started.contains("is running") && help == HELP),
            "{said:?}"
        );
        assert!(TcpStream::connect(address).await.is_ok());
    }

    #[tokio::test]
    async fn the_last_one_stopped_is_said_to_be_the_last() {
        let contents = Arc::new(Directory::corp());
        let mut directories =
            ["dc1", "dc2"].map(|name| EmbeddedDirectory::start(name, Arc::clone(&contents)).expect("a free port"));
        let (sender, receiver) = mpsc::channel(8);
        for line in ["stop 2", "stop 1", "quit"] {
            sender.send(line.to_owned()).await.expect("there is room");
        }
        let mut said = Vec::new();
        obey(receiver, &mut directories, |line| said.push(line.to_owned())).await;
        assert!(matches!(said.as_slice(), [_, _, last] if last.contains("no directory is left")), "{said:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_the_lines_ends_nothing() {
        let (sender, receiver) = mpsc::channel(1);
        drop(sender);
        let obeying = obey(receiver, &mut [], |_| ());
        assert!(tokio::time::timeout(std::time::Duration::from_secs(3600), obeying).await.is_err());
    }
}
