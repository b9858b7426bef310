"""The run file that lies in the directory of a run: it may be anybody's, so only a part of it is followed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from longwave.data.hub import PREFIX
from longwave.training.configuration import Run, check_run, parse_override, read_values, set_value


def run_of_directory(directory: str | Path, overrides: Sequence[str] = (), *, trust: bool = False) -> Run:
    """What a finished run was scored on, from the ``run.yaml`` in its directory.

    The model is what ``config.json`` says, so the model section is not read; tokens are stored where they are by
    default, whatever folder the file names.

    Args:
        overrides: ``path.to.key=value``.
        trust: follow names of data sets, which are fetched, too.

    Raises:
        ValueError: the file cannot be read, anything in it is illegal, or it names a data set without ``trust``.
    """
    file = Path(directory) / "run.yaml"
    values = read_values(str(file))
    values.pop("model", None)
    for override in overrides:
        set_value(values, *parse_override(override))
    if isinstance(values.get("data"), dict):
        values["data"].pop("cache", None)
    run = check_run(values, str(file))
    sources = [part.source for part in run.data.mix()] + [run.data.validation or ""]
    fetched = next((source for source in sources if source.startswith(PREFIX)), None)
    if fetched is not None and not trust:
        raise ValueError(f"{file}: data names {fetched!r}, which is fetched; give --data, or --trust if you trust it")
    return run
