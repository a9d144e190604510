"""The ring: whose turn a piece of shared memory is, and that nothing of it is left."""

import os

import jax
import numpy as np
import pytest

from gimlax import fabric
from gimlax.fabric import FrameError, LinkTimeout, Tag, land
from gimlax.fabric.frames import Described, Kind, layout_of
from tests.fabric.children import WATCHDOG_S, Peer, mapped_rings, open_descriptors

MIB = 2**20


@pytest.fixture
def pair():
    receiver = fabric.listen("ring", "a -> b", capacity_bytes=4 * MIB)
    with receiver, fabric.connect(receiver.offer) as sender:
        yield sender, receiver


def send(sender, value, num_bytes=MIB):
    sender.send(Tag(pass_number=value), [np.full(num_bytes, value, np.uint8)])
    sender.drain(WATCHDOG_S)


def test_arrays_lie_in_the_ring_until_they_are_gone(pair):
    sender, receiver = pair
    device = jax.devices("cpu")[0]
    held = []
    for value in range(4):
        send(sender, value)
        message = receiver.receive(WATCHDOG_S)
        assert message.shared
        landed = land(message.parts[0].data, device)
        assert landed.aliased
        held.append(landed.array)
    del message, landed
    addresses = [array.unsafe_buffer_pointer() for array in held]
    assert np.diff(addresses).tolist() == [MIB] * 3

    # no room, and only arrays of the receiver could make any
    sender.send(Tag(pass_number=4), [np.full(MIB, 4, np.uint8)])
    message = receiver.receive(WATCHDOG_S)
    assert not message.shared
    del held[1]
    with pytest.raises(LinkTimeout):  # whoever asks for more gives back what is gone
        receiver.receive(0)
    send(sender, 5)  # in its place
    message = receiver.receive(WATCHDOG_S)
    assert message.shared
    assert message.parts[0].data.ctypes.data == addresses[1]
    assert [int(array[-1]) for array in held] == [0, 2, 3]
    assert int(message.parts[0].data[0]) == 5


def test_a_full_ring_of_what_was_not_received_is_waited_for(pair):
    sender, receiver = pair
    for value in range(4):
        send(sender, value)
    sender.send(Tag(pass_number=4), [np.full(MIB, 4, np.uint8)])
    with pytest.raises(LinkTimeout):
        sender.drain(0.05)
    for value in range(5):
        message = receiver.receive(WATCHDOG_S)
        assert (message.tag.pass_number, message.shared) == (value, True)
        assert (message.parts[0].data == value).all()
        del message
        if value == 0:
            sender.drain(WATCHDOG_S)


def test_what_is_larger_than_the_ring_goes_through_the_socket():
    with Peer("send", "ring", 9 * MIB) as peer:
        with fabric.listen("ring", "a -> b", capacity_bytes=MIB) as receiver:
            peer.tell(receiver.offer.to_json())
            assert peer.line() == "connected"
            peer.tell("")
            message = receiver.receive(WATCHDOG_S)
        assert not message.shared
        assert message.parts[0].data.nbytes == 9 * MIB
        assert land(message.parts[0].data, jax.devices("cpu")[0]).aliased


def test_there_is_no_name_that_could_outlive_the_processes():
    before = os.listdir("/dev/shm"), open_descriptors(), mapped_rings()
    with Peer("echo", "ring") as peer, fabric.listen("ring", "b -> a") as receiver:
        peer.tell(receiver.offer.to_json())
        with fabric.connect(peer.offer()) as sender:
            sender.send(Tag(pass_number=0), [np.ones(MIB)])
            message = receiver.receive(WATCHDOG_S)
            assert mapped_rings() == before[2] + 2
            assert os.listdir("/dev/shm") == before[0]
            peer.kill()
    assert mapped_rings() == before[2] + 1  # the message lies over it
    del message
    assert (os.listdir("/dev/shm"), open_descriptors(), mapped_rings()) == before


def test_the_memory_cannot_be_cut_off_under_the_receiver(pair):
    for name in os.listdir("/proc/self/map_files"):
        path = f"/proc/self/map_files/{name}"
        if "memfd:gimlax" in os.readlink(path):
            with pytest.raises(PermissionError):
                os.truncate(path, 4096)
            return
    raise AssertionError("no ring is mapped")


LOANS = {
    "not sent": ((1, 4096), "slot 1 was not sent"),
    "no slot": ((2**20, 4096), "slot 1048576 was not sent"),
    "in the slots": ((0, 0), "lie from byte 0 to 4096 of"),
    "outside": ((0, 2**40), f"lie from byte {2**40} to"),
    "misaligned": ((0, 4100), "lie from byte 4100 to"),
}


@pytest.mark.parametrize(("loan", "said"), LOANS.values(), ids=LOANS)
def test_a_loan_of_what_was_not_lent_is_refused(pair, loan, said):
    sender, receiver = pair
    sender._carrier._states[0] = 1  # sent
    dtype = np.dtype(np.uint8)
    block = Described(index=0, dtype=dtype, whole=(4096,), start=(0,), shape=(4096,))
    layout = layout_of((block,))
    sender._writer.write(Kind.LOAN, Tag(pass_number=0), layout, slot=loan[0], offset=loan[1])
    with pytest.raises(FrameError, match=rf"link 'a -> b': frame 0: .*{said}"):
        receiver.receive(WATCHDOG_S)
