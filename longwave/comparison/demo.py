"""The demo: certify, train at equal parameters, compare, speak."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from longwave.model import load_model, load_tokenizer
from longwave.training import Record, load_run, prepare_data, train
from longwave.verification import Certificate, certify, mixer_subject
from longwave.verification.report import print_header, print_line

ARMS = {"hale": "hale-small", "softmax": "softmax-small"}
PROMPT = "def "
NEW_TOKENS = 120


def run_demo(output: Path, tokens: int, console: Console) -> bool:
    """Run the demo into ``output`` (a directory that it may replace); true if every certificate passed.

    Raises:
        ValueError: ``output`` holds something that is not an earlier demo.
    """
    _make_room(output)
    certificates = {}
    for name in ARMS:
        console.rule(f"Certificate of {name}")
        subject = mixer_subject(name)
        print_header(console, subject)
        certificates[name] = certify(subject, report=lambda line: print_line(console, line))

    console.rule("Training at equal parameters on the Python standard library's text")
    runs = {name: load_run(preset, [f"training.tokens={tokens}"]) for name, preset in ARMS.items()}
    data = prepare_data(runs["hale"])
    records = {}
    for name, run in runs.items():
        console.print(f"[bold]{name}[/bold]")
        records[name] = train(run, output / name, console=console, data=data)

    console.rule("Comparison")
    console.print(_table(records, certificates))
    for name in ARMS:
        console.rule(f"{name} continues {PROMPT!r}")
        console.print(_speak(output / name), markup=False, highlight=False)
    console.print(f"\nBoth runs are in {output}; `longwave generate {output / 'hale'} --prompt 'import '` says more.")
    return all(certificate.passed for certificate in certificates.values())


def _make_room(output: Path) -> None:
    if not output.exists():
        return
    strangers = sorted(path.name for path in output.iterdir() if path.name not in ARMS)
    if strangers:
        raise ValueError(f"{output}: holds {strangers[0]!r}, which no demo wrote; choose another --output")
    shutil.rmtree(output)


def _table(records: dict[str, Record], certificates: dict[str, Certificate]) -> Table:
    table = Table()
    for column in ("", "bits per byte", "perplexity", "parameters", "training tokens/s", "certificate"):
        table.add_column(column, justify="left" if column in ("", "certificate") else "right")
    for name, record in sorted(records.items(), key=lambda item: item[1].bits_per_byte):
        table.add_row(
            name,
            f"{record.bits_per_byte:.4f}",
            f"{record.perplexity:.1f}",
            f"{record.body_parameters:,}",
            f"{record.tokens / record.seconds:,.0f}",
            "PASS" if certificates[name].passed else "FAIL",
        )
    table.caption = "validation text; parameters outside the embedding; one seed, so no more than a first look"
    return table


def _speak(directory: Path) -> str:
    model = load_model(directory)
    tokenizer = load_tokenizer(directory, model)
    torch.manual_seed(0)
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(PROMPT, add_special_tokens=False)["input_ids"]]])
    out = model.generate(ids, max_new_tokens=NEW_TOKENS, do_sample=True, temperature=0.7, top_k=40)
    return tokenizer.decode(out[0], skip_special_tokens=True)
