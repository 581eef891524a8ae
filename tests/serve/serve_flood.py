"""A client of gRPC that begins messages and never ends them: how much does a server take?"""

import asyncio
import struct
from contextlib import suppress

DATA, HEADERS, RESET, SETTINGS, PING, AWAY, WINDOW = 0, 1, 3, 4, 6, 7, 8
ACK = END = 1
PIECE = 16384


def frame(kind, flags, stream, payload=b""):
    """A frame of HTTP/2."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def header(name, value):
    """A header that is neither indexed nor compressed."""
    return bytes([0, len(name), *name.encode(), len(value), *value.encode()])


class Flood:
    """So many calls of a method on one connection, each with a message of ``size`` bytes."""

    def __init__(self, method, calls, size):
        self.path = f"/inference.GRPCInferenceService/{method}"
        self.size = size
        self.start = 65535
        self.room = self.start
        self.rooms = {2 * n + 1: self.start for n in range(calls)}
        #: bytes taken of each
        self.taken = dict.fromkeys(self.rooms, 0)
        self.ended = set()

    async def run(self, port, seconds):
        """Send what the server lets it, all but each message's last byte."""
        reader, self.writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            with suppress(TimeoutError, ConnectionError, asyncio.IncompleteReadError):
                async with asyncio.timeout(seconds):
                    self._begin()
                    while True:
                        await self._send()
                        self._heard(*await self._frame(reader))
        finally:
            self.writer.transport.abort()

    def _begin(self):
        self.writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0))
        given = {
            ":method": "POST",
            ":scheme": "http",
            ":path": self.path,
            ":authority": "x",
            "content-type": "application/grpc",
            "te": "trailers",
        }
        block = b"".join(header(*pair) for pair in given.items())
        for stream in self.rooms:
            self.writer.write(frame(HEADERS, 4, stream, block))

    async def _send(self):
        for stream in self.taken:
            while stream not in self.ended:
                count = min(
                    PIECE, self.room, self.rooms[stream], self.size + 4 - self.taken[stream]
                )
                if count < 5:  # the length of a message is sent in one piece
                    break
                begin = b"" if self.taken[stream] else b"\0" + struct.pack(">I", self.size)
                self.writer.write(frame(DATA, 0, stream, begin + bytes(count - len(begin))))
                self.taken[stream] += count
                self.rooms[stream] -= count
                self.room -= count
        await self.writer.drain()

    async def _frame(self, reader):
        head = await reader.readexactly(9)
        size, kind, flags, stream = struct.unpack(">IBBI", b"\0" + head)
        return kind, flags, stream, await reader.readexactly(size)

    def _heard(self, kind, flags, stream, payload):
        if kind == SETTINGS and not flags & ACK:
            for at in range(0, len(payload), 6):
                key, value = struct.unpack_from(">HI", payload, at)
                if key == 4:
                    change, self.start = value - self.start, value
                    self.rooms = {one: room + change for one, room in self.rooms.items()}
            self.writer.write(frame(SETTINGS, ACK, 0))
        elif kind == PING and not flags & ACK:
            self.writer.write(frame(PING, ACK, 0, payload))
        elif kind == WINDOW and not stream:
            self.room += int.from_bytes(payload, "big")
        elif kind == WINDOW and stream in self.rooms:
            self.rooms[stream] += int.from_bytes(payload, "big")
        elif kind == RESET or (kind == HEADERS and flags & END):
            self.ended.add(stream)
        elif kind == AWAY:
            raise ConnectionError
