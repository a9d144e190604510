"""What backends the hosts of a Ray have: each host is asked in a process there, in limited time."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from gimlax.devices.backends import Backend
from gimlax.errors import BackendError, InternalError
from gimlax.hosts import Hosts, Node, join
from gimlax.records import from_json

__all__ = ["FoundHost", "ask_hosts"]

_DESCRIBE = "gimlax.devices.discovery:describe"
_STARTING_S = 60.0  # beside the time that backends take: Ray, Python and JAX


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundHost:
    """A host of Ray.

    Attributes:
        name: short where that tells it from the others, else its address.
        address: as Ray knows it; empty for the only host of a Ray that was started here.
        flags: XLA_FLAGS that its backends were started with.
        backends: what it has, and what it has not and why.
    """

    name: str
    address: str
    flags: str
    backends: tuple[Backend, ...]


def ask_hosts(address: str, *, insecure: bool, timeout_s: float) -> tuple[FoundHost, ...]:
    """Asks all hosts at once; see `gimlax.hosts.join` for the arguments and errors."""
    with join(address, insecure=insecure, timeout_s=_STARTING_S) as hosts:
        names = [node.name for node in hosts.nodes]
        with ThreadPoolExecutor(len(hosts.nodes), "gimlax ask") as pool:
            return tuple(
                pool.map(
                    lambda node: _ask(
                        hosts,
                        node,
                        node.name if names.count(node.name) == 1 else node.address,
                        node.address if address else "",
                        timeout_s,
                    ),
                    hosts.nodes,
                )
            )


def _ask(hosts: Hosts, node: Node, name: str, address: str, timeout_s: float) -> FoundHost:
    try:
        running = hosts.run(
            node,
            _DESCRIBE,
            {"timeout_s": timeout_s},
            env={},
            whose=f"the discovery of {name!r}",
            timeout_s=_STARTING_S + 4 * timeout_s,
        )
    except BackendError as error:
        silent = Backend(name="any", available=False, reason=str(error))
        return FoundHost(name=name, address=address, flags="", backends=(silent,))
    running.kill()
    backends = tuple(
        from_json(Backend, text, 1, "a backend", error=InternalError, advice="please report it")
        for text in running.answer["backends"]
    )
    return FoundHost(name=name, address=address, flags=running.answer["flags"], backends=backends)
