"""The other end of a link, in a process of its own: `python peer.py ROLE KIND [NUMBER]`.

What it has to say it prints as lines; what it has to know it reads as lines.
"""

import sys

import numpy as np

from gimlax import fabric


def say(text):
    print(text.replace("\n", " "), flush=True)


def heard_offer():
    return fabric.Offer.from_json(sys.stdin.readline())


def echo(kind, number):
    """Sends back what comes, after it has been on a device."""
    import jax

    device = jax.devices()[0]
    back = fabric.connect(heard_offer())
    with fabric.listen(kind, "forth", capacity_bytes=number) as receiver, back:
        say(receiver.offer.to_json())
        while True:
            try:
                message = receiver.receive()
            except fabric.LinkClosed:
                back.drain()
                return
            arrays = [jax.device_put(part.data, device) for part in message.parts]
            same = [
                fabric.Outgoing(data=array, index=p.index, whole=p.whole, start=p.start)
                for array, p in zip(arrays, message.parts)
            ]
            back.send(message.tag, same)


def receive(kind, number):
    """Receives a message for each line that it reads, and says what it was."""
    with fabric.listen(kind, "forth", capacity_bytes=number) as receiver:
        say(receiver.offer.to_json())
        for _ in sys.stdin:
            message = receiver.receive(60)
            say(f"{message.tag.pass_number} {sum(part.data.nbytes for part in message.parts)}")


def send(kind, number):
    """Sends a message of so many bytes for each line that it reads."""
    with fabric.connect(heard_offer()) as sender:
        say("connected")
        for count, _ in enumerate(sys.stdin):
            sender.send(fabric.Tag(pass_number=count), [np.full(number, count, np.uint8)])
            sender.drain()
            say("sent")


def offer_and_stop(kind, number):
    """Says an offer and answers nobody: the listening socket has no thread behind it."""
    import os
    import signal

    with fabric.listen(kind, "forth") as receiver:
        say(receiver.offer.to_json())
        os.kill(os.getpid(), signal.SIGSTOP)


if __name__ == "__main__":
    role, kind, number = sys.argv[1:]
    {"echo": echo, "receive": receive, "send": send, "stop": offer_and_stop}[role](
        kind, int(number)
    )
