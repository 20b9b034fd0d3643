"""A directory for thousands of connections, run as a program: every bind and search succeeds, with nothing found.

Prints the address it listens on. Ends when its standard input does."""

import select
import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support import ber  # noqa: E402

ANSWERS = {ber.BIND_REQUEST: ber.BIND_RESPONSE, ber.SEARCH_REQUEST: ber.SEARCH_DONE}


def main():
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    print("{}:{}".format(*listener.getsockname()), flush=True)
    events, peers = select.epoll(), {}
    events.register(listener, select.EPOLLIN)
    events.register(sys.stdin, select.EPOLLIN)
    while True:
        for descriptor, _ in events.poll():
            if descriptor == sys.stdin.fileno():
                return
            if descriptor == listener.fileno():
                peer, _ = listener.accept()
                peers[peer.fileno()] = peer
                events.register(peer, select.EPOLLIN)
            elif not serve(peers[descriptor]):
                peers.pop(descriptor).close()


def serve(peer):
    try:
        data = peer.recv(65536)
        while data:
            whole = sum(ber.header(data))
            pdu, data = ber.pdu(data[:whole]), data[whole:]
            if pdu.tag in ANSWERS:
                peer.sendall(ber.result(pdu.message_id, ANSWERS[pdu.tag]))
            if not data:
                return True
    except OSError:
        pass
    return False


if __name__ == "__main__":
    main()
