"""The wire protocol once more, written from its document alone: what the C code is held against."""

import struct
import zlib


def sealed(kind, sequence, payload=b"", version=1):
    """A body with its CRC."""
    body = struct.pack("<BBH", version, kind, sequence) + payload
    return body + struct.pack("<I", zlib.crc32(body))


def cobs(body):
    """The code of ``body``, block by block."""
    coded = bytearray()
    for piece in body.split(b"\0"):
        while len(piece) >= 254:
            coded += b"\xff" + piece[:254]
            piece = piece[254:]
        coded += bytes([len(piece) + 1]) + piece
    return bytes(coded)


def framed(body):
    """What goes over the line."""
    return b"\0" + cobs(body) + b"\0"


def frame(kind, sequence, payload=b""):
    """A whole frame."""
    return framed(sealed(kind, sequence, payload))


def uncobs(coded):
    """The body of a frame that is well formed."""
    body, at = bytearray(), 0
    while at < len(coded):
        code = coded[at]
        body += coded[at + 1 : at + code]
        at += code
        if code < 255 and at < len(coded):
            body.append(0)
    return bytes(body)


def opened(coded):
    """Type, sequence and payload; asserts that the CRC is right."""
    body = uncobs(coded)
    assert zlib.crc32(body[:-4]) == struct.unpack("<I", body[-4:])[0]
    version, kind, sequence = struct.unpack("<BBH", body[:4])
    assert version == 1
    return kind, sequence, body[4:-4]
