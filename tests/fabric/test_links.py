"""Both kinds of link between real processes: what arrives, and what an end makes of the other's."""

import socket
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gimlax import fabric
from gimlax.errors import BackendError, SpecError
from gimlax.fabric import LinkClosed, LinkError, LinkLost, LinkTimeout, Offer, Tag, writing
from tests.fabric.children import WATCHDOG_S, Peer, mapped_rings, open_descriptors
from tests.fabric.test_frames import all_dtypes

MIB = 2**20


@pytest.fixture(params=["ring", "tcp"])
def kind(request):
    return request.param


@pytest.fixture
def pair(kind):
    """Both ends in this process."""
    receiver = fabric.listen(kind, "a -> b", capacity_bytes=4 * MIB)
    with receiver, fabric.connect(receiver.offer) as sender:
        yield sender, receiver


@pytest.fixture(autouse=True)
def nothing_is_left():
    before = open_descriptors(), mapped_rings(), threads()
    yield
    assert (open_descriptors(), mapped_rings(), threads()) == before


def threads():
    return sorted(t.name for t in threading.enumerate() if t.name.startswith("gimlax"))


def connected(peer, **bounds):
    return fabric.connect(peer.offer(), **bounds)


def in_thread(call):
    """Starts a call; returns a function that waits for the error that it ended with."""
    ended = []

    def run():
        try:
            ended.append(call())
        except BackendError as error:
            ended.append(error)

    thread = threading.Thread(target=run)
    thread.start()

    def result():
        thread.join(WATCHDOG_S)
        assert ended, "it still runs"
        return ended[0]

    return result


def test_arrays_go_to_another_process_and_back(kind):
    rng = np.random.default_rng(0)
    with Peer("echo", kind) as peer, fabric.listen(kind, "b -> a") as receiver:
        peer.tell(receiver.offer.to_json())
        with fabric.connect(peer.offer()) as sender:
            with jax.enable_x64(False):
                dtypes = [d for d in all_dtypes() if jax.dtypes.canonicalize_dtype(d) == d]
            arrays = [
                np.zeros(shape, dtype)
                if dtype.kind == "b"
                else rng.integers(0, 2, shape).astype(dtype)
                for dtype in dtypes
                for shape in ((), (0, 3), (5,), (64, 1024))
            ]
            arrays.append(jnp.arange(2 * MIB, dtype=jnp.float32))
            for number in range(3):
                sender.send(Tag(pass_number=number, transfer=5, attempt=1), arrays)
            for number in range(3):
                message = receiver.receive(WATCHDOG_S)
                assert message.sequence == number
                assert message.tag == Tag(pass_number=number, transfer=5, attempt=1)
                assert not message.void
                assert [part.index for part in message.parts] == list(range(len(arrays)))
                for part, array in zip(message.parts, arrays, strict=True):
                    array = np.asarray(array)
                    assert (part.data.dtype, part.data.shape) == (array.dtype, array.shape)
                    assert part.data.tobytes() == array.tobytes()
                    assert not part.data.flags.writeable
                    assert part.data.ctypes.data % 64 == 0
                del message, part
            sender.drain(WATCHDOG_S)
        with pytest.raises(LinkClosed, match=r"the sender closed it after 3 messages"):
            receiver.receive(WATCHDOG_S)
        peer.ends_well()


def test_blocks_keep_their_place(pair):
    sender, receiver = pair
    whole = np.arange(24, dtype=np.int16).reshape(4, 6)
    sender.send(
        Tag(pass_number=1),
        [
            fabric.Outgoing(data=whole[1:3], index=9, whole=(4, 6), start=(1, 0)),
            fabric.Outgoing(
                data=jnp.asarray(whole), whole=(8, 6), start=(4, 2), take=np.s_[0:2, 2:5]
            ),
        ],
    )
    first, second = receiver.receive(WATCHDOG_S).parts
    assert (first.index, first.whole, first.start) == (9, (4, 6), (1, 0))
    assert (second.index, second.whole, second.start) == (0, (8, 6), (4, 2))
    assert first.data.tolist() == whole[1:3].tolist()
    assert second.data.tolist() == whole[:2, 2:5].tolist()


