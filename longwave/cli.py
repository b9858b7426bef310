"""``longwave VERB``: what the package does, from a shell.

Verbs import what they need when they run, so that ``--help`` is quick. Bad input ends with one clear line
and exit code 2.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]
Trust = Annotated[bool, typer.Option("--trust", help="Run code that the directory holds or names.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Change a value: path.to.key=value. Repeatable.")]


def main() -> None:
    """Entry point: exit code 0, 1 (a check or a run failed) or 2 (bad input)."""
    sys.path.append("")  # module.path:ClassName is looked up in the working directory too
    try:
        app()
    except (ValueError, OSError) as error:
        print(f"longwave: {error}", file=sys.stderr)
        sys.exit(2)
    except FloatingPointError as error:
        print(f"longwave: {error}", file=sys.stderr)
        sys.exit(1)


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Directory of the runs; what it holds is not done again.")] = Path(
        "runs/demo"
    ),
    tokens: Annotated[int, typer.Option(help="Training tokens of each run on text.", min=1)] = 150_000,
) -> None:
    """Certify a mixer of each family, train all at equal parameters, rank them, ask them to recall, let them speak."""
    from longwave.comparison import run_demo

    _quiet_libraries()
    raise typer.Exit(0 if run_demo(output, tokens, Console()) else 1)


@app.command()
def train(
    run: Annotated[str, typer.Argument(help="Run file, or the name of a preset (see `longwave list`).")],
    output: Annotated[Path | None, typer.Option(help="Run directory; default runs/<name>.")] = None,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in the run directory.")] = False,
    as_json: Json = False,
) -> None:
    """Train the model that a run file describes."""
    from dataclasses import asdict

    from longwave.training import load_run
    from longwave.training import train as train_run

    _quiet_libraries()
    settings = load_run(run, overrides or [])
    output = output or Path("runs") / Path(run).stem
    first = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun started
    record = train_run(settings, output, resume=resume, console=Console(stderr=True, quiet=not first))
    if not first:
        return
    if as_json:
        print(json.dumps(asdict(record)))
    else:
        print(f"{_in_words(record.scores)}; saved in {output}")


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="Directory of a run or model.")],
    data: Annotated[str | None, typer.Option(help="`embedded`, or a text file; default the run's own.")] = None,
    sequence_length: Annotated[
        int | None, typer.Option(help="Tokens read at a time; default the run's, of --data 256, protocols 2048.", min=2)
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Rows of a batch.", min=1)] = 16,
    protocols: Annotated[str | None, typer.Option(help="Instead, protocols of the suite, as a,b, or `all`.")] = None,
    new_tokens: Annotated[int, typer.Option(help="Tokens that a protocol adds to a prompt.", min=1)] = 200,
    seed: Annotated[int, typer.Option(help="Of what the protocols sample.")] = 0,
    output: Annotated[Path | None, typer.Option(help="File for what the protocols find, as JSON.")] = None,
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Bits per byte and perplexity of a text, or the accuracy on a run's task; or protocols of the suite."""
    from functools import partial

    from longwave.data import read_corpus, tokenize
    from longwave.evaluation import LikelihoodScore, needs_text, print_suite, protocol_names, run_suite, score
    from longwave.model import load_model, load_tokenizer
    from longwave.training import prepare_data, run_of_directory, score_function
    from longwave.training.callbacks import replace_text

    _quiet_libraries()
    names = () if protocols is None else protocol_names(protocols)
    if output is not None and (output.is_dir() or not (names and output.parent.is_dir())):
        raise ValueError(f"--output {output}: expected a file in a directory that exists, with --protocols")
    loaded, text = load_model(model, trust_remote_code=trust), None
    if data is not None:
        text = tokenize(read_corpus(data).documents, load_tokenizer(model, loaded, trust_remote_code=trust))
        measure = partial(score, stream=text, sequence_length=sequence_length or 256)
    elif (Path(model) / "run.yaml").is_file():
        changes = [f"data.sequence_length={sequence_length}"] if sequence_length else []
        run = run_of_directory(model, changes, trust=trust)
        prepared = prepare_data(run)
        measure, text, sequence_length = score_function(run, prepared), prepared.valid, run.data.sequence_length
    elif needs_text(names) or not names:
        raise ValueError(f"{model}: holds no run.yaml that says what to score it on; give --data")
    if names:
        found = {"text": text, "protocols": names, "max_length": sequence_length, "max_new_tokens": new_tokens}
        settings = {"batch_size": batch_size, "seed": seed, "label": model, "progress": _progress}
        report = run_suite(loaded, load_tokenizer(model, loaded, trust_remote_code=trust), **found, **settings)
        if output is not None:
            replace_text(output, json.dumps(report))
        return print(json.dumps(report)) if as_json else print_suite(Console(), report)
    with _progress("score") as advance:
        result = measure(loaded, batch_size=batch_size, progress=advance)
    counts = {"rows": len(result.rows)}
    if isinstance(result, LikelihoodScore):
        counts = {"tokens": result.num_tokens, "bytes": result.num_bytes}
    if as_json:
        print(json.dumps({**result.values(), **counts}))
    else:
        counted = ", ".join(f"{count:,} {name}" for name, count in counts.items())
        print(f"{_in_words(result.values())} ({counted})")


