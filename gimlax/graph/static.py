"""Arguments that are bound before tracing, named as `jax.jit` names them."""

import functools
import inspect
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Self

from gimlax.errors import TraceError


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticArguments:
    """Positions and names of the static arguments of a function.

    Where the signature tells, a name stands for its position and a position for its name.
    """

    function: str
    positions: frozenset[int]
    names: frozenset[str]

    @classmethod
    def of(
        cls, fn: Callable[..., Any], positions: int | Sequence[int], names: str | Sequence[str]
    ) -> Self:
        """Reads `static_argnums` and `static_argnames`.

        Raises:
            TraceError: a negative position of a function whose signature cannot be read.
        """
        function = str(getattr(fn, "__name__", type(fn).__name__))
        numbers = {positions} if isinstance(positions, int) else set(positions)
        words = {names} if isinstance(names, str) else set(names)
        try:
            known = [p.name for p in inspect.signature(fn).parameters.values() if p.kind in (0, 1)]
        except (TypeError, ValueError):
            known = []
        beyond = sorted(n for n in numbers if n < -len(known))
        if beyond:
            raise TraceError(
                f"static_argnums={beyond[0]}: {function!r} has {len(known)} positional parameters;"
                " count from 0, or from the end of its parameters"
            )
        numbers = {n + len(known) if n < 0 else n for n in numbers}
        both = {i for i, name in enumerate(known) if i in numbers or name in words}
        return cls(
            function=function,
            positions=frozenset(numbers | both),
            names=frozenset(words | {known[i] for i in both}),
        )

    def key(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Hashable:
        """The static values of a call; 1 and 1.0 are equal and still not the same.

        Raises:
            TraceError: one of them cannot be hashed.
        """
        found = tuple((i, args[i]) for i in sorted(self.positions) if i < len(args))
        found += tuple((k, kwargs[k]) for k in sorted(self.names) if k in kwargs)
        for which, value in found:
            try:
                hash(value)
            except TypeError as error:
                raise TraceError(
                    f"static argument {which!r} of {self.function!r} is a {type(value).__name__},"
                    " which cannot be hashed; make it hashable, or an array that is not static"
                ) from error
        return tuple((which, type(value), value) for which, value in found)

    def dynamic(
        self, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The other arguments of a call."""
        return (
            tuple(a for i, a in enumerate(args) if i not in self.positions),
            {k: v for k, v in kwargs.items() if k not in self.names},
        )

    def bind(
        self, fn: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]
    ) -> Callable[..., Any]:
        """`fn` of its dynamic arguments alone, with a signature that says so."""
        fixed = {i: args[i] for i in self.positions if i < len(args)}
        named = {k: v for k, v in kwargs.items() if k in self.names}
        if not fixed and not named:
            return fn

        @functools.wraps(fn)
        def bound(*dynamic: Any, **keywords: Any) -> Any:
            rest = iter(dynamic)
            full = [fixed[i] if i in fixed else next(rest) for i in range(len(args))]
            return fn(*full, **named, **keywords)

        try:
            signature = inspect.signature(fn)
        except (TypeError, ValueError):
            return bound
        kept = [
            parameter
            for i, (name, parameter) in enumerate(signature.parameters.items())
            if i not in fixed and name not in named
        ]
        bound.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
        return bound