@pytest.mark.parametrize("step", [1, 2, -1])
def test_what_is_not_contiguous_travels(pair, step):
    sender, receiver = pair
    array = np.arange(2**18, dtype=np.float32).reshape(512, 512)[::step].T
    sender.send(Tag(pass_number=0), [array])
    assert (receiver.receive(WATCHDOG_S).parts[0].data == array).all()


def test_what_came_stays_after_the_link_is_closed(kind):
    with fabric.listen(kind, "a -> b") as receiver, fabric.connect(receiver.offer) as sender:
        sender.send(Tag(pass_number=0), [np.full(MIB, 3, np.uint8)])
        message = receiver.receive(WATCHDOG_S)
    assert (message.parts[0].data == 3).all()


def test_an_array_that_is_gone_before_its_turn_leaves_a_void_and_a_good_link(pair):
    """As does one whose computation failed."""
    sender, receiver = pair
    array = jnp.ones(3)
    sender.send(Tag(pass_number=1), [np.zeros(64 * MIB, np.uint8)])  # until somebody receives
    sender.send(Tag(pass_number=2), [np.zeros(1), array])
    sender.send(Tag(pass_number=3), [np.zeros(1)])
    array.delete()
    messages = [receiver.receive(WATCHDOG_S) for _ in range(3)]
    assert [(m.tag.pass_number, m.void, len(m.parts)) for m in messages] == [
        (1, False, 1),
        (2, True, 0),
        (3, False, 1),
    ]
    with pytest.raises(SpecError, match=r"'a -> b': array 0 was deleted or donated"):
        sender.send(Tag(pass_number=4), [array])


def test_send_returns_before_the_values_are_there(pair, monkeypatch):
    sender, receiver = pair
    there = threading.Event()
    at_once = writing.host_array

    def later(block):
        assert there.wait(WATCHDOG_S)
        return at_once(block)

    monkeypatch.setattr(writing, "host_array", later)
    sender.send(Tag(pass_number=0), [np.ones(MIB, np.uint8)])
    with pytest.raises(LinkTimeout):
        receiver.receive(0)
    there.set()
    assert (receiver.receive(WATCHDOG_S).parts[0].data == 1).all()


def test_values_that_never_come_do_not_hold_up_closing(pair, monkeypatch):
    sender, receiver = pair
    asked, there = threading.Event(), threading.Event()

    def never(block):
        asked.set()
        assert there.wait(WATCHDOG_S)
        return block.data

    monkeypatch.setattr(writing, "_PATIENCE_S", 0.01)
    monkeypatch.setattr(writing, "host_array", never)
    sender.send(Tag(pass_number=0), [np.ones(MIB, np.uint8)])
    assert asked.wait(WATCHDOG_S)
    sender.close()
    with pytest.raises(LinkLost):
        receiver.receive(WATCHDOG_S)
    late = [t for t in threading.enumerate() if t.name == "gimlax a -> b"]
    there.set()
    for thread in late:
        thread.join(WATCHDOG_S)


def test_a_message_that_comes_late_is_received_whole(kind):
    """A timeout in its middle is not its end."""
    with Peer("send", kind, 8 * MIB) as peer, fabric.listen(kind, "a -> b") as receiver:
        peer.tell(receiver.offer.to_json())
        assert peer.line() == "connected"
        peer.tell("")
        message = None
        while message is None:
            try:
                message = receiver.receive(0)
            except LinkTimeout:
                continue
        assert (message.parts[0].data == 0).all()
        del message


def test_a_killed_sender_is_noticed_by_who_waits(kind):
    with Peer("send", kind, 1000) as peer, fabric.listen(kind, "a -> b") as receiver:
        peer.tell(receiver.offer.to_json())
        assert peer.line() == "connected"
        peer.tell("")
        assert receiver.receive(WATCHDOG_S).tag.pass_number == 0
        ended = in_thread(lambda: receiver.receive(WATCHDOG_S))
        peer.kill()
        assert isinstance(ended(), LinkLost)
        with pytest.raises(
            LinkLost, match=r"'a -> b': the sender is gone without a farewell, before frame 1"
        ):
            receiver.receive(WATCHDOG_S)


