"""The verbs, which import what they need when they run, so that ``--help`` is quick.

Bad input is a ``ValueError`` here; :func:`longwave.cli.main` makes one clear line and exit code 2 of it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from longwave.cli.benchmark import benchmark
from longwave.cli.output import Json, as_json_text, print_json, print_records

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
#: What wrong usage raises; typer brings it along without a public name.
UsageError = typer.BadParameter.__mro__[2]

Trust = Annotated[bool, typer.Option("--trust", help="Run code that the directory holds or names.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Change a value: path.to.key=value. Repeatable.")]


def invoke(arguments: Sequence[str]) -> int:
    """Run the verb that ``arguments`` begin with; its exit code. What a verb raises is raised."""
    command = typer.main.get_command(app)
    try:
        with command.make_context("longwave", list(arguments)) as context:
            command.invoke(context)
    except typer.Exit as end:
        return end.exit_code
    except UsageError as error:
        error.show()
        return error.exit_code
    return 0


@app.callback()
def longwave(
    traceback: Annotated[
        bool, typer.Option("--traceback", help="Before the verb: show where an error is from.")
    ] = False,
    untuned: Annotated[
        bool, typer.Option("--untuned", help="Before the verb: leave memory and waiting threads as the system does.")
    ] = False,
) -> None:
    """What the package does, from a shell. Bad input ends with one clear line and exit code 2."""


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

    from longwave.training import check_memory, load_run
    from longwave.training import train as train_run

    _quiet_libraries()
    settings = load_run(run, overrides or [])
    check_memory(settings)
    output = output or Path("runs") / Path(run).stem
    first = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun started
    record = train_run(settings, output, resume=resume, console=Console(stderr=True, quiet=not first))
    if not first:
        return
    if as_json:
        print_json(asdict(record))
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
    from longwave.data.sealed import replace_text
    from longwave.evaluation import LikelihoodScore, needs_text, print_suite, protocol_names, run_suite, score
    from longwave.model import load_model, load_tokenizer
    from longwave.training import prepare_data, run_of_directory, score_function

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
            replace_text(output, as_json_text(report))
        return print_json(report) if as_json else print_suite(Console(), report)
    with _progress("score") as advance:
        result = measure(loaded, batch_size=batch_size, progress=advance)
    counts = {"rows": len(result.rows)}
    if isinstance(result, LikelihoodScore):
        counts = {"tokens": result.num_tokens, "bytes": result.num_bytes}
    if as_json:
        print_json({**result.values(), **counts})
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
    from longwave.training.values import read_overrides
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
        print_json(certificate.as_dict())
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
    from longwave.training.values import parse_override

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
        print_json(report.as_dict())
    else:
        print_comparison(Console(), report)
    raise typer.Exit(1 if report.invalid else 0)


app.command()(benchmark)


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
        print_json({"mixers": mixers, "presets": presets, **({"backends": forms} if backends else {})})
        return
    print_records("Mixers", mixers)
    for preset in presets:
        preset["published"] = ", ".join(f"{key} {value}" for key, value in preset["published"].items())
    print_records("Presets", presets)
    if forms:
        print_records("Backends", forms)


def _measure_properties(target: str, as_json: bool) -> bool:
    from longwave.verification import properties_of
    from longwave.verification.dwarf import measure_properties
    from longwave.verification.dwarf.report import PropertyPrinter

    published = properties_of(target)
    if as_json:
        report = measure_properties(target, published)
        print_json(report.as_dict())
    else:
        printer = PropertyPrinter(Console(), target)
        report = measure_properties(target, published, report=printer.line)
        printer.summary(report)
    return report.passed


def _in_words(scores: dict[str, float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in scores.items())


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
