"""Datasets of the Hugging Face hub, and local folders of the same form."""

from __future__ import annotations

import os.path
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longwave.data.files import text_of

PREFIX = "hf:"


@dataclass(frozen=True)
class HubDocuments:
    """Texts of a dataset's rows in their order, blank ones left out; can be read again and again.

    Raises:
        ValueError: while reading: a row has no text, or none of them has.
    """

    source: str
    rows: Iterable[dict[str, Any]]
    text_field: str

    def __iter__(self) -> Iterator[str]:
        empty = True
        for number, row in enumerate(self.rows, 1):
            text = text_of(row, self.text_field, f"{self.source}: row {number}")
            if text.strip():
                empty = False
                yield text
        if empty:
            raise ValueError(f"{self.source}: the dataset holds no text")


def open_dataset(source: str, split: str, text_field: str, streaming: bool) -> tuple[HubDocuments, tuple[Path, ...]]:
    """Documents of ``hf:NAME`` or ``hf:NAME/CONFIG``, and the local files that hold them.

    NAME is ``owner/name``, a name without owner, or a local folder. ``streaming`` reads rows as they are needed
    instead of bringing the whole split here first; there are no local files then.

    Raises:
        ValueError: the dataset, its configuration or its split cannot be loaded, or has no such field.
    """
    import datasets

    name, config = _name_and_config(source.removeprefix(PREFIX))
    if not name:
        raise ValueError(f"{source}: names no dataset; legal: {PREFIX}NAME, {PREFIX}NAME/CONFIG")
    bars_shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        rows: Any = datasets.load_dataset(name, config, split=split, streaming=streaming)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        cause = error.__cause__ or error  # the library wraps what is wrong with a file
        reason = (str(cause).splitlines() or [type(cause).__name__])[0]
        raise ValueError(f"{source}: the split {split!r} cannot be loaded: {reason}") from error
    finally:
        if bars_shown:
            datasets.enable_progress_bars()
    names = rows.column_names
    if names is not None:
        if text_field not in names:
            raise ValueError(f"{source}: no field {text_field!r}; there are: {', '.join(names)}")
        rows = rows.select_columns([text_field])
    files = () if streaming else tuple(Path(file["filename"]) for file in rows.cache_files)
    return HubDocuments(source, rows, text_field), files


def _name_and_config(name: str) -> tuple[str, str | None]:
    """``owner/name/config`` or ``folder/config`` in two; the rest is a name."""
    parent, _, last = name.rpartition("/")
    if not os.path.isdir(name) and parent and (os.path.isdir(parent) or name.count("/") == 2):
        return parent, last
    return name, None
