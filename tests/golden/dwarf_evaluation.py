"""Golden file of DWARF's evaluation protocols."""

from __future__ import annotations

import torch

from longwave.evaluation.distributions import entropy_bits, inverse_simpson, nucleus, top_mass
from longwave.evaluation.loss_by_position import COARSE, FINE, band_excess, bucket_means, smooth
from longwave.evaluation.text_metrics import distinct, edit_distance, first_word, repetition_rate
from tests.golden.core import Answers, Golden, Kind


def primitives(golden: Golden) -> Answers:
    """Everything that the protocols compute from logits, losses and texts."""
    config, losses = golden.config, golden.tensors["in.per_position_loss"].double().numpy()
    probabilities = golden.tensors["in.logits"].softmax(dim=-1)
    coarse, fine, excess = bucket_means(losses, COARSE), bucket_means(losses, FINE), band_excess(losses)
    assert list(coarse) == [name for name, _, _ in config["coarse_buckets"]]
    assert list(fine) == [name for name, _, _ in config["fine_buckets"]]
    assert list(excess) == config["holes"]
    assert all(first_word(text) == answer for text, _, answer in config["answers"])
    words = [text.split() for text in config["texts"]]
    return {
        "out.coarse_mean": _numbers(coarse.values()),
        "out.fine_mean": _numbers(fine.values()),
        "out.hole_delta": _numbers(excess.values()),
        "out.smooth16": torch.from_numpy(smooth(losses)),
        "out.lev": _numbers(edit_distance(a, b) for a, b in config["lev_pairs"]),
        "out.rep4": _numbers(repetition_rate(text, 4) for text in words),
        "out.distinct2": _numbers(distinct(text, 2) for text in words),
        "out.distinct4": _numbers(distinct(text, 4) for text in words),
        "out.entropy_bits": entropy_bits(probabilities),
        "out.eff_vocab_exp_entropy": entropy_bits(probabilities).exp2(),
        "out.eff_vocab_inverse_simpson": inverse_simpson(probabilities),
        "out.top1": top_mass(probabilities, 1),
        "out.top5": top_mass(probabilities, 5),
        "out.topp_0.9": nucleus(probabilities, 0.9),
    }


def _numbers(values) -> torch.Tensor:
    return torch.tensor(list(values), dtype=torch.float64)


KINDS = {"eval_primitives": Kind([primitives], tolerance=1e-5)}
