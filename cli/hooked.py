"""A decorator for commands that have hooks: a line `@hooked("backup", "name", "source")` on one is all."""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from backyfs.cli.invocation import Invocation
    from backyfs.hooks import Fact

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


def hooked(
    command: str, *names: str
) -> Callable[
    [Callable[Concatenate[Invocation, _Parameters], _Result]], Callable[Concatenate[Invocation, _Parameters], _Result]
]:
    """Let a command, which `click.pass_obj` calls, run within its hooks; `names` are parameters that are facts.

    It adds what it finds out by `invocation.add_facts`.
    """

    def decorate(
        function: Callable[Concatenate[Invocation, _Parameters], _Result],
    ) -> Callable[Concatenate[Invocation, _Parameters], _Result]:
        @wraps(function)
        def run(invocation: Invocation, /, *args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Result:
            facts: dict[str, Fact] = {name: kwargs[name] for name in names}  # type: ignore[misc]  # click's values
            with invocation.hooks(command, **facts):
                return function(invocation, *args, **kwargs)

        return run

    return decorate
