"""Kinds of device are compared by figures of one sort, so that no better card is priced worse."""

from gimlax.devices.catalogue import catalogue
from gimlax.graph import chain
from gimlax.planning import plan
from gimlax.planning.cost import costs
from gimlax.planning.rates import CARD, FITTED, Fitted, rates_for
from tests.planning.cases import cluster_of, two_phases

KINDS = {kind.name: kind for kind in catalogue()}


def test_kinds_are_compared_by_figures_of_one_sort():
    cluster = cluster_of((KINDS["H100 SXM"], KINDS["TPU v5e"]))
    assert [rates_for(cluster, mesh.name).source for mesh in cluster.meshes] == [CARD, CARD]
    made = plan(two_phases(), cluster)
    assert "'H100 SXM' would have fitted figures; so that all kinds" in made.explain()
    alone = plan(two_phases(), cluster_of((KINDS["H100 SXM"],)))
    assert alone.meshes[0].basis == FITTED and "would have fitted" not in alone.explain()


def figures_of(kind):
    return [kind.memory_bytes_per_s, *(kind.peak(d) for d in ("float32", "bfloat16"))]


WORSE = [
    (better, worse)
    for better in KINDS.values()
    for worse in KINDS.values()
    if better is not worse
    and all("bfloat16" in dict(kind.peak_flops_per_s) for kind in (better, worse))
    and all(a >= b for a, b in zip(figures_of(better), figures_of(worse), strict=True))
    and (Fitted.of(better) is None or Fitted.of(worse) is None)
]


def test_no_device_is_slower_than_one_that_it_beats_in_every_figure():
    assert len(WORSE) > 20
    model = chain(two_phases())
    for better, worse in WORSE:
        seconds = costs(model, cluster_of((better, worse))).segment_s
        assert (seconds[0] <= seconds[1] * (1 + 1e-9)).all(), (better.name, worse.name)