def test_what_was_lent_outlives_a_killed_sender(kind):
    with Peer("send", kind, MIB) as peer, fabric.listen(kind, "a -> b") as receiver:
        peer.tell(receiver.offer.to_json())
        assert peer.line() == "connected"
        peer.tell(""), peer.tell("")
        messages = [receiver.receive(WATCHDOG_S) for _ in range(2)]
        assert messages[0].shared == (kind == "ring")
        peer.kill()
        assert [set(m.parts[0].data.tolist()) for m in messages] == [{0}, {1}]


def test_a_killed_receiver_is_noticed_by_who_waits_and_by_who_comes(kind):
    with Peer("receive", kind, MIB) as peer, connected(peer, queue_bytes=MIB) as sender:

        def send_for_ever():
            while True:
                sender.send(Tag(pass_number=0), [np.zeros(MIB, np.uint8)])

        ended = in_thread(send_for_ever)
        peer.kill()
        assert isinstance(ended(), LinkLost)
        with pytest.raises(LinkLost, match=r"'forth': the receiver closed it or its process died"):
            sender.send(Tag(pass_number=0), [np.zeros(1)])
        with pytest.raises(LinkLost, match=r"'forth'"):
            sender.drain()


def test_a_killed_receiver_is_noticed_by_the_next_message(kind):
    with Peer("receive", kind) as peer, fabric.connect(peer.offer()) as sender:
        peer.tell("")
        sender.send(Tag(pass_number=4), [np.zeros(3)])
        assert peer.line() == "4 24"
        peer.kill()
        with pytest.raises(LinkLost):
            sender.send(Tag(pass_number=0), [np.zeros(1)])


def test_a_stopped_sender_times_out_and_may_go_on(kind):
    with Peer("send", kind, 1000) as peer, fabric.listen(kind, "a -> b") as receiver:
        peer.tell(receiver.offer.to_json())
        assert peer.line() == "connected"
        peer.stop()
        peer.tell("")
        with pytest.raises(LinkTimeout, match=r"link 'a -> b': no .* in 0.01 s"):
            receiver.receive(0.01)
        peer.go_on()
        assert receiver.receive(WATCHDOG_S).tag.pass_number == 0


def test_a_sender_of_a_stopped_receiver_waits_and_can_be_closed(kind):
    with Peer("receive", kind, MIB) as peer:
        with fabric.connect(peer.offer(), queue_bytes=MIB) as sender:
            peer.stop()

            def send_for_ever():
                while True:
                    sender.send(Tag(pass_number=0), [np.zeros(MIB, np.uint8)])

            ended = in_thread(send_for_ever)
            with pytest.raises(LinkTimeout, match=r"'forth': .* bytes were not sent in 0.01 s"):
                while True:  # until it is stuck
                    sender.drain(0.01)
        assert isinstance(ended(), LinkClosed)


def test_small_messages_never_wait_if_told_not_to(kind):
    """Those that the system does not take wait in the queue, one of them sent in part."""
    with Peer("receive", kind, MIB) as peer, connected(peer, queue_bytes=MIB) as sender:
        peer.stop()
        count, array = 0, np.zeros(10_000, np.uint8)
        while sender.send(Tag(pass_number=count), [array], wait=False):
            count += 1
        assert count >= MIB // array.nbytes
        peer.go_on()
        for number in range(count):
            peer.tell("")
            assert peer.line() == f"{number} {array.nbytes}"
        assert sender.send(Tag(pass_number=count), [array], wait=False)
        peer.tell("")
        assert peer.line() == f"{count} {array.nbytes}"


