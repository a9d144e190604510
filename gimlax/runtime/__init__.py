"""Runs programs on live meshes: compiled stages, handles, workers, and what they measured."""

from gimlax.runtime.compilation import Progress
from gimlax.runtime.compiling import compile
from gimlax.runtime.executable import Executable, Executables
from gimlax.runtime.handles import Carried, Placed, gather
from gimlax.runtime.jobs import PassFuture
from gimlax.runtime.probing import LiveCheck, Report, probe
from gimlax.runtime.recording import Recording
from gimlax.runtime.workers import Workers, start_workers

__all__ = [
    "Carried",
    "Executable",
    "Executables",
    "LiveCheck",
    "PassFuture",
    "Placed",
    "Progress",
    "Recording",
    "Report",
    "Workers",
    "compile",
    "gather",
    "probe",
    "start_workers",
]
