"""Weights are accepted whole: every one of the model's, no other, of its shape, and finite."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from longwave.model.configuration import Refused

#: safetensors' names of floating-point types.
FLOATS = {"F64", "F32", "F16", "BF16"}
WRONG = "the weights belong to another model"


class Header(NamedTuple):
    """What a file says of a tensor: safetensors' name of its type, its shape, and the file."""

    dtype: str
    shape: tuple[int, ...]
    file: Path


def read_headers(files: Iterable[str | Path]) -> dict[str, Header]:
    """Names, types and shapes in safetensors files; no tensor is read.

    Raises:
        Refused: a file is truncated or is no safetensors file.
    """
    headers = {}
    for file in map(Path, files):
        try:
            with safe_open(str(file), framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (no mapping)
                    part = tensors.get_slice(name)
                    headers[name] = Header(part.get_dtype(), tuple(part.get_shape()), file)
        except SafetensorError as error:
            raise Refused(f"{file}: the model cannot be loaded: the file is damaged: {error}") from error
    return headers


def check_files(model: nn.Module, files: Iterable[str | Path], source: str | Path, *, any_size: bool = False) -> None:
    """Hold what safetensors files say of their tensors to a model that has no memory yet.

    Args:
        any_size: shapes may differ.

    Raises:
        Refused: a tensor of the model has another shape or is of whole or complex numbers, or the model is much larger.
    """
    files = list(files)
    if not all(str(file).endswith(".safetensors") for file in files):
        return
    headers, wanted = read_headers(files), model.state_dict()
    for name in (name for name in headers if name in wanted):
        header, shape = headers[name], tuple(wanted[name].shape)
        if wanted[name].is_floating_point() and header.dtype not in FLOATS:
            raise Refused(f"{header.file}: {name} is of type {header.dtype}, expected a floating-point type")
        if header.shape != shape and not any_size:
            raise Refused(_wrong_shape(source, name, header.shape, shape))
    if not any_size:
        check_size(model, headers, source)


def check_loaded(model: nn.Module, report: Mapping[str, Any], source: str | Path, *, any_size: bool = False) -> None:
    """Hold a loaded model to the report that transformers gives of the loading.

    Args:
        any_size: shapes may have differed.

    Raises:
        Refused: a weight was missing, was not the model's, had another shape, or holds NaN or infinity.
    """
    _check_report(report, source, any_size)
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not parameter.is_meta and not torch.isfinite(parameter).all():
            raise Refused(f"{source}: the weight {name} holds NaN or infinity")


def check_size(model: nn.Module, headers: Mapping[str, Header], source: str | Path) -> None:
    """Refuse a model without memory that is much larger than its weights, before memory is taken for it.

    Raises:
        Refused: it is.
    """
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    asked, held = sum(sizes.values()), sum(math.prod(header.shape) for header in headers.values())
    if asked > 2 * held:
        largest = max(sizes, key=sizes.__getitem__)
        raise Refused(
            f"{source}: {WRONG}: config.json asks for {asked:,} numbers ({sizes[largest]:,} of them in {largest}), the "
            f"files hold {held:,}"
        )


def _check_report(report: Mapping[str, Any], source: str | Path, any_size: bool) -> None:
    for name in sorted(report["missing_keys"]):
        raise Refused(f"{source}: {WRONG}: no fitting {name}")
    for name in sorted(report["unexpected_keys"]):
        raise Refused(f"{source}: {WRONG}: the model has no {name}")
    for name, found, wanted in [] if any_size else sorted(report["mismatched_keys"]):
        raise Refused(_wrong_shape(source, name, found, wanted))


def _wrong_shape(source: str | Path, name: str, found: Iterable[int], wanted: Iterable[int]) -> str:
    return f"{source}: {WRONG}: {name} has shape {[*found]}, expected {[*wanted]}"
