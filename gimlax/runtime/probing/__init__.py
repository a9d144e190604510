"""The numerical contract, checked: each stage against the reference, edge by edge."""

from gimlax.runtime.probing.checking import probe
from gimlax.runtime.probing.report import Divergence, Finding, Report
from gimlax.runtime.probing.watching import LiveCheck

__all__ = ["Divergence", "Finding", "LiveCheck", "Report", "probe"]
