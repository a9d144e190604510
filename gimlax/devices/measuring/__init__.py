"""From live meshes to a Calibration: operations, dispatch, links, what meshes cost each other."""

from gimlax.devices.measuring.running import calibrate

__all__ = ["calibrate"]
