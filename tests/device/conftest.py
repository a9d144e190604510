"""One suite for whoever has a device: `make test-device PLATFORM=NAME`, skipped without a name.

NAME is the one that a backend is registered with: 'cuda', 'rocm', 'tpu', or that of any plugin. The
suite asks what the backend can do and looks up nothing by its name. Models run over JAX's own CPU
client and the device; `run` says in which ways, so that another way is one more line of WAYS.
"""

import dataclasses
import datetime

import jax
import numpy as np
import pytest

import gimlax as gx
from gimlax import devices, models
from gimlax.devices import Interconnect, Link, MeshSpec
from gimlax.errors import SpecError
from tests import zoo
from tests.zoo import Specimen

FLOAT32 = 5e-6  # between two clients, relative to the largest value of the reference


def one_process(plan, traced):
    """CPU and device in this process."""
    return gx.compile(plan, traced)


WAYS = (one_process,)


@pytest.fixture(scope="session")
def platform(pytestconfig):
    """The registered name of the backend that is tried."""
    name = pytestconfig.getoption("--platform")
    if not name:
        pytest.skip("for a device: make test-device PLATFORM=cuda (or rocm, tpu, a plugin's name)")
    return name


@pytest.fixture(scope="session")
def backend(platform):
    """What was found out about it."""
    found = {of.name: of for of in gx.discover().backends}
    if platform not in found:
        pytest.skip(f"no backend {platform!r}; there are {', '.join(map(repr, found))}")
    if not found[platform].available:
        pytest.skip(f"backend {platform!r} is not here: {found[platform].reason}")
    return found[platform]


@pytest.fixture(scope="session")
def device(backend):
    """The first device."""
    return jax.devices(backend.name)[0]


@pytest.fixture(scope="session")
def hardware(backend):
    """Makes clusters of 'cpu', 'device' and 'devices', that is all of them; figures are made up."""
    every = backend.num_devices
    meshes = [
        # The last one, so that the CPU can be the device that is tried.
        MeshSpec(
            name="cpu",
            device_kind="cpu",
            backend="cpu",
            first_device=len(jax.local_devices(backend="cpu")) - 1,
            axes=_axes(1),
        ),
        MeshSpec(
            name="device", device_kind=backend.device_kind, backend=backend.name, axes=_axes(1)
        ),
        MeshSpec(
            name="devices",
            device_kind=backend.device_kind,
            backend=backend.name,
            num_devices=every,
            axes=_axes(every),
        ),
    ]
    kind = dataclasses.replace(
        devices.load_kind("cpu"),
        name=backend.device_kind,
        aliases=(),
        interconnect=Interconnect(name="some", bytes_per_s=1e12),
    )

    def cluster(*names):
        links = [
            Link(source=a, target=b, latency_s=1e-6, bandwidth_bytes_per_s=1e9)
            for a in names
            for b in names
            if a != b
        ]
        used = tuple(mesh for mesh in meshes if mesh.name in names)
        return gx.Cluster(meshes=used, links=tuple(links), kinds=(kind,))

    return cluster


def _axes(count):
    return (("data", 1), ("model", count))


@pytest.fixture(params=WAYS, ids=lambda way: way.__name__)
def deploy(request, hardware):
    """Compiles a model, cut in stages on these meshes; closed at the end."""
    opened = []

    def build(traced, *meshes, cuts=None):
        cluster = hardware(*dict.fromkeys(meshes))
        cuts = len(meshes) if cuts is None else cuts
        opened.append(request.param(gx.plan(traced, cluster, cuts=cuts, meshes=meshes), traced))
        return opened[-1]

    yield build
    for of in opened:
        of.close()


def trace(specimen):
    """Traces at the full precision of float32, which many devices do not multiply at by default."""
    with jax.default_matmul_precision("highest"):
        return gx.trace(specimen.fn, *specimen.args, carried=specimen.carried)


def reference(fn, *args):
    """The function, uncut, on JAX's own CPU client."""
    with jax.default_matmul_precision("highest"):
        found = jax.jit(fn)(*jax.device_put(args, jax.devices("cpu")[0]))
    return jax.tree.map(np.asarray, found)


def assert_close(found, expected):
    """Equal to within the tolerance of float32 between two clients."""
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=FLOAT32 * np.abs(b).max()),
        found,
        expected,
    )


SIZES = {
    "vocab_size": 64,
    "width": 32,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 4,
    "head_size": 8,
    "mlp_width": 64,
    "max_context": 16,
}


def llama():
    """A Llama of two layers: a prompt of five tokens into an empty cache."""
    return prompted(models.LlamaConfig(**SIZES))


def mixtral():
    """The same with two of four experts, and a window of three tokens."""
    return prompted(models.MixtralConfig(**SIZES, num_experts=4, num_chosen=2, sliding_window=3))


def prompted(config):
    """A prompt of five tokens into the empty cache of a decoder."""
    params, cache = models.init_params(config), models.init_cache(config, 1, 16)
    tokens = np.arange(5, dtype=np.int32)[None] * 11 % 64
    params, cache = jax.tree.map(np.asarray, (params, cache))
    return Specimen(
        fn=models.decoder_apply(config), args=(params, cache, tokens, np.int32(0)), carried={1: 1}
    )


def make(kind):
    """A small model by its name, its arrays on the host."""
    with jax.default_device(jax.devices("cpu")[0]):
        return KINDS[kind]()


KINDS = {"llama": llama, "mixtral": mixtral, **zoo.ZOO}


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter, exitstatus, config):
    """What a card's evidence says of a run in which nothing failed."""
    passed = [r for r in terminalreporter.stats.get("passed", ()) if "tests/device/" in r.nodeid]
    name = config.getoption("--platform")
    distributed = getattr(config.option, "numprocesses", None)  # then the device is not in here
    if not name or exitstatus or not passed or distributed:
        return
    here = jax.devices(name)
    kind = here[0].device_kind
    try:
        known = devices.load_kind(kind).name
    except SpecError:
        terminalreporter.write_line(f"device kind {kind!r} has no card; add one before its tier")
        return
    version = " ".join(here[0].client.platform_version.split())
    terminalreporter.section("for gimlax/devices/catalogue/evidence.toml")
    for line in (
        "[[evidence]]",
        f'device_kind = "{known}"',
        'tier = "ran"',
        f'date = "{datetime.date.today()}"',
        f'what = "make test-device: {len(passed)} tests on {len(here)} x {kind}; '
        f'JAX {jax.__version__}, {version}"',
    ):
        terminalreporter.write_line(line)
