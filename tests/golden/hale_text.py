"""Golden files of HALE that involve no weights: sampling, schedules, scores, data and tokenizers."""

from __future__ import annotations

import torch

from longwave.compat.hale import next_token_probabilities
from longwave.compat.hale_bpe import ByteLevelBPE
from longwave.compat.hale_tokenizers import FieldAwareTokenizer, FieldTokenizerV2, FieldTokenizerV3
from longwave.compat.hale_training import (
    batches,
    cut_windows,
    measure,
    published_warmup_cosine,
    warmup_cosine,
)
from longwave.modules import sinusoidal
from tests.golden.core import Answers, Golden, Kind, prefixed


def sampler(golden: Golden) -> Answers:
    """The distribution that the published sampler draws from."""
    answers = {}
    for index, case in enumerate(golden.config["cases"]):
        answers[f"out.probs.{index}"] = next_token_probabilities(
            golden.tensors["in.logits"],
            golden.tensors["in.history"],
            temperature=case["temperature"],
            top_k=case["top_k"],
            top_p=case["top_p"],
            repetition_penalty=case["rep"],
            repetition_window=golden.config["rep_window"],
        )
    return answers


def learning_rates(golden: Golden) -> Answers:
    """Both schedules at every update."""
    answers = {}
    forms = {"lr_original_used": published_warmup_cosine, "lr_corrected_used": warmup_cosine}
    for index, case in enumerate(golden.config["cases"]):
        updates = range(1, case["num_updates"] + 1)
        sizes = {name: value for name, value in case.items() if name != "num_updates"}
        for name, form in forms.items():
            rates = [form(update, **sizes) for update in updates]
            answers[f"out.{name}.{index}"] = torch.tensor(rates, dtype=torch.float64)
    return answers


def metrics(golden: Golden) -> Answers:
    """Published and token-weighted scores."""
    found = measure(zip(golden.numbered("in.logits."), golden.numbered("in.targets."), strict=True))
    return {
        "out.loss_original": found.published_loss,
        "out.ppl_original": found.published_perplexity(),
        "out.loss_token": found.loss,
        "out.ppl_token": found.perplexity,
        "out.accuracy_percent": found.accuracy_percent,
        "out.num_tokens": found.num_tokens,
    }


def data_pipeline(golden: Golden) -> Answers:
    """Windows and batches."""
    config, answers = golden.config, {}
    windows = cut_windows(golden.numbered("in.line."), config["max_seq_len"])
    padding = {"pad_id": config["pad_id"], "label_pad": config["label_pad"]}
    for index, (x, y) in enumerate(batches(windows, config["batch_size"], shuffle=config["shuffle"], **padding)):
        answers |= {f"out.x.{index}": x, f"out.y.{index}": y}
    return answers


def word_tokenizer(golden: Golden) -> Answers:
    """A word tokenizer of each size on each text."""
    classes = {"v2": FieldTokenizerV2, "v3": FieldTokenizerV3, "aware": FieldAwareTokenizer}
    kind, corpus, texts = golden.kind.rsplit("_", 1)[1], golden.config["corpus"], golden.config["tests"]
    answers = {}
    for size in golden.config["field_sizes"]:
        tokenizer = classes[kind].build(corpus, size)
        ids = [tokenizer.encode(text) for text in texts]
        types = {"token_type": tokenizer.token_type, "clusters": tokenizer.token_type}
        found = {
            "vocab": tokenizer.vocab,
            "vocab_size": tokenizer.vocab_size,
            "tokens": [tokenizer.tokenize(text) for text in texts],
            "decoded": [tokenizer.decode(row) for row in ids],
            "coverage": tokenizer.coverage_report([*corpus, *texts]),
            **types,
        }
        specials = golden.expected.get(f"expected.{size}.encode_special", [])
        found["encode_special"] = [tokenizer.encode(text, add_special_tokens=True) for text in texts[: len(specials)]]
        answers |= prefixed(f"expected.{size}.", found)
        answers |= {f"out.ids.{size}.{i}": torch.tensor(row, dtype=torch.int64) for i, row in enumerate(ids)}
    return answers


def bpe(golden: Golden) -> Answers:
    """Byte-level BPE with the original's alphabet and with the whole one."""
    config, answers = golden.config, {}
    for variant, byte_alphabet in (("original", False), ("corrected", True)):
        if f"vocab_size_{variant}" not in config:
            continue
        tokenizer = ByteLevelBPE.train(
            config["corpus"],
            config[f"vocab_size_{variant}"],
            byte_alphabet=byte_alphabet,
            min_frequency=config["min_frequency"],
            special_tokens=config["special_tokens"],
            add_prefix_space=config["add_prefix_space"],
        )
        ids = [tokenizer.encode(text) for text in config["tests"]]
        decoded = [tokenizer.decode(row) for row in ids]
        merges = [list(pair) for pair in tokenizer.merges]
        answers |= prefixed(f"expected.{variant}.", {"vocab": tokenizer.vocab, "merges": merges, "decoded": decoded})
        answers |= {f"out.ids.{variant}.{i}": torch.tensor(row, dtype=torch.int64) for i, row in enumerate(ids)}
    return answers


def positions(golden: Golden) -> Answers:
    """The table of sinusoidal positions."""
    return {"out.table": sinusoidal(torch.arange(golden.config["length"]), golden.config["d_model"])}


TEXT_KINDS = {
    "byte_level_bpe": Kind([bpe]),
    "data_pipeline": Kind([data_pipeline]),
    "eval_metrics": Kind([metrics]),
    "field_tokenizer_aware": Kind([word_tokenizer]),
    "field_tokenizer_v2": Kind([word_tokenizer]),
    "field_tokenizer_v3": Kind([word_tokenizer]),
    "sampler": Kind([sampler]),
    "sinusoidal_table": Kind([positions], tolerance=1e-6),
    "warmup_cosine": Kind([learning_rates]),
}