@app.command()
def generate(
    model: Annotated[str, typer.Argument(help="Directory of a run or model.")],
    prompt: Annotated[str, typer.Option(help="Text to continue; empty begins a document.")] = "",
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to add at most.", min=1)] = 200,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.", min=0.0)] = 0.8,
    top_k: Annotated[int, typer.Option(help="Keep the k likeliest tokens; 0 keeps all.", min=0)] = 50,
    top_p: Annotated[float, typer.Option(help="Keep the likeliest tokens of this total.", min=0.0, max=1.0)] = 0.95,
    seed: Annotated[int, typer.Option(help="Of the sampling.", min=0, max=2**63 - 1)] = 0,
    trust: Trust = False,
) -> None:
    """Continue a prompt, token by token as they come."""
    from longwave.model import load_model, load_tokenizer, print_continuation

    _quiet_libraries()
    loaded = load_model(model, trust_remote_code=trust)
    tokenizer = load_tokenizer(model, loaded, trust_remote_code=trust)
    sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    print_continuation(loaded, tokenizer, prompt, max_new_tokens=max_new_tokens, **sampling)


@app.command()
def verify(
    target: Annotated[str, typer.Argument(help="A mixer, module.path:Class, or the directory of a run or model.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="An argument of the mixer: window=32. Repeatable.")
    ] = None,
    longest: Annotated[int, typer.Option(help="Tokens of the longest sequence tried.", min=8)] = 257,
    backend: Annotated[str, typer.Option(help="Of the ops: auto, naive, torch, numba, triton.")] = "auto",
    properties: Annotated[
        bool, typer.Option("--properties", help="Instead, what was published of the mixer, measured (dwarf).")
    ] = False,
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Hold a mixer or a model to the law; exit code 0 if exactly the declared properties fail."""
    from longwave.ops import use_backend
    from longwave.training.configuration import read_overrides
    from longwave.verification import certify, subject_of
    from longwave.verification.report import print_header, print_line

    _quiet_libraries()
    if properties:
        if overrides:
            raise ValueError("--properties measures the published configurations; it takes no --set")
        with use_backend(backend):
            raise typer.Exit(0 if _measure_properties(target, as_json) else 1)
    with use_backend(backend):
        subject = subject_of(target, read_overrides(overrides or []), trust_remote_code=trust)
    console = Console()
    if not as_json:
        print_header(console, subject)
    report = None if as_json else lambda line: print_line(console, line)
    with use_backend(backend):
        certificate = certify(subject, longest=longest, report=report)
    if as_json:
        print(json.dumps(certificate.as_dict()))
    raise typer.Exit(0 if certificate.passed else 1)


@app.command()
def compare(
    arms: Annotated[
        list[str], typer.Argument(help="Labels of mixers, run files or presets; the first is the reference.")
    ],
    base: Annotated[
        str | None, typer.Option(help="Run file or preset of what all arms share; default `comparison`.")
    ] = None,
    task: Annotated[str | None, typer.Option(help="Instead of text: mqar or copy.")] = None,
    data: Annotated[str | None, typer.Option(help="Training text; see data.train of a run file.")] = None,
    validation: Annotated[
        str | None, typer.Option(help="Validation text; default a part of the training text.")
    ] = None,
    budget: Annotated[
        str, typer.Option(help="What is equal, as a,b of parameters, operations, seconds, tokens; a ranking for each.")
    ] = "parameters",
    parameters: Annotated[
        int | None, typer.Option(help="Outside the embedding; default those of the first arm.", min=1)
    ] = None,
    tokens: Annotated[int | None, typer.Option(help="Training tokens of the first arm.", min=1)] = None,
    seeds: Annotated[int, typer.Option(help="Runs of each arm.", min=1)] = 3,
    rates: Annotated[str, typer.Option(help="Learning rates tried for each arm, as a,b.")] = "",
    trial_tokens: Annotated[
        int | None, typer.Option(help="Training tokens of a trial; default a quarter of all.", min=1)
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="label.argument=value, or a path of the base run. Repeatable.")
    ] = None,
    jobs: Annotated[int, typer.Option(help="Runs side by side, over GPUs if there are.", min=1)] = 1,
    output: Annotated[Path, typer.Option(help="Directory; what it holds already is not done again.")] = Path(
        "runs/compare"
    ),
    plan: Annotated[bool, typer.Option("--plan", help="Say what it will take, and train nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Train models at equal cost and rank them; uncertified ones are not ranked (exit code 1)."""
    from longwave.comparison import Comparison, print_comparison, read_terms
    from longwave.training.configuration import parse_override

    _quiet_libraries()
    terms = read_terms(
        arms,
        [parse_override(override) for override in overrides or []],
        **{"base": base, "task": task, "data": data, "validation": validation, "tokens": tokens},
        **{"budget": budget, "parameters": parameters, "seeds": seeds},
        **{"rates": rates, "trial_tokens": trial_tokens, "jobs": jobs},
    )
    report = Comparison(terms, output, Console(stderr=True)).run(plan_only=plan)
    if as_json:
        print(json.dumps(report.as_dict()))
    else:
        print_comparison(Console(), report)
    raise typer.Exit(1 if report.invalid else 0)


@app.command()
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
    from longwave.training.configuration import parse_override

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
        print(json.dumps(report.as_dict()))
    else:
        print_report(Console(), report)
    raise typer.Exit(0 if report.passed else 1)


@app.command("list")
def list_all(
    as_json: Json = False,
    backends: Annotated[
        bool, typer.Option("--backends", help="Also the forms of every op, and which one runs.")
    ] = False,
) -> None:
    """Mixers and presets."""
    from longwave.mixers import available, build, resolve
    from longwave.ops import describe_backends
    from longwave.training import load_run, preset_names

    _quiet_libraries()
    mixers = []
    for name in available():
        promise = build(name, 16, 2).declaration()
        title = (sys.modules[resolve(name).__module__].__doc__ or "").splitlines()[0]
        mixers.append({"name": name, "cost": promise.cost, "state": promise.growth, "title": title})
    presets = []
    for name in preset_names():
        run = load_run(name)
        presets.append({"name": name, "description": run.description, "published": run.published})
    forms = describe_backends() if backends else []
    if as_json:
        print(json.dumps({"mixers": mixers, "presets": presets, **({"backends": forms} if backends else {})}))
        return
    _print_table("Mixers", mixers)
    for preset in presets:
        preset["published"] = ", ".join(f"{key} {value}" for key, value in preset["published"].items())
    _print_table("Presets", presets)
    if forms:
        _print_table("Backends", forms)


def _measure_properties(target: str, as_json: bool) -> bool:
    from longwave.verification import properties_of
    from longwave.verification.dwarf import measure_properties
    from longwave.verification.dwarf.report import PropertyPrinter

    published = properties_of(target)
    if as_json:
        report = measure_properties(target, published)
        print(json.dumps(report.as_dict()))
    else:
        printer = PropertyPrinter(Console(), target)
        report = measure_properties(target, published, report=printer.line)
        printer.summary(report)
    return report.passed


def _in_words(scores: dict[str, float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in scores.items())


def _print_table(title: str, rows: list[dict]) -> None:
    table = Table(title=title, title_justify="left")
    for column in rows[0]:
        table.add_column(column)
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console().print(table)


def _quiet_libraries() -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


class _progress:
    """A bar on standard error; gives a function that takes work done and work in all."""

    def __init__(self, title: str) -> None:
        from rich.progress import Progress

        self.bar = Progress(console=Console(stderr=True), transient=True)
        self.task = self.bar.add_task(title)

    def __enter__(self):
        self.bar.start()
        return lambda done, total: self.bar.update(self.task, completed=done, total=total)

    def __exit__(self, *error) -> None:
        self.bar.stop()


if __name__ == "__main__":
    main()
