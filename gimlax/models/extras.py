"""Packages of the extra `text`, imported when first needed.

`import gimlax` and running models that are already in memory need none of them.
"""

import importlib
from types import ModuleType

from gimlax.errors import SpecError


def require(module: str, purpose: str) -> ModuleType:
    """Imports `module`, or raises a `SpecError` that says how to install what `purpose` needs."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise SpecError(
            f"{purpose} needs the package '{package}', which cannot be imported ({error}); "
            "install it with `pip install 'gimlax[text]'`"
        ) from error
