"""Define the decorator for commands that have hooks: `@hooked("backup", "name", "source")`."""

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
    """Run a command within its hooks; `names` are parameters that become facts. Use it below `click.pass_obj`.

    The command adds further facts with `invocation.add_facts`.
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
