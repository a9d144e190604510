"""Small planning problems at random: unequal meshes, missing links, shared hosts, tight memory."""

import numpy as np
from hypothesis import strategies as st

from gimlax.planning.problem import Problem


@st.composite
def problems(draw, most_segments=5, most_meshes=4, fewest_segments=1):
    """A Problem whose numbers are small integers, so that ties and exact limits happen often."""
    n = draw(st.integers(fewest_segments, most_segments))
    m = draw(st.integers(1, most_meshes))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    coarse = draw(st.booleans())

    def seconds(*shape):
        return rng.integers(0, 5, shape) * 1.0 if coarse else rng.uniform(0, 5, shape)

    kinds = rng.integers(0, draw(st.integers(1, m)), m)  # meshes of one kind cost the same
    per_segment = seconds(m, n)[kinds]
    stage_s = _sums(per_segment) + seconds(m)[kinds][:, None, None]
    legal = np.ones(n + 1, bool)
    legal[1:n] = rng.random(n - 1) < draw(st.sampled_from([0.6, 1.0]))
    stage_s = np.where(legal[:, None] & legal[None, :], stage_s, np.inf)
    transfer_s = seconds(m, m, n + 1) * draw(st.sampled_from([0.5, 5.0]))
    if draw(st.booleans()):
        transfer_s = transfer_s[np.ix_(kinds, kinds)]
    transfer_s[rng.random((m, m)) < draw(st.sampled_from([0.0, 0.3]))] = np.inf
    transfer_s[np.arange(m), np.arange(m)] = 0.0
    num_shared = draw(st.integers(0, 2))
    member = rng.random((num_shared, m)) < 0.7
    share = draw(st.sampled_from([0.5, 1.0]))
    finite = np.where(np.isfinite(stage_s), stage_s, 0.0)
    terms = draw(st.integers(0, 2))
    # Meshes of several devices hold a part of what others hold; those of a kind the same.
    added = _sums(rng.integers(0, 5, n) // rng.integers(1, 4, (m, 1)))[kinds]
    largest = np.zeros((terms, m, n + 1, n + 1))
    for term in largest:
        size = (rng.integers(0, 5, n) // rng.integers(1, 4, (m, 1)))[kinds]
        for first in range(n):
            term[:, first, first + 1 :] = np.maximum.accumulate(size[:, first:], axis=1)
    added[~np.isfinite(added)] = 0.0
    pooled = draw(st.booleans())
    most = draw(st.sampled_from([6, 12, 100]))
    return Problem(
        stage_s=stage_s,
        transfer_s=transfer_s,
        shared_s=member[:, :, None, None] * finite * share,
        added_bytes=added,
        largest_bytes=largest,
        parked_bytes=np.zeros_like(stage_s),
        capacity_bytes=rng.integers(1, most + 1, m)[kinds] * 1.0,
        pool=rng.integers(0, draw(st.integers(1, m)), m) if pooled else np.arange(m),
        usd_per_s=rng.integers(1, 4, m)[kinds] * 1.0,
        busy_watts=rng.integers(3, 8, m)[kinds] * 1.0,
        idle_watts=rng.integers(0, 4, m)[kinds] * 1.0,
    )


def _sums(per_segment):
    """Sums over [first, stop). [row, segment] -> [row, first, stop], inf where stop <= first"""
    total = np.concatenate([np.zeros((len(per_segment), 1)), per_segment.cumsum(axis=1)], axis=1)
    sums = total[:, None, :] - total[:, :, None]
    length = total.shape[1]
    return np.where(np.arange(length) > np.arange(length)[:, None], sums, np.inf)
