"""The slow twin of the search over down-sets: tries every assignment of nodes to devices.

It knows nets, blocks and down-sets as little as the search knows assignments: loads are those of
sets of nodes, word by word from the model, and a split counts if its devices form no cycle.
"""

import functools
import itertools

import numpy as np

from gimlax.planning.solvers.dag import DagProblem


def best_s(problem):
    """The least largest load of all splits, inf if there is none."""
    accelerator, cpu = _tables(problem)
    masks = _assignments(problem.num_nodes, problem.num_accelerators, problem.num_cpus)
    k = problem.num_accelerators
    loads = np.zeros(len(masks))
    for device in range(masks.shape[1]):
        np.maximum(loads, (accelerator if device < k else cpu)[masks[:, device]], out=loads)
    arrows = _arrows(problem)
    for index in _ascending(loads):
        if loads[index] == np.inf:
            break
        if _follow_each_other(masks[index].tolist(), arrows):
            return float(loads[index])
    return np.inf


def _ascending(loads):
    for _ in range(8):
        index = int(loads.argmin())
        value = loads[index]
        yield index
        loads[index] = np.inf
        if value == np.inf:
            return
    yield from np.argsort(loads, kind="stable")


def _tables(problem):
    """Load of an accelerator and of a CPU that hold a set of nodes. [set] each"""
    n = problem.num_nodes
    sets = np.arange(2**n)
    has = (sets[:, None] >> np.arange(n)) & 1 == 1
    accelerator, cpu = has @ problem.accelerator_s, has @ problem.cpu_s
    consumers = [0] * n
    for source, target in problem.edges.tolist():
        consumers[source] |= 1 << target
    for node, readers in enumerate(consumers):
        sends = has[:, node] & (sets & readers != readers)
        receives = ~has[:, node] & (sets & readers != 0)
        accelerator = accelerator + np.where(sends | receives, problem.output_s[node], 0.0)
    accelerator[has @ problem.num_bytes > problem.capacity_bytes] = np.inf
    accelerator[(has & ~problem.supported).any(axis=1)] = np.inf
    for colour in set(problem.colour.tolist()):
        same = sum(1 << int(node) for node in np.flatnonzero(problem.colour == colour))
        torn = (sets & same != 0) & (sets & same != same)
        accelerator[torn] = cpu[torn] = np.inf
    accelerator[0] = cpu[0] = 0.0
    return accelerator, cpu


@functools.lru_cache(maxsize=64)
def _assignments(n, accelerators, cpus):
    """Each way to deal nodes to devices, equal devices not told apart. [way, device] sets"""
    masks = np.zeros((1, accelerators + cpus), np.int32)
    for node in range(n):
        grown = []
        for device in range(accelerators + cpus):
            follows = device not in (0, accelerators)
            rows = masks[masks[:, device - 1] != 0] if follows else masks
            rows = rows.copy()
            rows[:, device] |= 1 << node
            grown.append(rows)
        masks = np.concatenate(grown)
    return masks


def _arrows(problem):
    """Pairs of nodes of which the first may not be on a later device."""
    forward_colours = set(problem.colour[~problem.backward].tolist())
    colour, backward = problem.colour.tolist(), problem.backward.tolist()
    arrows = []
    for source, target in problem.edges.tolist():
        if not backward[source] and not backward[target]:
            arrows.append((source, target))
        if backward[source] and backward[target]:
            homeless = {colour[source], colour[target]} - forward_colours
            if homeless and colour[source] != colour[target]:
                arrows.append((target, source))
    return arrows


def _follow_each_other(masks, arrows):
    """Whether devices can be put in a row so that no arrow leads back."""
    home = {}
    for device, mask in enumerate(masks):
        for node in range(mask.bit_length()):
            if mask >> node & 1:
                home[node] = device
    hops = {(home[a], home[b]) for a, b in arrows if home[a] != home[b]}
    left = set(home.values())
    while left:
        free = {d for d in left if not any(b == d and a in left for a, b in hops)}
        if not free:
            return False
        left -= free
    return True


