"""Vendors that do not exist: a real CPU plugin under platform names and device kinds of their own.

JAX knows neither name, so that the default lowering rules apply, no argument is donated and no
callback runs; memory is not the host's. `vendor.c` has how it is done. A library is compiled with
gcc, once for each content of its sources and each real plugin, into `.pytest_cache/vendor`.

`Switches` change delays and failures in this process at once; another one finds what
`Vendor.environment` gives in its environment when it loads the vendor.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from gimlax.devices.candidates import Candidate, find_candidates

__all__ = ["CLUSTER", "VENDORS", "CannotBuild", "Switches", "Vendor", "build", "candidate"]

SOURCES = Path(__file__).parent
BUILT = SOURCES.parent.parent / ".pytest_cache" / "vendor"
# Both vendors beside the CPU, with the figures of their kinds, which no catalogue has.
CLUSTER = SOURCES / "cluster.toml"
# The plugin behind the vendors, by its name in `gimlax/devices/catalogue/plugins.toml`.
REAL = "lammps"
FLAGS = ("-std=c11", "-D_GNU_SOURCE", "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror")

# PJRT_Error_Code, as in absl::StatusCode.
RESOURCE_EXHAUSTED, INTERNAL = 8, 13


class CannotBuild(Exception):
    """This machine cannot have the vendors; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vendor:
    """A platform: `name` is its own and the registered one, `device_kind` what its devices say."""

    name: str
    device_kind: str
    num_devices: int

    def environment(
        self,
        *,
        execute_s: float = 0.0,
        to_device_s: float = 0.0,
        to_host_s: float = 0.0,
        failures: int = 0,
    ) -> dict[str, str]:
        """What a process that loads this vendor finds in its environment; as `Switches` has it."""
        prefix = self.name.upper()
        return {
            f"{prefix}_EXECUTE_S": str(execute_s),
            f"{prefix}_TO_DEVICE_S": str(to_device_s),
            f"{prefix}_TO_HOST_S": str(to_host_s),
            f"{prefix}_FAIL": str(failures),
        }


VENDORS = {
    vendor.name: vendor
    for vendor in (
        Vendor(name="acme", device_kind="Acme One", num_devices=1),
        Vendor(name="zenith", device_kind="Zenith Two", num_devices=2),
    )
}


class Switches:
    """Delay and failure of a vendor in this process, from now on, and what it has done so far."""

    def __init__(self, vendor: Vendor) -> None:
        """Of a vendor that this process has loaded."""
        self._library = ctypes.CDLL(str(build(vendor)))
        self._library.vendor_set_delay.argtypes = (ctypes.c_int, ctypes.c_double)
        self._library.vendor_set_delay.restype = None
        self._library.vendor_fail.argtypes = (ctypes.c_long, ctypes.c_int)
        self._library.vendor_fail.restype = None
        self._library.vendor_count.argtypes = (ctypes.c_int,)
        self._library.vendor_count.restype = ctypes.c_long

    def delay(
        self, *, execute_s: float = 0.0, to_device_s: float = 0.0, to_host_s: float = 0.0
    ) -> None:
        """Seconds before each execution, copy from the host and copy to it."""
        for event, seconds in enumerate((execute_s, to_device_s, to_host_s)):
            self._library.vendor_set_delay(event, seconds)

    def fail(self, executions: int, code: int = INTERNAL) -> None:
        """Lets the next executions fail, all of them if negative, until it is called with 0."""
        self._library.vendor_fail(executions, code)

    def counts(self) -> tuple[int, int, int]:
        """Executions, copies from the host and copies to it."""
        executions, to_device, to_host = map(self._library.vendor_count, range(3))
        return executions, to_device, to_host

    def reset(self) -> None:
        """Neither delays nor failures."""
        self.delay()
        self.fail(0)


def candidate(vendor: Vendor) -> Candidate:
    """The vendor as something that gimlax can load.

    Raises:
        CannotBuild: this machine cannot have it.
    """
    return Candidate(
        name=vendor.name,
        library=str(build(vendor)),
        options=(("cpu_device_count", vendor.num_devices),),
        source="tests/vendor",
    )


@lru_cache
def build(vendor: Vendor) -> Path:
    """The library of a vendor; several processes may build it at once.

    Raises:
        CannotBuild: without gcc, without the real plugin, or if gcc fails.
    """
    real = [c.library for c in find_candidates({}) if c.name == REAL]
    if not real:
        raise CannotBuild("no real plugin: pip install --no-deps -r requirements/demo.txt")
    gcc = shutil.which("gcc")
    if gcc is None:
        raise CannotBuild("no foreign vendor: gcc is not installed")
    words = {
        "VENDOR": vendor.name,
        "KIND": vendor.device_kind,
        "SETTINGS": vendor.name.upper(),
        "REAL": real[0],
    }
    defined = [f'-D{word}="{value}"' for word, value in words.items()]
    digest = hashlib.sha256(repr((gcc, FLAGS, defined)).encode())
    for source in ("vendor.c", "pjrt_c_api.h"):
        digest.update((SOURCES / source).read_bytes())
    library = BUILT / f"{vendor.name}-{digest.hexdigest()[:16]}.so"
    if library.exists():
        return library
    try:
        BUILT.mkdir(parents=True, exist_ok=True)
        number, new = tempfile.mkstemp(suffix=".so", dir=BUILT)
    except OSError as error:
        raise CannotBuild(f"no foreign vendor: {error}") from error
    os.close(number)
    command = [gcc, *FLAGS, *defined, str(SOURCES / "vendor.c"), "-o", new, "-ldl", "-lpthread"]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        os.unlink(new)
        raise CannotBuild(f"no foreign vendor: gcc failed: {made.stderr.strip()}")
    try:
        # The first process wins: a file put in its place would be another library to one that has
        # loaded it, with switches of its own.
        os.link(new, library)
    except FileExistsError:
        pass
    finally:
        os.unlink(new)
    return library
