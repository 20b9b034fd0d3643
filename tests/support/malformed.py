"""Systematic malformed LDAP, in the spirit of PROTOS c06-ldapv3, and an oracle that says what must become of each case.

Two levels, because they have two judges:

- **Framing** is the proxy's to judge, at least as strictly as any backend (RFC 4511 §4.1.1, §5.1). A message is malformed
  here if its outer tag is not 0x30; if the length of the message, of its messageID or of its operation is indefinite or
  takes more than four octets after the first; if the messageID is no INTEGER of 1 to 4 octets in 1..2³¹-1; if the
  operation's tag is no request's; if an element reaches past the message; or if the message passes the size limit. The
  session ends with a notice of disconnection (protocolError), and no octet of the message reaches a backend.
- **Content** is the backend's to judge: what frames well is forwarded octet for octet, whatever it holds. The exceptions
  are requests in which the proxy has to read something: a bind (its name and password: policy), an extended request
  (its name: StartTLS must stay here), and a search (its filter's depth). If that can't be read by everybody alike, the
  answer is a result, the backend sees nothing and the session goes on.

The oracle knows the rules, not the code: `judge` is written from the RFC alone.
"""

import random
from dataclasses import dataclass, field

from . import ber

LIMIT = 250 * 1024
"""Octets of a request before the bind (`limits.request_size_anonymous`, `search_size`)."""
DEPTH = 100
"""`limits.filter_depth`"""
IDENTIFIER = 2
"""The messageID of every case that isn't about messageIDs."""

OPEN, ENDS, SILENT, WAITS, DOOMED = "goes on", "ends with a notice", "ends without a word", "waits", "waits or ends"
"""What becomes of the session: DOOMED is incomplete, and no continuation could make it good."""

REQUESTS = (
    ber.BIND_REQUEST, ber.UNBIND_REQUEST, ber.SEARCH_REQUEST, ber.MODIFY_REQUEST, ber.ADD_REQUEST, ber.DELETE_REQUEST,
    ber.MODIFY_DN_REQUEST, ber.COMPARE_REQUEST, ber.ABANDON_REQUEST, ber.EXTENDED_REQUEST,
)


@dataclass
class Verdict:
    """What must become of some octets on a session with nothing in flight."""

    forwarded: bytes = b""
    """What the backend gets."""
    answers: list = field(default_factory=list)
    """`(messageID, resultCode)` of the final responses, in order; the backend's are successes."""
    session: str = OPEN
    binds: bool = False
    """Whether a bind is among them, after which the session is no longer as it was."""


class Refused(Exception):
    """The octets break the rules of framing."""


class Unreadable(Exception):
    """An element that not everybody reads alike."""


def judge(octets):
    """The verdict on a client's octets."""
    verdict, at = Verdict(), 0
    while at < len(octets):
        try:
            framed = frame(octets[at:])
        except Refused:
            verdict.session = ENDS
            return verdict
        if framed in (WAITS, DOOMED):
            verdict.session = framed
            return verdict
        end, message_id, tag, content = framed
        pdu = octets[at:at + end]
        at += end
        if tag == ber.UNBIND_REQUEST:
            verdict.forwarded += pdu
            verdict.session = SILENT
            return verdict
        if tag == ber.ABANDON_REQUEST:
            continue  # of an unknown operation: dropped (§4.11)
        verdict.binds |= tag == ber.BIND_REQUEST
        code = own_answer(tag, content)
        if code is None:
            verdict.forwarded += pdu
        verdict.answers.append((message_id, code or ber.SUCCESS))
    return verdict


def frame(octets):
    """`(length, messageID, operation's tag, operation's content)` of the message that begins here, else WAITS or DOOMED."""
    if octets[0] != 0x30:
        raise Refused
    start = header(octets, 0)
    if start is None:
        return WAITS
    total = start[0] + start[1]
    if total > LIMIT:
        raise Refused
    try:
        inside = contents(octets[:total], start[0], total)
    except Refused:
        if len(octets) >= total:
            raise
        return DOOMED
    if len(octets) < total:
        return WAITS
    return total, *inside


