"""Runs programs on live meshes: compiled stages, handles, workers, and what they measured."""

from gimlax.runtime.compilation import Progress
from gimlax.runtime.compiling import compile
from gimlax.runtime.executable import Executable, Executables
from gimlax.runtime.handles import Carried, Placed, gather
from gimlax.runtime.jobs import PassFuture
from gimlax.runtime.recording import Recording
from gimlax.runtime.workers import Workers, start_workers

__all__ = [
    "Carried",
    "Executable",
    "Executables",
    "PassFuture",
    "Placed",
    "Progress",
    "Recording",
    "Workers",
    "compile",
    "gather",
    "start_workers",
]
