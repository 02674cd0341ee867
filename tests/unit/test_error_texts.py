"""Texts of the library state facts and remedies, not commands and options; and no module takes errors apart."""

from __future__ import annotations

import ast
import re

import click

from backyfs.cli.main import cli
from tests.unit.test_layers import MODULES, unit_of

LIBRARY = {module: file for module, file in MODULES.items() if unit_of(module) != "cli"}

_OWN_COMMAND = re.compile(r"`backyfs ")
_FOREIGN_COMMAND = re.compile(r"`(?!backyfs )[^`]*`")
_JOB_LABELS = {"--full", "--full --dry-run", "--all"}  # shown after the command in the list of jobs
_CUTTING = {"removeprefix", "removesuffix", "partition", "split"}
_OPTION = re.compile(r"(?<!\S)--[a-z][a-z-]+")


def _options(command: click.Command) -> set[str]:
    own = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    if not isinstance(command, click.Group):
        return own
    context = click.Context(command)
    below = [command.get_command(context, name) for name in command.list_commands(context)]
    return own.union(*(_options(one) for one in below if one is not None))


def _texts_of(tree: ast.Module) -> list[str]:
    """Return the string constants of a module, without its docstrings."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings
    ]


def _names(text: str, options: set[str]) -> bool:
    """Return whether a text names a command or an option of the program."""
    return bool(_OWN_COMMAND.search(text) or options & set(_OPTION.findall(_FOREIGN_COMMAND.sub("", text))))


def test_the_library_does_not_name_commands_or_options() -> None:
    options = _options(cli)
    assert {"--force", "--continue-from"} <= options
    naming = {
        module
        for module, file in LIBRARY.items()
        for text in _texts_of(ast.parse(file.read_text(encoding="utf-8")))
        if text not in _JOB_LABELS and _names(text, options)
    }
    assert naming == set()


def _takes_errors_apart(tree: ast.Module) -> bool:
    """Return whether a module parses errors instead of using their fields."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(attr="__cause__" | "__context__"):
                return True
            case ast.Attribute(attr="args", ctx=ast.Store(), value=ast.Name(id=name)) if name != "record":  # of a log
                return True
            case ast.Call(func=ast.Attribute(value=ast.Call(func=ast.Name(id="str")), attr=name)) if name in _CUTTING:
                return True
            case ast.Call(
                func=ast.Attribute(attr="removeprefix"), args=[ast.JoinedStr(values=[*_, ast.Constant(value=" ")])]
            ):
                return True
    return False


def test_no_module_takes_an_error_apart() -> None:
    around = {
        module
        for module, file in MODULES.items()
        if _takes_errors_apart(ast.parse(file.read_text(encoding="utf-8")))
    }
    assert around == set()