def contents(octets, at, total):
    """What a message holds, of which at least `octets` are there; None while they are too few to tell."""
    message_id = element(octets, at, total)
    if message_id is None:
        return None
    tag, start, end = message_id
    if tag != 0x02 or not 1 <= end - start <= 4:
        raise Refused
    if len(octets) < end:
        return None
    number = int.from_bytes(octets[start:end], "big", signed=True)
    if number < 1:
        raise Refused
    operation = element(octets, end, total)
    if operation is None:
        return None
    tag, start, end = operation
    if tag not in REQUESTS:
        raise Refused
    return number, tag, octets[start:end]


def element(octets, at, total):
    """`(tag, start, end)` of the element at `at`, which must end by `total`."""
    if at >= total:
        raise Refused
    start = header(octets, at)
    if start is None:
        if len(octets) == total:
            raise Refused
        return None
    begin = at + start[0]
    if begin + start[1] > total:
        raise Refused
    return octets[at], begin, begin + start[1]


def header(octets, at):
    """`(octets of tag and length, length)`"""
    if len(octets) < at + 2:
        return None
    first = octets[at + 1]
    if first < 0x80:
        return 2, first
    if not 0x81 <= first <= 0x84:
        raise Refused
    size = first - 0x80
    if len(octets) < at + 2 + size:
        return None
    return 2 + size, int.from_bytes(octets[at + 2:at + 2 + size], "big")


def own_answer(tag, content):
    """The result code by which the proxy itself answers, or None."""
    try:
        if tag == ber.BIND_REQUEST:
            return bind_answer(content)
        if tag == ber.EXTENDED_REQUEST:
            name = fields(content, 1)[0]
            if name[0] != 0x80:
                raise Unreadable
            # Samba reads it as a C string.
            return ber.OPERATIONS_ERROR if name[1].split(b"\0")[0] == ber.START_TLS.encode() else None
        if tag == ber.SEARCH_REQUEST:
            *_, filter = fields(content, 7)
            return ber.BUSY if depth(*filter) > DEPTH else None
    except Unreadable:
        return ber.PROTOCOL_ERROR
    return None


def bind_answer(content):
    (version, _), (name_tag, name), (choice, secret) = fields(content, 3)
    if version != 0x02 or name_tag != 0x04:
        raise Unreadable
    if choice == 0xA3:
        (mechanism_tag, _), end = first(secret)
        if mechanism_tag != 0x04:
            raise Unreadable
        if secret[end:end + 1] == b"\x04":
            first(secret[end:])  # credentials, which are optional, but whose NTLM name the throttle has to see
    unauthenticated = choice == 0x80 and name[:1] not in (b"", b"\0") and secret[:1] in (b"", b"\0")
    return ber.UNWILLING_TO_PERFORM if unauthenticated else None  # RFC 4513 §5.1.2


def fields(content, count):
    """The first `count` elements, as `(tag, content)`."""
    found, at = [], 0
    while len(found) < count:
        field, end = first(content[at:])
        found.append(field)
        at += end
    return found


def first(content):
    """The first element, as `(tag, content)`, and where it ends."""
    try:
        tag, start, end = element(content, 0, len(content))
    except Refused:
        raise Unreadable from None
    return (tag, content[start:end]), end


def depth(tag, content):
    """How deep and, or, not are nested in a filter, counted up to one more than allowed."""
    level, here = 0, [(tag, content)] if tag in (0xA0, 0xA1, 0xA2) else []
    while here and level <= DEPTH:
        level += 1
        inner = [part for _, content in here for part in every(content)]
        here = [part for part in inner if part[0] in (0xA0, 0xA1, 0xA2)]
    return level


def every(content):
    found, at = [], 0
    while at < len(content):
        field, end = first(content[at:])
        found.append(field)
        at += end
    return found


# The cases.

def cases():
    """`[(name, octets)]`, no octets twice."""
    found = {}
    for part in (outer_tags, outer_lengths, message_ids, operation_tags, operation_lengths, truncations, overruns,
                 elements, controls, flips, nesting, sizes, sequences, no_ldap, noise):
        for name, octets in part():
            found.setdefault(octets, f"{part.__name__}: {name}")
    found.pop(b"", None)
    return [(name, octets) for octets, name in found.items()]


