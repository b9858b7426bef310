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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from longwave.mixers.base import Declaration, MemoryRows, TokenMixer

SET_BY_MODEL = ("hidden_size", "num_heads", "layer_index", "num_layers")
#: Bytes that no state of one sequence reaches on any machine: an argument is beyond sense.
LARGEST_STATE = 1 << 50

__all__ = ["Declaration", "MemoryRows", "TokenMixer", "available", "build", "in_one_sentence", "names_code", "resolve"]


def available() -> tuple[str, ...]:
    """Names of the mixers in this folder, sorted."""
    names = (module.name for module in pkgutil.iter_modules(__path__))
    return tuple(sorted(name for name in names if name != "base"))


def names_code(name: str) -> bool:
    """Whether a name, such as a label, is ``module.path:Name``: to look it up is to run code that is not the package's.

    Such a name is followed where the user typed it. One that stands in a file of a directory, which may be anybody's,
    is followed only if the user trusts the directory.
    """
    return ":" in name.split("@")[0]


@contextmanager
def in_one_sentence(what: str, *, passing: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Around code that may be anybody's: whatever it raises, ``sys.exit`` included, becomes one ``ValueError``.

    Args:
        what: begins the sentence; the error's own first line follows.
        passing: errors that are left as they are; an interruption always is.

    Raises:
        ValueError: the code inside raised.
    """
    try:
        yield
    except (KeyboardInterrupt, *passing):
        raise
    except BaseException as error:
        raise ValueError(f"{what}: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """What an error says, in one line; its class too where that is a mere word."""
    if isinstance(error, SystemExit):
        return f"it called sys.exit({'' if error.code is None else repr(error.code)})"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:2]) if lines and lines[0].endswith(":") else "".join(lines[:1])
    return text if " " in text else f"{type(error).__name__} {text}".strip()


def resolve(label: str) -> type[TokenMixer]:
    """The class that a label names.

    Raises:
        ValueError: no such mixer, module or class, or the class is no :class:`TokenMixer`.
    """
    name = label.split("@")[0]
    if names_code(name):
        module_name, class_name = name.split(":", 1)
        with in_one_sentence(f"mixer {name!r} cannot be imported"):
            found = getattr(importlib.import_module(module_name), class_name)
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
    failed = f"mixer {label!r} cannot be built"
    with in_one_sentence(failed, passing=(ValueError,)):
        legal = inspect.signature(mixer_type).parameters
        given = _arguments(label, legal, typing.get_type_hints(mixer_type.__init__), arguments or {})
    place = {"layer_index": layer_index, "num_layers": num_layers}
    given |= {name: value for name, value in place.items() if name in legal}
    with in_one_sentence(failed, passing=() if names_code(label) else (ValueError,)):
        mixer = mixer_type(hidden_size, num_heads, **given)
        size = mixer.state_bytes(1)
    if not isinstance(size, int) or not 0 <= size <= LARGEST_STATE:
        raise ValueError(f"{failed}: a state of {size!r} bytes; expected a number that a machine can hold")
    return mixer


def _arguments(
    label: str, legal: Mapping[str, Any], hints: Mapping[str, Any], arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """The user's arguments, each checked against the signature ``legal`` and its ``hints``."""
    options = [name for name in legal if name not in SET_BY_MODEL]
    given = {}
    for name, value in arguments.items():
        if name not in options:
            nearest = _nearest(str(name), options)
            raise ValueError(f"mixer {label!r} has no argument {name!r}{nearest}; legal: {', '.join(options)}")
        given[name] = _checked(f"mixer {label!r}: {name}", hints.get(name, Any), value)
    return given


def _checked(where: str, hint: Any, value: Any) -> Any:
    """``value`` as what the annotation ``hint`` says; a mapping becomes a dataclass."""
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    options = (hint, *typing.get_args(hint))
    target: Any = next((option for option in options if dataclasses.is_dataclass(option)), None)
    if target is not None and isinstance(value, Mapping):
        legal = typing.get_type_hints(target)
        for name in value:
            if name not in legal:
                raise ValueError(f"{where} has no field {name!r}{_nearest(name, legal)}; legal: {', '.join(legal)}")
        return target(**{name: _checked(f"{where}.{name}", legal[name], item) for name, item in value.items()})
    if _holds_truth(value) and hint is not Any and "bool" not in str(hint):
        raise ValueError(f"{where}: expected a number or text, got {value!r}")
    try:
        rules = ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False)
        return TypeAdapter(hint, config=rules).validate_python(value)
    except ValidationError as error:
        reasons = " or ".join(item["msg"][0].lower() + item["msg"][1:] for item in error.errors())
        raise ValueError(f"{where}: {reasons}, got {value!r}") from None


def _holds_truth(value: Any) -> bool:
    """Whether it is ``True`` or ``False``, which Python counts among the numbers, or a list of such."""
    return isinstance(value, bool) or (isinstance(value, list | tuple) and any(map(_holds_truth, value)))


def _nearest(name: str, options: typing.Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(options), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
