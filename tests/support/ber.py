"""Just enough BER to build and read LDAP messages byte by byte (RFC 4511 §4, §5.1)."""

from dataclasses import dataclass

from .reconcile import note_password

BIND_REQUEST, BIND_RESPONSE, UNBIND_REQUEST = 0x60, 0x61, 0x42
SEARCH_REQUEST, SEARCH_ENTRY, SEARCH_DONE, SEARCH_REFERENCE = 0x63, 0x64, 0x65, 0x73
MODIFY_REQUEST, MODIFY_RESPONSE = 0x66, 0x67
ADD_REQUEST, ADD_RESPONSE = 0x68, 0x69
DELETE_REQUEST, DELETE_RESPONSE = 0x4A, 0x6B
MODIFY_DN_REQUEST, MODIFY_DN_RESPONSE = 0x6C, 0x6D
COMPARE_REQUEST, COMPARE_RESPONSE = 0x6E, 0x6F
ABANDON_REQUEST, EXTENDED_REQUEST, EXTENDED_RESPONSE, INTERMEDIATE_RESPONSE = 0x50, 0x77, 0x78, 0x79

NOTICE_OF_DISCONNECTION = "1.3.6.1.4.1.1466.20036"
START_TLS = "1.3.6.1.4.1.1466.20037"
WHO_AM_I = "1.3.6.1.4.1.4203.1.11.3"

SUCCESS, OPERATIONS_ERROR, PROTOCOL_ERROR, STRONGER_AUTH_REQUIRED, NO_SUCH_OBJECT = 0, 1, 2, 8, 32
CONFIDENTIALITY_REQUIRED, INVALID_CREDENTIALS, BUSY, UNAVAILABLE, UNWILLING_TO_PERFORM = 13, 49, 51, 52, 53
SASL_BIND_IN_PROGRESS = 14

BASE, ONE, SUB = 0, 1, 2


class Malformed(ValueError):
    """Not the BER that LDAP allows."""


def tlv(tag, *contents):
    """One element with a minimal definite length."""
    content = b"".join(contents)
    return bytes([tag]) + length(len(content)) + content


def length(octets, *, long_form=0):
    """Length octets; `long_form` = n asks for the n-octet form even where a shorter one would do."""
    if not long_form and octets < 0x80:
        return bytes([octets])
    size = long_form or (octets.bit_length() + 7) // 8
    return bytes([0x80 | size]) + octets.to_bytes(size, "big")


def integer(value, tag=0x02):
    return tlv(tag, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))


def enumerated(value):
    return integer(value, tag=0x0A)


def boolean(value):
    return tlv(0x01, b"\xff" if value else b"\x00")


def octets(value, tag=0x04):
    return tlv(tag, value.encode() if isinstance(value, str) else value)


def message(message_id, operation, *controls):
    """An LDAPMessage around an already encoded operation."""
    extra = (tlv(0xA0, *controls),) if controls else ()
    return tlv(0x30, integer(message_id), operation, *extra)


def control(oid, value=None, critical=False):
    parts = [octets(oid)]
    if critical:
        parts.append(boolean(True))
    if value is not None:
        parts.append(octets(value))
    return tlv(0x30, *parts)


# Requests.

def bind(message_id, name="", password="", version=3):
    note_password(password)
    return message(message_id, tlv(BIND_REQUEST, integer(version), octets(name), octets(password, tag=0x80)))


def sasl_bind(message_id, mechanism, credentials=None):
    """RFC 4513 §5.2.1.3: `None` is absent credentials, b"" present but empty ones."""
    parts = [octets(mechanism)] + ([] if credentials is None else [octets(credentials)])
    return message(message_id, tlv(BIND_REQUEST, integer(3), octets(""), tlv(0xA3, *parts)))


def unbind(message_id):
    return message(message_id, tlv(UNBIND_REQUEST))


def search(message_id, base="", scope=BASE, filter=None, attributes=(), size_limit=0, controls=(), time_limit=0):
    """A SearchRequest; `filter` is encoded already, by default (objectClass=*)."""
    return message(
        message_id,
        tlv(
            SEARCH_REQUEST, octets(base), enumerated(scope), enumerated(0), integer(size_limit), integer(time_limit),
            boolean(False), present("objectClass") if filter is None else filter,
            tlv(0x30, *map(octets, attributes)),
        ),
        *controls,
    )


def present(attribute):
    return octets(attribute, tag=0x87)


def equality(attribute, value):
    return tlv(0xA3, octets(attribute), octets(value))


def compare(message_id, name, attribute, value):
    return message(message_id, tlv(COMPARE_REQUEST, octets(name), tlv(0x30, octets(attribute), octets(value))))


def add(message_id, name, attributes):
    """`attributes` maps a type to its values."""
    return message(message_id, tlv(ADD_REQUEST, octets(name), tlv(0x30, *map(_attribute, attributes.items()))))


def modify(message_id, name, attributes, how=2):
    """Changes all of `attributes` the same way: 0 add, 1 delete, 2 replace."""
    changes = (tlv(0x30, enumerated(how), _attribute(item)) for item in attributes.items())
    return message(message_id, tlv(MODIFY_REQUEST, octets(name), tlv(0x30, *changes)))


