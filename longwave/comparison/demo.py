"""The demo: a mixer of each family certified, trained at equal parameters from several seeds, ranked, asked, heard."""

from __future__ import annotations

from pathlib import Path

import torch
from rich.console import Console

from longwave.comparison.compare import Comparison
from longwave.comparison.table import print_comparison
from longwave.comparison.terms import read_terms
from longwave.model import load_model, load_tokenizer

#: One of each family, the reference first.
ARMS = ("softmax", "dwarf", "gated_delta", "gated_linear", "hale")
#: What differs from the presets, so that little text and few rows teach much: small batches.
TEXT = (("training.batch_size", 8),)
RECALL = (("training.batch_size", 32), ("data.sequence_length", 32), ("data.task.sizes", [2, 4]))
SEEDS, RECALL_SEEDS = 3, 2
#: Training tokens of a run on the recall task, over those on text.
RECALL_SHARE = 4
PROMPT = "def "
NEW_TOKENS = 120


def run_demo(output: Path, tokens: int, console: Console) -> bool:
    """Run the demo into ``output``, where an earlier one is gone on with; true if every certificate passed.

    Args:
        tokens: of each run on text.
    """
    text_terms = read_terms(ARMS, TEXT, tokens=tokens, seeds=SEEDS)
    recall_terms = read_terms(ARMS, RECALL, task="mqar", tokens=RECALL_SHARE * tokens, seeds=RECALL_SEEDS)
    console.rule("The Python standard library's text, at equal parameters")
    text = Comparison(text_terms, output / "text", console).run()
    console.rule("Recall of key-value pairs, at equal parameters")
    recall = Comparison(recall_terms, output / "mqar", console).run()

    console.rule("Text")
    print_comparison(console, text)
    console.rule("Recall")
    print_comparison(console, recall)
    first = {cell.arm: cell.outcome.directory for cell in reversed(text.cells)}
    for place in text.rankings["parameters"]:
        console.rule(f"{place.name} continues {PROMPT!r}")
        console.print(_speak(first[place.name]), markup=False, highlight=False)
    lines = (
        f"All runs are in {output}.",
        f"More text: longwave generate {first[ARMS[0]]} --prompt 'import '",
        f"One more seed: longwave compare {' '.join(ARMS)} --tokens {tokens} --seeds {SEEDS + 1} "
        f"{' '.join(f'--set {path}={value}' for path, value in TEXT)} "
        f"--output {output / 'text'}",
    )
    console.print("\n".join(["", *lines]), soft_wrap=True, markup=False, highlight=False)
    return not (text.invalid or recall.invalid)


def _speak(directory: Path) -> str:
    model = load_model(directory)
    tokenizer = load_tokenizer(directory, model)
    torch.manual_seed(0)
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(PROMPT, add_special_tokens=False)["input_ids"]]])
    out = model.generate(ids, max_new_tokens=NEW_TOKENS, do_sample=True, temperature=0.7, top_k=40)
    return tokenizer.decode(out[0], skip_special_tokens=True)