def problem_of(times, edges=(), **changes):
    """Nodes with these times, free transfers, two accelerators, no CPU."""
    n = len(times)
    given = {
        "accelerator_s": np.array(times, float),
        "cpu_s": np.array(times, float) * 10,
        "output_s": np.zeros(n),
        "num_bytes": np.zeros(n),
        "supported": np.ones(n, bool),
        "backward": np.zeros(n, bool),
        "colour": np.arange(n),
        "edges": np.array(edges, int).reshape(-1, 2),
        "num_accelerators": 2,
        "num_cpus": 0,
        "capacity_bytes": 1e9,
    }
    return DagProblem(**(given | changes))


def towers(length, num_towers=2, **changes):
    """Chains side by side between one first and one last node."""
    nodes = [[1 + t * length + i for i in range(length)] for t in range(num_towers)]
    last = 1 + length * num_towers
    edges = [(0, row[0]) for row in nodes] + [(row[-1], last) for row in nodes]
    edges += [pair for row in nodes for pair in itertools.pairwise(row)]
    return problem_of([1.0] * (last + 1), edges, **changes)


def random_problem(rng, num_nodes=None):
    """A chain, a graph that branches, or a training graph, with some of all that can be said."""
    n = num_nodes or int(rng.choice([1, 2, 3, 4, 5, 6, 7, 8, 9], p=_SIZES))
    shape = rng.choice(["chain", "graph", "sparse", "training"], p=[0.15, 0.4, 0.2, 0.25])
    backward = np.zeros(n, bool)
    colour = np.arange(n)
    if shape == "chain":
        edges = [(i, i + 1) for i in range(n - 1)]
    elif shape == "training":
        edges, backward, colour = _training(rng, n)
    else:
        likely = 0.4 if shape == "graph" else 0.15
        edges = [(i, j) for i in range(n) for j in range(i + 1, n) if rng.random() < likely]
    if rng.random() < 0.3 and n > 1:
        for _ in range(int(rng.integers(1, 3))):
            a, b = rng.integers(n, size=2)
            colour = np.where(colour == colour[a], colour[b], colour)
    order = rng.permutation(n)  # nodes in no order of the graph
    place = np.argsort(order)
    whole = rng.random() < 0.5  # whole numbers tie
    draw = (
        (lambda top: rng.integers(0, top, n).astype(float))
        if whole
        else (lambda top: rng.random(n) * top * (rng.random(n) < 0.8))
    )
    num_bytes = draw(5)
    tight = rng.random() < 0.4
    accelerators, cpus = _DEVICES[int(rng.integers(len(_DEVICES)))]
    if n == 9 and accelerators + cpus > 4:
        accelerators, cpus = 3, 1
    accelerator_s = draw(10)
    return DagProblem(
        accelerator_s=accelerator_s[order],
        cpu_s=(accelerator_s * rng.integers(1, 10) if rng.random() < 0.5 else draw(40))[order],
        output_s=(draw(6) * rng.choice([0.2, 1.0]))[order],
        num_bytes=num_bytes[order],
        supported=(rng.random(n) < (0.85 if rng.random() < 0.2 else 1.0))[order],
        backward=backward[order],
        colour=colour[order],
        edges=np.array([(place[a], place[b]) for a, b in edges], int).reshape(-1, 2),
        num_accelerators=accelerators,
        num_cpus=cpus,
        capacity_bytes=float(num_bytes.sum() * rng.uniform(0.2, 0.8)) if tight else 1e9,
    )


_SIZES = [0.02, 0.05, 0.1, 0.18, 0.22, 0.2, 0.13, 0.07, 0.03]
_DEVICES = [(1, 0), (2, 0), (3, 0), (4, 0), (1, 1), (2, 1), (3, 1), (2, 2), (0, 2), (1, 2)]


def _training(rng, n):
    """A graph of forward nodes and its image in backward nodes; some have no partner."""
    half = (n + 1) // 2
    backward = np.arange(n) >= half
    partner = {i: i + half for i in range(n - half)}
    edges = [(i, j) for i in range(half) for j in range(i + 1, half) if rng.random() < 0.5]
    edges += [(partner[j], partner[i]) for i, j in edges if i in partner and j in partner]
    edges += [(i, partner[i]) for i in partner if rng.random() < 0.7]
    colour = np.arange(n)
    for i, j in partner.items():
        if rng.random() < 0.8:
            colour[j] = colour[i]
    return edges, backward, colour
