"""Slow, obvious twins of fast algorithms, for property tests that compare the two."""

import collections
import itertools

import numpy as np


def kept_by_top_p(probabilities, top_p):
    """Token ids that top-p sampling keeps: most probable first until their sum reaches `top_p`."""
    kept, total = [], 0.0
    for token in sorted(range(len(probabilities)), key=lambda t: (-probabilities[t], t)):
        kept.append(token)
        total += probabilities[token]
        if total >= top_p:
            break
    return kept


def drawn_token(probabilities, top_p, uniform):
    """The token whose share of the kept probability holds the number `uniform` in [0, 1)."""
    kept = kept_by_top_p(probabilities, top_p)
    rest = uniform * sum(probabilities[token] for token in kept)
    for token in kept:
        rest -= probabilities[token]
        if rest < 0:
            return token
    return kept[-1]


def layouts(num_segments, num_meshes, cuts=None, meshes=None):
    """Every (cuts, meshes) that a planner may choose from; arguments as those of `search`."""
    for size in range(1, num_segments + 1):
        for chosen in itertools.combinations(range(1, num_segments), size - 1):
            if cuts is not None and cuts not in (size, chosen):
                continue
            orders = itertools.permutations(range(num_meshes), size) if meshes is None else [meshes]
            yield from ((chosen, tuple(order)) for order in orders if len(order) == size)


def layout_terms(problem, cuts, meshes):
    """Latency, period, dollars and joules of a layout by plain loops; None if it cannot run."""
    stages = list(zip((0, *cuts), (*cuts, problem.num_segments), meshes, strict=True))
    pool_bytes = collections.Counter()
    for mesh in set(meshes):
        held = [(first, stop) for first, stop, m in stages if m == mesh]
        used_bytes = sum(problem.added_bytes[mesh, first, stop] for first, stop in held)
        used_bytes -= sum(problem.parked_bytes[mesh, first, stop] for first, stop in held)
        for term in problem.largest_bytes:
            used_bytes += max(term[mesh, first, stop] for first, stop in held)
        pool_bytes[problem.pool[mesh]] += used_bytes
        if used_bytes > problem.capacity_bytes[mesh]:
            return None
    for pool, used_bytes in pool_bytes.items():
        if used_bytes > max(problem.capacity_bytes[problem.pool == pool]):
            return None
    busy = collections.defaultdict(float)
    total = 0.0
    for first, stop, mesh in stages:
        seconds = float(problem.stage_s[mesh, first, stop])
        total += seconds
        busy["mesh", mesh] += seconds
        for shared, load in enumerate(problem.shared_s):
            busy["shared", shared] += float(load[mesh, first, stop])
    for boundary, source, target in zip(cuts, meshes[:-1], meshes[1:], strict=True):
        seconds = float(problem.transfer_s[source, target, boundary])
        total += seconds
        busy["link", source, target] += seconds
    if total == float("inf"):
        return None
    period = max(busy.values())
    usd = joules = 0.0
    for mesh in set(meshes):
        usd += float(problem.usd_per_s[mesh]) * period
        joules += float(problem.busy_watts[mesh]) * busy["mesh", mesh]
        joules += float(problem.idle_watts[mesh]) * (period - busy["mesh", mesh])
    return total, period, usd, joules


def layout_value(problem, goal, cuts, meshes):
    """One of the terms of a layout, or None if it cannot run."""
    terms = layout_terms(problem, cuts, meshes)
    return terms and terms[("latency", "throughput", "usd", "joules").index(goal)]


def best_layout_value(problem, goal, cuts=None, meshes=None):
    """The least value over all layouts by brute force, or None if there is none."""
    tried = layouts(problem.num_segments, problem.num_meshes, cuts, meshes)
    values = [layout_value(problem, goal, *layout) for layout in tried]
    return min((v for v in values if v is not None), default=None)


def swapped_is_equal(problem, a, b):
    """Whether two meshes of a problem can change places and nothing is different."""
    swap = np.arange(problem.num_meshes)
    swap[[a, b]] = b, a
    pools = [set(np.flatnonzero(problem.pool == pool)) for pool in problem.pool]
    swapped = [{int(swap[mesh]) for mesh in pools[swap[of]]} for of in range(len(swap))]
    return (
        swapped == pools
        and all(
            np.array_equal(figure, figure[swap] if axis == 0 else figure[:, swap])
            for figure, axis in (
                (problem.stage_s, 0),
                (problem.added_bytes, 0),
                (problem.largest_bytes, 1),
                (problem.parked_bytes, 0),
                (problem.shared_s, 1),
                (problem.usd_per_s, 0),
                (problem.busy_watts, 0),
                (problem.idle_watts, 0),
            )
        )
        and np.array_equal(problem.transfer_s, problem.transfer_s[np.ix_(swap, swap)])
    )


def beaten_by_none(points):
    """The points (tuples, smaller is better) that no other one beats, each once, in order."""
    return sorted(
        p
        for p in set(points)
        if not any(q != p and all(a <= b for a, b in zip(q, p, strict=True)) for q in points)
    )


def crc32c(data):
    """CRC32C (Castagnoli) bit by bit, as RFC 3720 B.4 has it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF
