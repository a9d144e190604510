"""Two ends of a socket show each other that they have the secret of an offer, without saying it.

Each sends 32 random bytes and answers with an HMAC-SHA256 over both, so what is overheard serves no
second time. It keeps strangers and mistaken connections out; it hides nothing of what follows.
"""

import hashlib
import hmac
import secrets
import socket
import time

from gimlax.fabric.failures import LinkError, LinkLost, LinkTimeout

__all__ = ["HELLO", "answer", "ask", "exactly", "new_secret"]

HELLO = b"GXL1"
_NONCE_BYTES = 32
_PROOF_BYTES = 32


def new_secret() -> str:
    """A secret for one offer."""
    return secrets.token_hex(32)


def ask(sock: socket.socket, link: str, secret: str, deadline_s: float) -> None:
    """The receiver's part, in which the sender shows itself first.

    Raises:
        LinkError: whoever is there does not have the secret, or does not answer in time.
    """
    mine = secrets.token_bytes(_NONCE_BYTES)
    sock.sendall(HELLO + mine)
    came = exactly(sock, _NONCE_BYTES + _PROOF_BYTES, link, deadline_s)
    theirs, proof = came[:_NONCE_BYTES], came[_NONCE_BYTES:]
    if not hmac.compare_digest(proof, _proof(secret, b"sender", mine, theirs)):
        raise LinkError(link, "somebody connected who does not have the secret of its offer")
    sock.sendall(_proof(secret, b"receiver", mine, theirs))


def answer(sock: socket.socket, link: str, secret: str, deadline_s: float) -> None:
    """The sender's part.

    Raises:
        LinkError: what is there is no receiver with this secret, or does not answer in time.
    """
    came = exactly(sock, len(HELLO) + _NONCE_BYTES, link, deadline_s)
    if not came.startswith(HELLO):
        raise LinkError(
            link, f"what listens there says {came[:4]!r}, not {HELLO!r}; no gimlax link"
        )
    theirs, mine = came[len(HELLO) :], secrets.token_bytes(_NONCE_BYTES)
    sock.sendall(mine + _proof(secret, b"sender", theirs, mine))
    proof = exactly(sock, _PROOF_BYTES, link, deadline_s)
    if not hmac.compare_digest(proof, _proof(secret, b"receiver", theirs, mine)):
        raise LinkError(link, "what listens there does not have the secret of the offer")


def exactly(sock: socket.socket, num_bytes: int, link: str, deadline_s: float) -> bytes:
    """So many bytes before a time of `time.monotonic`, and none beyond them."""
    data = b""
    while len(data) < num_bytes:
        sock.settimeout(max(deadline_s - time.monotonic(), 1e-3))
        try:
            came = sock.recv(num_bytes - len(data))
        except TimeoutError as error:
            raise LinkTimeout(link, "the other side did not answer in time") from error
        except OSError as error:
            raise LinkLost(link, f"the other side broke off: {error}") from error
        if not came:
            raise LinkLost(link, "the other side closed the connection, as for a wrong secret")
        data += came
    return data


def _proof(secret: str, role: bytes, asker: bytes, answerer: bytes) -> bytes:
    return hmac.digest(secret.encode(), HELLO + role + asker + answerer, hashlib.sha256)
