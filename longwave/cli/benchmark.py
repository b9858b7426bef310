"""``longwave benchmark``."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from longwave.cli.output import Json, print_json


def benchmark(
    subject: Annotated[str, typer.Argument(help="`mixers` (training), `ops`, or `decode`.")],
    mixers: Annotated[str | None, typer.Option(help="Labels, as a,b; default all beside softmax.")] = None,
    ops: Annotated[str | None, typer.Option(help="Ops, as a,b; default all.")] = None,
    lengths: Annotated[str, typer.Option(help="Tokens of a sequence, as a,b.")] = "1024,8192",
    passes: Annotated[
        str | None, typer.Option(help="Of forward,forward_backward,decode; default the first two.")
    ] = None,
    hidden_size: Annotated[int, typer.Option(help="Channels.")] = 512,
    num_heads: Annotated[int, typer.Option(help="Heads.")] = 8,
    num_kv_heads: Annotated[int | None, typer.Option(help="Key/value heads of every mixer that has them.")] = None,
    batch_size: Annotated[int, typer.Option(help="Sequences.")] = 1,
    dtype: Annotated[str, typer.Option(help="float32, float64, or bfloat16 (autocast).")] = "float32",
    overrides: Annotated[list[str] | None, typer.Option("--set", help="label.argument=value. Repeatable.")] = None,
    backend: Annotated[str, typer.Option(help="Of the ops: auto, naive, torch, numba, triton.")] = "auto",
    repeats: Annotated[int | None, typer.Option(help="Rounds; default by the time they take.")] = None,
    threads: Annotated[int | None, typer.Option(help="Of PyTorch; default its own choice.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    breakdown: Annotated[bool, typer.Option("--breakdown", help="Take one mixer's pass apart instead.")] = False,
    as_json: Json = False,
) -> None:
    """Time and memory beside softmax in the same process; what is not certified is not timed (exit code 1)."""
    from longwave.benchmarks import print_report, read_settings, run_benchmark, watch_on_terminal
    from longwave.training.values import parse_override

    sizes = {"hidden_size": hidden_size, "num_heads": num_heads, "num_kv_heads": num_kv_heads}
    run = {"batch_size": batch_size, "dtype": dtype, "backend": backend, "repeats": repeats, "threads": threads}
    settings = read_settings(
        subject,
        mixers=mixers,
        ops=ops,
        lengths=lengths,
        passes=passes,
        overrides=[parse_override(override) for override in overrides or []],
        device=device,
        breakdown=breakdown,
        **sizes,
        **run,
    )
    with watch_on_terminal() as watch:
        report = run_benchmark(settings, watch)
    if as_json:
        print_json(report.as_dict())
    else:
        print_report(Console(), report)
    raise typer.Exit(0 if report.passed else 1)
