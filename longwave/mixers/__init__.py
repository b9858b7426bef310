"""Token mixers: one published idea, one file; the file's name is the mixer's name.

A mixer is named by its file (``"hale"``), or, for one of the user's own, by ``"module.path:ClassName"``.
A label is a name, or ``"name@variant"`` where a model gives the same mixer different arguments.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import pkgutil
import typing
from collections.abc import Mapping
from typing import Any

from longwave.mixers.base import Declaration, MemoryRows, TokenMixer

SET_BY_MODEL = ("hidden_size", "num_heads", "layer_index", "num_layers")

__all__ = ["Declaration", "MemoryRows", "TokenMixer", "available", "build", "resolve"]


def available() -> tuple[str, ...]:
    """Names of the mixers in this folder, sorted."""
    names = (module.name for module in pkgutil.iter_modules(__path__))
    return tuple(sorted(name for name in names if name != "base"))


def resolve(label: str) -> type[TokenMixer]:
    """The class that a label names.

    Raises:
        ValueError: no such mixer, module or class, or the class is no :class:`TokenMixer`.
    """
    name = label.split("@")[0]
    if ":" in name:
        module_name, class_name = name.split(":", 1)
        try:
            found = getattr(importlib.import_module(module_name), class_name)
        except Exception as error:  # importing runs the user's code, which may raise anything
            raise ValueError(f"mixer {name!r} cannot be imported: {error}") from error
    elif name in available():
        module = importlib.import_module(f"{__name__}.{name}")
        (found,) = (
            item
            for item in vars(module).values()
            if inspect.isclass(item) and issubclass(item, TokenMixer) and item.__module__ == module.__name__
        )
    else:
        legal = f"{', '.join(available())}, or module.path:ClassName"
        raise ValueError(f"unknown mixer {name!r}{_nearest(name, available())}; legal: {legal}")
    if not (inspect.isclass(found) and issubclass(found, TokenMixer)):
        raise ValueError(f"mixer {name!r} is not a subclass of longwave.mixers.TokenMixer")
    return found


def build(
    label: str,
    hidden_size: int,
    num_heads: int,
    arguments: Mapping[str, Any] | None = None,
    *,
    layer_index: int = 0,
    num_layers: int = 1,
) -> TokenMixer:
    """Construct the mixer that ``label`` names, its arguments checked against the constructor's signature.

    A mapping given for a dataclass argument becomes that dataclass.

    Raises:
        ValueError: unknown mixer or argument, or a value that the mixer refuses.
    """
    mixer_type = resolve(label)
    legal = inspect.signature(mixer_type).parameters
    hints = typing.get_type_hints(mixer_type.__init__)
    given = {}
    options = [name for name in legal if name not in SET_BY_MODEL]
    for name, value in (arguments or {}).items():
        if name not in options:
            raise ValueError(
                f"mixer {label!r} has no argument {name!r}{_nearest(name, options)}; legal: {', '.join(options)}"
            )
        given[name] = _checked(f"mixer {label!r}: {name}", hints.get(name, Any), value)
    place = {"layer_index": layer_index, "num_layers": num_layers}
    given |= {name: value for name, value in place.items() if name in legal}
    return mixer_type(hidden_size, num_heads, **given)


def _checked(where: str, hint: Any, value: Any) -> Any:
    """``value`` as what the annotation ``hint`` says; a mapping becomes a dataclass."""
    from pydantic import TypeAdapter, ValidationError

    options = (hint, *typing.get_args(hint))
    target: Any = next((option for option in options if dataclasses.is_dataclass(option)), None)
    if target is not None and isinstance(value, Mapping):
        legal = typing.get_type_hints(target)
        for name in value:
            if name not in legal:
                raise ValueError(f"{where} has no field {name!r}{_nearest(name, legal)}; legal: {', '.join(legal)}")
        return target(**{name: _checked(f"{where}.{name}", legal[name], item) for name, item in value.items()})
    try:
        return TypeAdapter(hint, config={"arbitrary_types_allowed": True}).validate_python(value)
    except ValidationError as error:
        reasons = " or ".join(item["msg"][0].lower() + item["msg"][1:] for item in error.errors())
        raise ValueError(f"{where}: {reasons}, got {value!r}") from None


def _nearest(name: str, options: typing.Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(options), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
