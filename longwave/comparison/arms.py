"""Who takes part in a comparison: models that share everything but their mixers, or their whole model section."""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longwave.mixers import resolve
from longwave.training import Run, preset_names
from longwave.training.configuration import check_run, read_values
from longwave.training.values import set_value


@dataclass(frozen=True)
class Arm:
    """One contestant.

    Attributes:
        name: a mixer's label, or the name of the run file that its model is from.
        run: its model, with the data, tokenizer and training that all arms share.
    """

    name: str
    run: Run

    @property
    def mixers(self) -> dict[str, dict[str, Any]]:
        """Arguments of each mixer that the model uses, by label."""
        configuration = self.run.model_configuration(self.run.vocabulary_size())
        labels = dict.fromkeys(label for entry in configuration.labels() for label in entry)
        return {label: dict(configuration.mixer_kwargs.get(label, {})) for label in labels}

    @property
    def source(self) -> str:
        """Code of the user's own mixers; results of other code are other results."""
        own = [sys.modules[resolve(label).__module__] for label in self.mixers if ":" in label]
        return "\n".join(Path(module.__file__).read_text(encoding="utf-8") for module in own if module.__file__)


def read_arms(names: Sequence[str], base: str, overrides: Sequence[tuple[str, Any]] = ()) -> list[Arm]:
    """The arms of a comparison.

    Args:
        names: labels of mixers, which take the place of those in the base run, or run files or presets, of which
            the model section counts.
        base: run file or preset that says everything else.
        overrides: pairs of path and value: ``label.argument`` for a mixer, else a path in the base run.

    Raises:
        ValueError: fewer than two arms or two of one name, an unknown mixer or file, or an illegal run.
    """
    labels = [name for name in names if not _is_run_file(name)]
    for label in labels:
        resolve(label)
    shared, arguments = read_values(base), {label: {} for label in labels}
    for path, value in overrides:
        if path.startswith("model.") and len(labels) < len(names):
            own = next(name for name in names if name not in labels)
            raise ValueError(f"--set {path}: {own} has a model of its own; set it there")
        owner = max((label for label in labels if path.startswith(f"{label}.")), key=len, default=None)
        target, path = (shared, path) if owner is None else (arguments[owner], path.removeprefix(f"{owner}."))
        set_value(target, path, value)
    arms = [_read_arm(name, shared, arguments.get(name)) for name in names]
    found = [arm.name for arm in arms]
    twice = next((name for name in found if found.count(name) > 1), None)
    if twice in labels:
        raise ValueError(f"{twice!r} is named twice; give a variant a label of its own, such as {twice}@again")
    if twice is not None:
        raise ValueError(f"two run files are called {twice!r}; an arm goes by the name of its file")
    if len(arms) < 2:
        raise ValueError("a comparison needs at least two arms")
    return arms


def _is_run_file(name: str) -> bool:
    return name in preset_names() or name.endswith((".yaml", ".yml"))


def _read_arm(name: str, shared: dict[str, Any], arguments: dict[str, Any] | None) -> Arm:
    values = copy.deepcopy(shared)
    if arguments is None:
        model = read_values(name).get("model")
        if not model:
            raise ValueError(f"{name}: has no section model, which is what a run file brings into a comparison")
        return Arm(Path(name).stem, check_run({**values, "model": model}, name))
    model = values.setdefault("model", {})
    shared_arguments = model.get("mixer_kwargs") or {} if isinstance(model, dict) else None
    own = shared_arguments.get(name, {}) if isinstance(shared_arguments, dict) else None
    if not isinstance(own, dict):
        return Arm(name, check_run(values, name))  # which says what is no mapping but should be
    arguments = {**own, **arguments}
    model["mixer_types"], model["mixer_kwargs"] = name, {name: arguments} if arguments else {}
    return Arm(name, check_run(values, name))
