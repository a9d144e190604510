"""Random instances in the format of Helix: 5 to 60 machines of 3 to 8 kinds, 24 to 126 layers.

A machine is 1 to 8 equal cards that act as one. With one layer it passes tokens in proportion to
the geometric mean of its memory's and its cores' speed, which fits the published tables; with k
layers a k-th of that, less what a smaller cache costs: up to 60 % with as many layers as fit into
half of its memory. Half of the tables are noisy; the others go down in steps, as profiles in whole
batches do, with a jump up here and there. Figures of cards and models are rounded from data sheets
and configurations.
"""

from typing import Any

import numpy as np

__all__ = ["random_instance"]

# GB of memory, GB/s, dense fp16 TFLOP/s
CARDS = {
    "H100": (80, 3350, 989),
    "A100-80": (80, 2039, 312),
    "A100": (40, 1555, 312),
    "L40S": (48, 864, 362),
    "A40": (48, 696, 150),
    "V100": (16, 900, 125),
    "RTX4090": (24, 1008, 165),
    "A10G": (24, 600, 125),
    "L4": (24, 300, 121),
    "T4": (16, 320, 65),
    "P100": (16, 732, 19),
}
# layers, GB of weights of a layer, width, tokens/s of one layer of 1 GB per unit of a card's speed
MODELS = {
    "24 layers of 1 GB": (24, 1.0, 6144, 40.0),
    "8B": (32, 0.44, 4096, 60.0),
    "30B": (60, 1.06, 6656, 14.0),
    "70B": (80, 1.71, 8192, 60.0),
    "70B in 8 bits": (80, 0.86, 8192, 60.0),
    "123B": (88, 2.76, 12288, 60.0),
    "405B in 8 bits": (126, 3.2, 16384, 60.0),
    "405B": (126, 6.4, 16384, 60.0),
}
LINKS_BYTES_PER_S = (125e6, 1e9, 1e9, 12.5e9)
WEIGHTS_SHARE = 0.5  # of the memory at most, so that a cache has room
SPARE = 1.05  # room for layers over layers, at least
ROUNDS = 1000


def random_instance(seed: int) -> dict[str, Any]:
    """The content of an instance file: one whose machines can hold the model."""
    rng = np.random.default_rng(seed)
    name = str(rng.choice(list(MODELS)))
    num_layers, _, width, _ = MODELS[name]
    machines: dict[str, Any] = {}
    for _ in range(ROUNDS):
        machines = _machines(rng, name)
        room = sum(m["count"] * len(m["tokens_per_s_by_layers"]) for m in machines.values())
        if len(machines) >= 3 and room >= SPARE * num_layers:
            break
    return {
        "name": f"random {seed}",
        "source": f"drawn with seed {seed}; model: {name}",
        "num_layers": num_layers,
        "machines": machines,
        "link": {
            "bandwidth_bytes_per_s": float(rng.choice(LINKS_BYTES_PER_S)),
            "activation_bytes_per_token": 2 * width,
        },
    }


def _machines(rng: np.random.Generator, name: str) -> dict[str, Any]:
    """Kinds of machine that hold at least one layer, and how many there are."""
    total = int(rng.integers(5, 61))
    num_kinds = min(int(rng.integers(3, 9)), total)
    sizes = {1: 6.0, 2: 3.0, 4: 2.0, 8: 1.0}
    kinds = [(card, cards) for card in CARDS for cards in sizes]
    weight = np.array([sizes[cards] for _, cards in kinds])
    drawn = rng.choice(len(kinds), num_kinds, replace=False, p=weight / weight.sum())
    counts = 1 + rng.multinomial(total - num_kinds, rng.dirichlet(np.ones(num_kinds)))
    stepped = bool(rng.integers(2))
    machines = {}
    for (card, cards), count in zip([kinds[d] for d in drawn], counts, strict=True):
        rates = _rates(rng, name, card, cards, stepped=stepped)
        if rates:
            kind = card if cards == 1 else f"{cards}x{card}"
            machines[kind] = {"count": int(count), "tokens_per_s_by_layers": rates}
    return machines


def _rates(
    rng: np.random.Generator, name: str, card: str, cards: int, *, stepped: bool
) -> list[float]:
    """Tokens/s of a machine that holds 1, 2, ... layers."""
    num_layers, layer_gb, _, per_speed = MODELS[name]
    memory_gb, gb_per_s, tflops = CARDS[card]
    most = min(int(WEIGHTS_SHARE * memory_gb * cards / layer_gb), num_layers)
    alone = per_speed * np.sqrt(gb_per_s * tflops) * cards**0.9 / layer_gb
    k = np.arange(1, most + 1)
    full = k * layer_gb / (WEIGHTS_SHARE * memory_gb * cards)
    share = 1 - rng.uniform(0.1, 0.6) * full ** rng.uniform(0.8, 1.5)
    if stepped:
        steps = rng.integers(6, 24)
        share = np.floor(share * steps) / steps
        share = np.where(rng.random(most) < 0.05, np.minimum(share * 1.3, 1.0), share)
    else:
        share = share * rng.uniform(0.97, 1.03, most)
    return [float(rate) for rate in np.round(alone * share / k, 3)]