def delete(message_id, name):
    return message(message_id, octets(name, tag=DELETE_REQUEST))


def modify_dn(message_id, name, new_rdn, delete_old=True):
    return message(message_id, tlv(MODIFY_DN_REQUEST, octets(name), octets(new_rdn), boolean(delete_old)))


def abandon(message_id, abandoned):
    return message(message_id, integer(abandoned, tag=ABANDON_REQUEST))


def extended(message_id, oid, value=None):
    parts = [octets(oid, tag=0x80)] + ([] if value is None else [octets(value, tag=0x81)])
    return message(message_id, tlv(EXTENDED_REQUEST, *parts))


def _attribute(item):
    name, values = item
    return tlv(0x30, octets(name), tlv(0x31, *map(octets, values)))


# Responses.

def result(message_id, tag, code=SUCCESS, diagnostic="", *extra, matched="", controls=()):
    """A response that carries an LDAPResult."""
    operation = tlv(tag, enumerated(code), octets(matched), octets(diagnostic), *extra)
    return message(message_id, operation, *controls)


def entry(message_id, name, attributes):
    return message(message_id, tlv(SEARCH_ENTRY, octets(name), tlv(0x30, *map(_attribute, attributes.items()))))


def reference(message_id, *uris):
    return message(message_id, tlv(SEARCH_REFERENCE, *map(octets, uris)))


def notice_of_disconnection(code, diagnostic=""):
    return result(0, EXTENDED_RESPONSE, code, diagnostic, octets(NOTICE_OF_DISCONNECTION, tag=0x8A))


# Reading.

@dataclass(frozen=True)
class Element:
    """One decoded tag, length and value."""

    tag: int
    content: bytes

    def children(self):
        """The elements inside a constructed one."""
        found, rest = [], self.content
        while rest:
            element, rest = parse(rest)
            found.append(element)
        return found

    def integer(self):
        return int.from_bytes(self.content, "big", signed=True)

    def text(self):
        return self.content.decode()


@dataclass(frozen=True)
class Pdu:
    """One LDAPMessage: its bytes as received, and what they say."""

    raw: bytes
    message_id: int
    operation: Element
    controls: tuple = ()

    @property
    def tag(self):
        return self.operation.tag

    @property
    def result_code(self):
        """resultCode of a response that has one."""
        if self.tag in (SEARCH_ENTRY, SEARCH_REFERENCE, INTERMEDIATE_RESPONSE):
            raise AssertionError(f"no final response: {self}")
        return self.operation.children()[0].integer()

    @property
    def diagnostic(self):
        return self.operation.children()[2].text()

    @property
    def response_name(self):
        """responseName of an ExtendedResponse, or None."""
        return next((part.text() for part in self.operation.children()[3:] if part.tag == 0x8A), None)

    @property
    def sasl_credentials(self):
        """serverSaslCreds of a BindResponse, or None."""
        return next((part.content for part in self.operation.children()[3:] if part.tag == 0x87), None)

    @property
    def entry_name(self):
        return self.operation.children()[0].text()

    @property
    def attributes(self):
        """Of a SearchResultEntry: type to values."""
        rows = (row.children() for row in self.operation.children()[1].children())
        return {name.text(): [value.content for value in values.children()] for name, values in rows}

    @property
    def requested_attribute(self):
        """The first attribute a SearchRequest asks for, or ""."""
        wanted = self.operation.children()[7].children()
        return wanted[0].text() if wanted else ""

    def is_notice(self, code):
        """Whether this is a Notice of Disconnection with `code`, as RFC 4511 §4.4.1 writes it."""
        return (
            self.message_id == 0 and self.tag == EXTENDED_RESPONSE
            and self.response_name == NOTICE_OF_DISCONNECTION and self.result_code == code
        )


def header(data):
    """`(header octets, content octets)` of the element that begins `data`, or None while too few octets are there."""
    if len(data) < 2:
        return None
    first = data[1]
    if first < 0x80:
        return 2, first
    size = first & 0x7F
    if not 1 <= size <= 4:
        raise Malformed(f"length octet {first:#x}")
    if len(data) < 2 + size:
        return None
    return 2 + size, int.from_bytes(data[2:2 + size], "big")


def parse(data):
    """The first element of `data` and what follows it."""
    start = header(data)
    if start is None or len(data) < sum(start):
        raise Malformed(f"truncated element {data[:40].hex()}")
    end = sum(start)
    return Element(data[0], bytes(data[start[0]:end])), data[end:]


def pdu(data):
    """Exactly one LDAPMessage."""
    envelope, rest = parse(data)
    if rest or envelope.tag != 0x30:
        raise Malformed(f"not one LDAPMessage: {data[:40].hex()}")
    message_id, operation, *extra = envelope.children()
    controls = tuple(child for element in extra if element.tag == 0xA0 for child in element.children())
    return Pdu(bytes(data), message_id.integer(), operation, controls)
