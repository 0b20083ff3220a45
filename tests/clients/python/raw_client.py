"""A client that can break every rule, which no library would do.

- `encode`: one frame, right or wrong.
- `RawClient`: a socket on which the opening handshake was made.
- `open_request` and `exchange`: an opening handshake by hand.
"""

from __future__ import annotations

import os
import select
import socket
import struct
from dataclasses import dataclass

from gateway import DEADLINE_SECONDS, Address, Answer

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA


@dataclass(frozen=True)
class Frame:
    opcode: int
    payload: bytes
    fin: bool = True
    reserved: int = 0


def encode(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    reserved: int = 0,
    masked: bool = True,
    announced: int | None = None,
    length_bytes: int | None = None,
) -> bytes:
    """One frame of a client.

    `reserved` are the bits RSV1 to RSV3 as a number, `announced` is the length that the header
    tells where that is not the payload's own, and `length_bytes` is 0, 2 or 8: in how many bytes
    beyond the first two it tells it, where that is not the fewest.
    """
    length = len(payload) if announced is None else announced
    if length_bytes is None:
        length_bytes = 0 if length <= 125 else 2 if length <= 0xFFFF else 8
    mark = {0: length, 2: 126, 8: 127}[length_bytes]
    header = bytes([fin << 7 | reserved << 4 | opcode, masked << 7 | mark])
    if length_bytes:
        header += length.to_bytes(length_bytes, "big")
    if not masked:
        return header + payload
    key = os.urandom(4)
    return header + key + mask(key, payload)


def mask(key: bytes, payload: bytes) -> bytes:
    repeated = key * (len(payload) // 4 + 1)
    number = int.from_bytes(payload, "big") ^ int.from_bytes(repeated[: len(payload)], "big")
    return number.to_bytes(len(payload), "big")


def close_payload(code: int, reason: str = "") -> bytes:
    return struct.pack("!H", code) + reason.encode()


def open_request(
    address: Address, path: str = "/echo", headers: dict[str, str | None] | None = None
) -> bytes:
    """The request of an opening handshake; a header that is None is left out."""
    host, port = address
    lines: dict[str, str | None] = {
        "Host": f"{host}:{port}",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version": "13",
    } | (headers or {})
    head = [f"{name}: {value}" for name, value in lines.items() if value is not None]
    return "\r\n".join([f"GET {path} HTTP/1.1", *head, "", ""]).encode()


def exchange(address: Address, request: bytes) -> Answer:
    """Sends a whole request and reads the whole answer."""
    with RawClient.dial(address) as client:
        client.send(request)
        return client.read_answer()


class RawClient:
    def __init__(self, peer: socket.socket) -> None:
        self.socket = peer
        self._unread = b""

    @classmethod
    def dial(cls, address: Address, receive_buffer_bytes: int | None = None) -> RawClient:
        """A TCP connection on which nothing was said yet."""
        peer = socket.socket()
        peer.settimeout(DEADLINE_SECONDS)
        if receive_buffer_bytes is not None:
            # Before the connection is there, since it decides what window is offered.
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        peer.connect(address)
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return cls(peer)

    @classmethod
    def open(
        cls,
        address: Address,
        path: str = "/echo",
        *,
        behind: bytes = b"",
        receive_buffer_bytes: int | None = None,
    ) -> RawClient:
        """A WebSocket; `behind` goes out in the same segment as the request."""
        client = cls.dial(address, receive_buffer_bytes)
        client.send(open_request(address, path) + behind)
        answer = client.read_head()
        assert answer.status == 101, answer
        return client

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def send_frame(self, opcode: int, payload: bytes = b"", **rules: object) -> None:
        self.send(encode(opcode, payload, **rules))

    def send_until_blocked(self, data: bytes, most: int, patience: float = 0.5) -> int:
        """Sends `data` over and over until the other side has taken nothing for `patience` seconds,
        or `most` bytes are sent; tells how many went out."""
        self.socket.setblocking(False)
        sent = 0
        while sent < most and select.select([], [self.socket], [], patience)[1]:
            # Goes on where the last one stopped, so that the frames stay whole.
            sent += self.socket.send(data[sent % len(data) :])
        self.socket.settimeout(DEADLINE_SECONDS)
        return sent

    def read_frame(self) -> Frame:
        first, second = self._read(2)
        assert not second & 0x80, "a server must not mask"
        length = second & 0x7F
        if length >= 126:
            length = int.from_bytes(self._read(2 if length == 126 else 8), "big")
        return Frame(first & 0xF, self._read(length), bool(first & 0x80), first >> 4 & 0x7)

    def read_close(self) -> tuple[int, str]:
        """The code and the reason of the Close that must be the next frame."""
        frame = self.read_frame()
        assert (frame.opcode, frame.fin, frame.reserved) == (CLOSE, True, 0), frame
        (code,) = struct.unpack_from("!H", frame.payload)
        return code, frame.payload[2:].decode()

    def read_end(self) -> None:
        """Nothing more comes, and the other side closes its end of the socket."""
        try:
            rest = self._unread + self.socket.recv(1024)
        except ConnectionResetError:
            rest = b""
        assert rest == b"", f"unexpected: {rest!r}"

    def read_rest(self) -> bytes:
        """What comes until the other side closes its end of the socket."""
        rest, self._unread = self._unread, b""
        while received := self.socket.recv(65536):
            rest += received
        return rest

    def is_silent(self) -> bool:
        """Whether there is nothing to read right now."""
        return not self._unread and not select.select([self.socket], [], [], 0)[0]

    def read_head(self) -> Answer:
        """An HTTP answer up to the end of its head."""
        while b"\r\n\r\n" not in self._unread:
            self._receive()
        head, _, self._unread = self._unread.partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        return Answer(int(status.split()[1]), headers, "")

    def read_answer(self) -> Answer:
        head = self.read_head()
        body = self._read(int(head.headers.get("content-length", "0")))
        return Answer(head.status, head.headers, body.decode())

    def _read(self, length: int) -> bytes:
        while len(self._unread) < length:
            self._receive()
        data, self._unread = self._unread[:length], self._unread[length:]
        return data

    def _receive(self) -> None:
        received = self.socket.recv(65536)
        if not received:
            raise EOFError(f"the gateway closed the socket after {self._unread!r}")
        self._unread += received
