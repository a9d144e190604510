"""A link over TCP through a relay that changes, repeats, drops and reorders what passes it."""

import socket
import threading

import numpy as np
import pytest

from gimlax import fabric
from gimlax.fabric import FrameError, LinkLost, Offer, Tag
from gimlax.fabric.frames import HEAD_BYTES, Limits, decode_head
from tests.fabric.children import WATCHDOG_S

NUMBER = 5000
HANDSHAKE = (36, 64, 32)  # bytes from the receiver, from the sender, from the receiver


def exactly(sock, num_bytes):
    data = b""
    while len(data) < num_bytes and (piece := sock.recv(num_bytes - len(data))):
        data += piece
    return data


class Relay:
    """Passes the handshake, then so many frames, changed as a whole, and closes."""

    def __init__(self, offer, change, num_frames):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = offer.address.rpartition(":")
        self.change, self.num_frames = change, num_frames
        self.thread = threading.Thread(target=self.run)
        self.thread.start()
        fields = {name: getattr(offer, name) for name in Offer.__slots__}
        self.offer = Offer(**fields | {"address": f"127.0.0.1:{self.listener.getsockname()[1]}"})

    def run(self):
        sender, _ = self.listener.accept()
        with sender, socket.create_connection((self.address[0], int(self.address[2]))) as receiver:
            sender.sendall(exactly(receiver, HANDSHAKE[0]))
            receiver.sendall(exactly(sender, HANDSHAKE[1]))
            sender.sendall(exactly(receiver, HANDSHAKE[2]))
            frames = [self.frame(sender, number) for number in range(self.num_frames)]
            for piece in self.change(frames):
                receiver.sendall(piece)
            receiver.shutdown(socket.SHUT_WR)
            receiver.recv(1)  # until it has read all and closes

    def frame(self, sock, number):
        data = exactly(sock, HEAD_BYTES)
        head = decode_head(data, "relay", number, Limits())
        return data + exactly(sock, head.description_bytes + head.payload_bytes + 4)

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        self.thread.join(WATCHDOG_S)
        self.listener.close()


def flipped(frame, byte):
    return frame[:byte] + bytes([frame[byte] ^ 0x10]) + frame[byte + 1 :]


FAULTS = {
    "nothing": (lambda f: f, None),
    "a byte of the payload": (
        lambda f: [f[0], flipped(f[1], -NUMBER // 2), f[2]],
        rf"frame 1: the checksum of its payload of {NUMBER} bytes is 0x\w+, and 0x\w+ was sent",
    ),
    "a byte of the head": (
        lambda f: [f[0], flipped(f[1], 20), f[2]],
        r"frame 1: the checksum of its head",
    ),
    "a byte of the description": (
        lambda f: [f[0], flipped(f[1], HEAD_BYTES + 9), f[2]],
        r"frame 1: the checksum of its description",
    ),
    "a byte too many": (
        lambda f: [f[0], b"?", f[1], f[2]],
        r"frame 1: its head begins with b'\?GXF' instead of b'GXF1'",
    ),
    "repeated": (
        lambda f: [f[0], f[0], f[1], f[2]],
        r"frame 1: number 0 came instead; it came before",
    ),
    "dropped": (
        lambda f: [f[0], f[2]],
        r"frame 1: number 2 came instead; what lies between is missing",
    ),
    "reordered": (
        lambda f: [f[0], f[2], f[1]],
        r"frame 1: number 2 came instead; what lies between is missing",
    ),
    "cut short": (
        lambda f: [f[0], f[1][:-100]],
        r"the sender is gone without a farewell, before frame 1 was complete",
    ),
}


@pytest.mark.parametrize(("change", "said"), FAULTS.values(), ids=FAULTS)
def test_a_fault_on_the_way_is_an_error_that_names_the_frame(change, said):
    with (
        fabric.listen("tcp", "a -> b") as receiver,
        Relay(receiver.offer, change, 3) as relay,
        fabric.connect(relay.offer) as sender,
    ):
        for number in range(3):
            sender.send(Tag(pass_number=number), [np.full(NUMBER, number, np.uint8)])
        whole = 1 if said else 3
        for number in range(whole):
            message = receiver.receive(WATCHDOG_S)
            assert message.tag == Tag(pass_number=number)
            assert (message.parts[0].data == np.full(NUMBER, number)).all()
        for _ in range(2 if said else 0):  # it stays so
            with pytest.raises((FrameError, LinkLost), match=rf"^link 'a -> b': {said}"):
                receiver.receive(WATCHDOG_S)
        receiver.close()