def test_what_finds_no_room_in_the_ring_does_not_wait_for_it(pair):
    sender, receiver = pair
    arrays = [np.full(60_000, number, np.uint8) for number in range(200)]  # 12 MB of 4
    for number, array in enumerate(arrays):
        assert sender.send(Tag(pass_number=number), [array], wait=False)
    for array in arrays:
        message = receiver.receive(WATCHDOG_S)
        assert (message.parts[0].data == array[0]).all()
        del message


def test_a_stopped_receiver_lets_nobody_in(kind):
    with Peer("stop", kind) as peer:
        offer = peer.offer()
        peer.wait_until_stopped()
        with pytest.raises(LinkTimeout, match=r"link 'forth': the other side did not answer"):
            fabric.connect(offer, timeout_s=0.05)


def test_closing_wakes_the_own_side(kind):
    receiver = fabric.listen(kind, "a -> b")
    waiting = in_thread(lambda: receiver.receive(WATCHDOG_S))
    receiver.close()
    assert isinstance(waiting(), LinkClosed)
    receiver = fabric.listen(kind, "a -> b")
    sender = fabric.connect(receiver.offer)
    waiting = in_thread(lambda: receiver.receive(WATCHDOG_S))
    receiver.close()
    assert isinstance(waiting(), LinkClosed)
    with pytest.raises(LinkClosed, match=r"'a -> b': it was closed at this end"):
        receiver.receive()
    sender.close()
    sender.close()
    with pytest.raises(LinkClosed, match=r"'a -> b': it was closed at this end"):
        sender.send(Tag(pass_number=0), [np.zeros(1)])


def test_closing_wakes_the_other_side(kind):
    with fabric.listen(kind, "a -> b") as receiver:
        sender = fabric.connect(receiver.offer)
        waiting = in_thread(lambda: receiver.receive(WATCHDOG_S))
        sender.close()
        assert isinstance(waiting(), LinkClosed)


def test_nothing_is_read_ahead_and_no_more_waits_than_the_bounds_allow(kind):
    """The other end has not asked for anything: all that fits are ring, queue and sockets."""
    with Peer("receive", kind, 4 * MIB) as peer, connected(peer, queue_bytes=2 * MIB) as sender:
        taken = []

        def send_many():
            for number in range(400):
                sender.send(Tag(pass_number=number), [np.zeros(MIB, np.uint8)])
                taken.append(number)

        ended = in_thread(send_many)
        with pytest.raises(LinkTimeout):
            while True:  # until it is stuck
                sender.drain(0.1)
        for number in range(3):  # it goes on where it was
            peer.tell("")
            assert peer.line() == f"{number} {MIB}"
        assert len(taken) < 3 + 4 + 2 + 60  # MiB: asked for, ring, queue, largest sockets
        sender.close()
        ended()


def test_who_does_not_have_the_secret_is_kept_out(kind):
    with fabric.listen(kind, "a -> b") as receiver:
        fields = {name: getattr(receiver.offer, name) for name in Offer.__slots__}
        with pytest.raises(LinkError, match=r"'a -> b': the other side closed the connection"):
            fabric.connect(Offer(**(fields | {"secret": "guess"})))
        stranger = socket.socket(socket.AF_UNIX if kind == "ring" else socket.AF_INET)
        host, _, port = receiver.offer.address.rpartition(":")
        stranger.connect(f"\0{port}" if kind == "ring" else (host, int(port)))
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n".ljust(64))
        assert stranger.recv(4) == b"GXL1"
        with stranger, fabric.connect(receiver.offer) as sender:
            sender.send(Tag(pass_number=0), [np.ones(2)])
            assert receiver.receive(WATCHDOG_S).parts[0].data.tolist() == [1, 1]
            with pytest.raises(LinkLost, match=r"link 'a -> b': nobody listens at"):
                fabric.connect(receiver.offer)  # it is good for one sender


