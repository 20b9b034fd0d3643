"""Addresses and ports that nobody else on the machine uses."""

import random
import socket


def free_address(*ports):
    """An address of 127/8, not 127.0.0.1, on which all `ports` are free for TCP and UDP."""
    for _ in range(1000):
        address = f"127.{random.randint(1, 254)}.{random.randint(0, 254)}.{random.randint(1, 254)}"
        if all(_is_free(address, port) for port in ports):
            return address
    raise RuntimeError(f"no address of 127/8 has the ports {ports} free (binding ports below 1024 needs root)")


def closed_port(address="127.0.0.1"):
    """`(address, port)` where a connect is refused: free a moment ago, and not handed out again at once."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return probe.getsockname()


def _is_free(address, port):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET, kind) as probe:
            try:
                probe.bind((address, port))
            except OSError:
                return False
    return True