def operations():
    """A request of each operation, whole and well-formed."""
    deep = ber.tlv(0xA0, ber.present("a"), ber.tlv(0xA1, ber.equality("b", "c"), ber.tlv(0xA2, ber.present("d"))))
    number = IDENTIFIER
    return {
        "bind": ber.bind(number, "cn=someone", "secret"),
        "sasl bind": ber.sasl_bind(number, "EXTERNAL", b"token"),
        "unbind": ber.unbind(number),
        "search": ber.search(number, "dc=x", ber.SUB, deep, ["cn", "sn"], 10, [ber.control("1.2.3", b"value", True)]),
        "modify": ber.modify(number, "cn=x", {"a": ["v"]}),
        "add": ber.add(number, "cn=x", {"a": ["v"], "b": ["w"]}),
        "delete": ber.delete(number, "cn=x"),
        "modifyDN": ber.modify_dn(number, "cn=x", "cn=y"),
        "compare": ber.compare(number, "cn=x", "a", "v"),
        "abandon": ber.abandon(number, 99),
        "extended": ber.extended(number, "1.2.3.4", b"value"),
    }


def each(mutate):
    for name, pdu in operations().items():
        for what, octets in mutate(pdu):
            yield f"{name}, {what}", octets


def outer_tags():
    for tag in range(256):
        yield f"{tag:#04x}", bytes([tag]) + operations()["search"][1:]
    yield from each(lambda pdu: ((f"{tag:#04x}", bytes([tag]) + pdu[1:])
                                 for tag in (0x00, 0x02, 0x04, 0x10, 0x31, 0x60, 0x70, 0xA0, 0xB0, 0xFF)))


def outer_lengths():
    def mutate(pdu):
        body = pdu[2:]
        for form in lengths(len(body)):
            yield form.hex(), b"\x30" + form + body

    yield from each(mutate)


def lengths(octets):
    """Length octets that say `octets`, or nearly, in every form, allowed or not."""
    yield from (ber.length(octets, long_form=size) for size in range(1, 9))
    for wrong in (0, 1, octets - 2, octets - 1, octets + 1, octets + 2, octets + 5, 0x7F):
        if wrong >= 0:
            yield ber.length(wrong)
    yield from (bytes([0x80]), b"\x80" + bytes([octets & 0x7F]), b"\xff", b"\xfe" + bytes(126), b"\x84\xff\xff\xff\xff")
    yield from (b"\x84\x7f\xff\xff\xff", b"\x84\x80\0\0\0", b"\x83\xff\xff\xff", b"\x82\xff\xff", b"\x81\xff", b"\x81\x80")
    yield from (b"\x85\0\0\0\0" + bytes([octets & 0xFF]), b"\x88\xff\xff\xff\xff\xff\xff\xff\xff")


INTEGERS = (
    b"", b"\0", b"\x01", b"\x7f", b"\x80", b"\xff", b"\0\0", b"\0\x01", b"\0\xff", b"\x7f\xff", b"\x80\0", b"\xff\xff",
    b"\0\0\x01", b"\0\x80\0", b"\x80\0\0", b"\0\0\0\0", b"\0\0\0\x01", b"\x7f\xff\xff\xf0", b"\x80\0\0\0", b"\xff\xff\xff\xff",
    b"\0\0\0\0\x01", b"\0\x80\0\0\0", b"\0\xff\xff\xff\xff", b"\x01\0\0\0\0", bytes(8), b"\xff" * 8, bytes(9) + b"\x01",
)
"""Contents of an INTEGER: empty, short, padded, negative, too large."""


def message_ids():
    def mutate(pdu):
        body = pdu[5:]
        for value in INTEGERS:
            yield f"value {value.hex()}", ber.tlv(0x30, ber.tlv(0x02, value), body)
        for tag in (0x00, 0x01, 0x03, 0x04, 0x0A, 0x22, 0x42, 0x82, 0xFF):
            yield f"tag {tag:#04x}", ber.tlv(0x30, bytes([tag, 1, IDENTIFIER]), body)
        for form in lengths(1):
            yield f"length {form.hex()}", ber.tlv(0x30, b"\x02", form, bytes([IDENTIFIER]), body)
        yield "missing", ber.tlv(0x30, body)
        yield "twice", ber.tlv(0x30, pdu[2:5], pdu[2:5], body)

    yield from each(mutate)


def operation_tags():
    for tag in range(256):
        pdu = ber.search(IDENTIFIER)
        yield f"{tag:#04x}", pdu[:5] + bytes([tag]) + pdu[6:]
    yield from each(lambda pdu: ((f"^ {bit:#04x}", pdu[:5] + bytes([pdu[5] ^ bit]) + pdu[6:])
                                 for bit in (1, 2, 4, 8, 16, 0x20, 0x40, 0x80)))