def test_whoever_listens_without_the_secret_gets_nothing():
    listener = socket.create_server(("127.0.0.1", 0))
    offer = Offer(
        kind="tcp",
        link="a -> b",
        address=f"127.0.0.1:{listener.getsockname()[1]}",
        secret="s",
        payload_bytes=1,
        arrays=1,
    )

    def pose(greeting):
        sock, _ = listener.accept()
        with sock:
            sock.sendall(greeting)
            sock.recv(64)
            sock.sendall(bytes(32))

    for greeting, said in ((b"GXL1" + bytes(32), "does not have the secret"), (b"SSH-" * 9, "SSH")):
        thread = threading.Thread(target=pose, args=[greeting])
        thread.start()
        with pytest.raises(LinkError, match=rf"link 'a -> b': what listens there .*{said}"):
            fabric.connect(offer)
        thread.join(WATCHDOG_S)
    listener.close()


def test_what_is_beyond_the_limits_is_refused_before_it_is_sent(kind):
    limits = fabric.Limits(payload_bytes=1000, arrays=2)
    with fabric.listen(kind, "a -> b", limits=limits) as receiver:
        with fabric.connect(receiver.offer) as sender:
            with pytest.raises(SpecError, match=r"'a -> b': a message has 1001 bytes, .* 1000"):
                sender.send(Tag(pass_number=0), [np.zeros(1001, np.uint8)])
            with pytest.raises(SpecError, match=r"'a -> b': a message has 3 arrays, .* takes 2"):
                sender.send(Tag(pass_number=0), [np.zeros(1)] * 3)
            with pytest.raises(SpecError, match=r"'a -> b': array 1 holds typed PRNG keys"):
                sender.send(Tag(pass_number=0), [np.zeros(1), jax.random.key(1)])
            with pytest.raises(SpecError, match=r"array 0 has a block \(2,\) from \(3,\)"):
                sender.send(
                    Tag(pass_number=0),
                    [fabric.Outgoing(data=np.zeros(2), whole=(4,), start=(3,))],
                )
            with pytest.raises(SpecError, match=r"array 0 is a list"):
                sender.send(Tag(pass_number=0), [[1.0]])
            sender.send(Tag(pass_number=8), [np.zeros(1000, np.uint8)])
        message = receiver.receive(WATCHDOG_S)
        assert (message.sequence, message.tag.pass_number) == (0, 8)


def test_an_array_of_several_devices_is_not_gathered(pair):
    sender, _ = pair
    mesh = jax.make_mesh((2,), ("data",), devices=jax.devices("cpu")[:2])
    spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    with pytest.raises(SpecError, match=r"array 0 lies on 2 devices; send its blocks"):
        sender.send(Tag(pass_number=0), [jax.device_put(jnp.ones(4), spec)])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"kind": "pigeon"}, "kind is 'pigeon'; give 'ring' or 'tcp'"),
        ({"link": ""}, "link is ''; give text"),
        ({"payload_bytes": -1}, "payload_bytes is -1; give 0"),
    ],
)
def test_an_offer_that_cannot_be_one_is_refused(wrong, said):
    good = Offer(kind="tcp", link="a", address="h:1", secret="s", payload_bytes=1, arrays=1)
    assert Offer.from_json(good.to_json()) == good
    text = good.to_json()
    for name, value in wrong.items():
        old = getattr(good, name)
        quoted = (f'"{old}"', f'"{value}"') if isinstance(old, str) else (str(old), str(value))
        text = text.replace(f'"{name}": {quoted[0]}', f'"{name}": {quoted[1]}')
    with pytest.raises(SpecError, match=said):
        Offer.from_json(text)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"kind": "pigeon"}, "link 'l': kind is 'pigeon'; give 'ring' or 'tcp'"),
        ({"kind": "ring", "host": "10.0.0.1"}, "a ring is inside one host; host '10.0.0.1'"),
        ({"kind": "tcp", "host": "0.0.0.0"}, "host '0.0.0.0' stands for every address"),
        ({"kind": "tcp", "host": ""}, "host '' stands for every address"),
        ({"kind": "tcp", "host": "203.0.113.9"}, "'203.0.113.9' cannot be listened on"),
    ],
)
def test_where_nobody_can_listen_is_refused(arguments, said):
    with pytest.raises(SpecError, match=said):
        fabric.listen(link="l", **arguments)
