"""What a plan predicts: figures of one call per phase, and memory and load of each mesh.

Stages are known by the index of their holding and transfers by the index of their hop, so that the
same records serve a layout with replicas. `basis` is what seconds rest on: 'card', 'fitted' or
'measured' for a mesh (then with the dtypes that were not, if any), 'declared' (by the cluster) or
'measured' for a transfer. Units: seconds, bytes, FLOPs.
"""

from dataclasses import dataclass

from gimlax.records import Amount, Count

BINDS = ("compute", "bandwidth", "overhead", "host")
MEMORIES = ("device", "on_chip")


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePrediction:
    """One call of a holding's stage: `seconds` is the sum of its operations and the dispatch;
    `compute_s` and `memory_s` what the card would allow if only that mattered; `binds` says on
    which of 'compute', 'bandwidth', 'overhead', 'host' (`parked_s`: streaming what is parked in
    host memory) most of the seconds are spent."""

    holding: Count
    seconds: Amount
    compute_s: Amount
    memory_s: Amount
    overhead_s: Amount
    flops: Amount
    bytes_accessed: Amount
    binds: str
    parked_s: Amount = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferPrediction:
    """One call's traffic on a hop between two holdings; nothing is sent within one mesh."""

    hop: Count
    source: str
    target: str
    num_bytes: Count
    seconds: Amount
    basis: str = "declared"


@dataclass(frozen=True, slots=True, kw_only=True)
class PhasePrediction:
    """One call of a phase, which a request calls `calls` times."""

    name: str
    calls: Amount
    stages: tuple[StagePrediction, ...]
    transfers: tuple[TransferPrediction, ...]

    @property
    def seconds(self) -> float:
        """One call that runs alone: all stages and transfers, one after another."""
        return sum(s.seconds for s in self.stages) + sum(t.seconds for t in self.transfers)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshPrediction:
    """Memory of one device of a mesh, and for how long a request occupies it.

    Resident parts count once whatever the number of stages and phases; `temp_bytes` and
    `received_bytes` are those of the stage and phase that need most. `memory` is the one whose
    bandwidth the seconds rest on, one of MEMORIES; `collectives` what collectives between its
    devices rest on, empty where it splits nothing.
    """

    mesh: str
    resident_bytes: Count
    carried_bytes: Count
    temp_bytes: Count
    received_bytes: Count
    capacity_bytes: Count
    load_s: Amount
    parked_bytes: Count = 0
    basis: str = "card"
    collectives: str = ""
    memory: str = "device"

    @property
    def needed_bytes(self) -> int:
        """All of it but what is parked in host memory."""
        held = self.resident_bytes + self.carried_bytes + self.temp_bytes + self.received_bytes
        return held - self.parked_bytes