def operation_lengths():
    def mutate(pdu):
        tag, content, rest = operation(pdu)
        for form in lengths(len(content)):
            yield form.hex(), ber.tlv(0x30, pdu[2:5], bytes([tag]), form, content, rest)

    yield from each(mutate)


def operation(pdu):
    """Tag and content of the operation, and what follows it."""
    op, rest = ber.parse(pdu[5:])
    return op.tag, op.content, rest


def truncations():
    """The connection ends inside the message, of a good one and of bad ones."""
    yield from each(lambda pdu: ((f"{end} octets", pdu[:end]) for end in range(1, len(pdu))))
    for name, octets in (*message_ids(), *operation_lengths()):
        if name.startswith(("search", "add")):
            yield f"{name}, without the last octet", octets[:-1]


def overruns():
    """A message that is whole, but ends before what it holds does."""
    yield from each(lambda pdu: ((f"{end} octets", ber.tlv(0x30, pdu[2:end])) for end in range(2, len(pdu))))


def elements():
    """Every element inside a well-formed envelope and operation, mutated; the lengths around it are right."""
    def mutate(pdu):
        tag, content, rest = operation(pdu)
        for path, changed in inside(tag, content):
            yield path, ber.tlv(0x30, pdu[2:5], ber.tlv(tag, changed), rest)

    yield from each(mutate)


def inside(tag, content, path=""):
    """`(path, content)` for each mutation of each element of a constructed element's content, at any depth."""
    if not tag & 0x20:
        return
    parts, rest = [], content
    while rest:
        part, rest = ber.parse(rest)
        parts.append(part)
    for index, part in enumerate(parts):
        before = b"".join(ber.tlv(one.tag, one.content) for one in parts[:index])
        after = b"".join(ber.tlv(one.tag, one.content) for one in parts[index + 1:])
        here = f"{path}/{index}"
        for what, octets in mutations(part):
            yield f"{here} {what}", before + octets + after
        for deeper, changed in inside(part.tag, part.content, here):
            yield deeper, before + ber.tlv(part.tag, changed) + after


def mutations(part):
    tag, content = part.tag, part.content
    whole = ber.tlv(tag, content)
    yield "missing", b""
    yield "twice", whole + whole
    for other in (0x00, 0x02, 0x04, 0x30, 0x1F, tag ^ 0x20, tag ^ 0x80, 0xFF):
        yield f"tag {other:#04x}", bytes([other]) + whole[1:]
    for form in (b"\x80", b"\x80" + bytes([len(content) & 0x7F]), ber.length(len(content), long_form=4),
                 b"\x85\0\0\0\0" + bytes([len(content) & 0xFF]), b"\x84\xff\xff\xff\xff", b"\xff",
                 ber.length(len(content) + 1), ber.length(max(0, len(content) - 1))):
        yield f"length {form.hex()}", bytes([tag]) + form + content
    if tag in (0x02, 0x0A):
        for value in INTEGERS:
            yield f"value {value.hex()}", ber.tlv(tag, value)
    else:
        for value in (b"", b"\0", content + b"\0x", b"\xff" * max(1, len(content)), content[:-1], content + b"A" * 300):
            yield f"value of {len(value)} octets", ber.tlv(tag, value)


def controls():
    good = ber.control("1.2.3", b"value", True)
    operation = ber.search(IDENTIFIER)[2:]
    for name, octets in {
        "empty": ber.tlv(0xA0), "not a sequence": ber.tlv(0xA0, b"\x04\x01x"), "indefinite": b"\xa0\x80" + good + b"\0\0",
        "overruns": b"\xa0\x7f" + good, "twice": ber.tlv(0xA0, good) * 2, "another tag": ber.tlv(0xA1, good),
        "one octet": b"\xa0", "length cut": b"\xa0\x84\0", "no identifier": ber.tlv(0xA0, ber.tlv(0x30)),
        "criticality of two octets": ber.tlv(0xA0, ber.tlv(0x30, ber.octets("1.2.3"), b"\x01\x02\xff\xff")),
        "a thousand": ber.tlv(0xA0, good * 1000), "zeros": bytes(40), "ones": b"\xff" * 40,
    }.items():
        yield name, ber.tlv(0x30, operation, octets)
    for what, octets in inside(0xA0, good):
        yield what, ber.tlv(0x30, operation, ber.tlv(0xA0, octets))


