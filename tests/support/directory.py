"""A directory for loads and attacks, run as a program: every request succeeds, and a search for `ou=COUNTxSIZE,…` gets
COUNT entries of about SIZE octets, as fast as its client takes them.

Prints the address it listens on: 127.0.0.1 and the port given, else a free one. Runs until it is killed."""

import asyncio
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support import ber  # noqa: E402

ANSWERS = {
    ber.BIND_REQUEST: ber.BIND_RESPONSE, ber.SEARCH_REQUEST: ber.SEARCH_DONE, ber.MODIFY_REQUEST: ber.MODIFY_RESPONSE,
    ber.ADD_REQUEST: ber.ADD_RESPONSE, ber.DELETE_REQUEST: ber.DELETE_RESPONSE, ber.COMPARE_REQUEST: ber.COMPARE_RESPONSE,
    ber.MODIFY_DN_REQUEST: ber.MODIFY_DN_RESPONSE, ber.EXTENDED_REQUEST: ber.EXTENDED_RESPONSE,
}
WANTED = re.compile(rb"ou=(\d+)x(\d+)")
ROOT_DSE = {"namingContexts": ["dc=x"], "defaultNamingContext": ["dc=x"], "isSynchronized": ["TRUE"]}


async def main(port):
    server = await asyncio.start_server(serve, "127.0.0.1", port, backlog=4096, limit=1 << 20)
    print("{}:{}".format(*server.sockets[0].getsockname()), flush=True)
    await server.serve_forever()


async def serve(reader, writer):
    try:
        while head := await reader.readexactly(2):
            while (start := ber.header(head)) is None:
                head += await reader.readexactly(1)
            pdu = head + await reader.readexactly(sum(start) - len(head))
            await answer(pdu, start[0], writer)
    except (asyncio.IncompleteReadError, OSError):
        pass
    finally:
        writer.close()


async def answer(pdu, at, writer):
    size = pdu[at + 1]  # of the messageID, which is read without looking at the rest: uploads are large
    message_id, operation = int.from_bytes(pdu[at + 2:at + 2 + size], "big"), at + 2 + size
    tag = pdu[operation]
    if tag == ber.SEARCH_REQUEST:
        await entries(message_id, pdu, writer)
    if tag in ANSWERS:
        writer.write(ber.result(message_id, ANSWERS[tag]))
        await writer.drain()


async def entries(message_id, pdu, writer):
    base = ber.pdu(pdu).operation.children()[0].content
    if not base:
        writer.write(ber.entry(message_id, "", ROOT_DSE))
    elif wanted := WANTED.match(base):
        count, size = map(int, wanted.groups())
        entry = ber.entry(message_id, "cn=entry,dc=x", {"description": [b"x" * size]})
        for _ in range(count):
            writer.write(entry)
            await writer.drain()


if __name__ == "__main__":
    try:
        asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 0))
    except KeyboardInterrupt:
        pass