def flips():
    """Every octet of every request, changed."""
    yield from each(lambda pdu: (
        (f"octet {at} ^ {bits:#04x}", pdu[:at] + bytes([pdu[at] ^ bits]) + pdu[at + 1:])
        for at in range(len(pdu)) for bits in (0x01, 0x20, 0x80, 0xFF)))


def nesting():
    for tag in (0xA0, 0xA1, 0xA2):
        for levels in (1, 2, 10, DEPTH - 1, DEPTH, DEPTH + 1, DEPTH + 2, 1000, 10_000):
            yield f"filter {tag:#04x} {levels} deep", ber.search(IDENTIFIER, filter=nested(tag, ber.present("a"), levels))
            unread = nested(tag, ber.present("a"), levels)
            yield f"the same, no attributes, {tag:#04x} {levels}", ber.message(IDENTIFIER, ber.tlv(
                ber.SEARCH_REQUEST, ber.octets(""), ber.enumerated(0), ber.enumerated(0), ber.integer(0), ber.integer(0),
                ber.boolean(False), unread))
        yield f"filter {tag:#04x} with a bad end", ber.search(
            IDENTIFIER, filter=nested(tag, b"\xa2\x80\x03\x87\x01a", 5))
    for levels in (10, 1000, 10_000):
        deep = nested(0x30, b"", levels)
        yield f"add {levels} deep", ber.message(IDENTIFIER, ber.tlv(ber.ADD_REQUEST, ber.octets("cn=x"), deep))
        yield f"control {levels} deep", ber.tlv(0x30, ber.search(IDENTIFIER)[2:], ber.tlv(0xA0, deep))


def nested(tag, inner, levels):
    """Built from the inside without copying it again for each level."""
    heads, size = [], len(inner)
    for _ in range(levels):
        head = bytes([tag]) + ber.length(size)
        heads.append(head)
        size += len(head)
    return b"".join(reversed(heads)) + inner


def sizes():
    empty = len(ber.add(IDENTIFIER, "cn=x", {"a": [b"v" * 200_000]})) - 200_000
    for size in (LIMIT - 1, LIMIT, LIMIT + 1):
        yield f"{size} octets", ber.add(IDENTIFIER, "cn=x", {"a": [b"v" * (size - empty)]})
    for size in (LIMIT, LIMIT + 1, 1 << 20, 1 << 24, (1 << 31) - 1, 1 << 31, (1 << 32) - 1):
        yield f"{size} announced", b"\x30\x84" + max(0, size - 6).to_bytes(4, "big") + operations()["search"][2:]


def sequences():
    """Malformed behind well-formed, in one write."""
    good = ber.delete(3, "cn=first")
    bad = [b"\x30\x80", b"\x30\x05\x04\x01\x01\x42\0", b"\0", b"\x30\0", b"\x30\x05\x02\x01\0\x42\0", b"GET / HTTP/1.1\r\n\r\n"]
    for index, tail in enumerate(bad):
        for name, pdu in operations().items():
            if "bind" not in name:  # what follows a bind waits for its answer
                yield f"{name}, then bad {index}", pdu + tail
                yield f"two, then bad {index} ({name})", good + pdu + tail


def no_ldap():
    for name, octets in {
        "http": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "proxy v1": b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\r\n",
        "proxy v2": b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0", "client hello": b"\x16\x03\x01\0\x05\x01\0\0\x01\0",
        "smb": b"\0\0\0\x2f\xffSMBr",
        "ssh": b"SSH-2.0-x\r\n", "zeros": bytes(64), "ones": b"\xff" * 64, "sequences": b"\x30" * 64, "xml": b"<?xml?>",
    }.items():
        yield name, octets


def noise():
    chance = random.Random(4511)
    for number in range(200):
        yield f"{number}", chance.randbytes(chance.randint(1, 200))
        body = chance.randbytes(chance.randint(0, 100))
        yield f"{number} in an envelope", ber.tlv(0x30, bytes([2, 1, IDENTIFIER]), bytes([chance.choice(REQUESTS)]),
                                                  ber.length(len(body)), body)
