from __future__ import annotations

import re

import pytest
import torch

from longwave.benchmarks.settings import OPS, Settings, read_settings
from longwave.mixers import available

REFUSED = [
    ("naps", {}, "unknown subject 'naps'; legal: mixers, ops, decode"),
    ("mixers", {"lengths": "many"}, "--lengths holds 'many'; expected whole numbers of tokens, at least 1"),
    ("mixers", {"lengths": "1024,0"}, "--lengths holds '0'"),
    ("mixers", {"lengths": "1024,-5"}, "--lengths holds '-5'"),
    ("mixers", {"lengths": "1e3"}, "--lengths holds '1e3'"),
    ("mixers", {"lengths": ","}, "--lengths is empty"),
    ("mixers", {"mixers": "hale,hale"}, "--mixers names 'hale' twice"),
    ("mixers", {"passes": "backward"}, "unknown pass 'backward' of mixers; legal: forward, forward_backward, decode"),
    ("ops", {"passes": "decode"}, "unknown pass 'decode' of ops; legal: forward, forward_backward"),
    ("decode", {"passes": "forward"}, "--passes goes with mixers and ops"),
    ("ops", {"mixers": "hale"}, "--mixers goes with mixers and decode"),
    ("mixers", {"ops": "block_means"}, "--ops goes with ops"),
    ("ops", {"ops": "sorting"}, "unknown op 'sorting'; legal: block_means"),
    ("ops", {"num_kv_heads": 2}, "num_kv_heads is an argument of mixers"),
    ("mixers", {"hidden_size": 33}, "hidden_size 33 is not divisible by num_heads 8"),
    ("mixers", {"num_heads": 0}, "num_heads must be at least 1, got 0"),
    ("mixers", {"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ("mixers", {"repeats": 0}, "repeats must be at least 1, got 0"),
    ("mixers", {"threads": -1}, "threads must be at least 1, got -1"),
    ("mixers", {"dtype": "float16"}, "unknown dtype 'float16'; legal: float32, bfloat16, float64"),
    ("mixers", {"backend": "fortran"}, "unknown backend 'fortran'; legal: auto, naive, torch"),
    ("mixers", {"device": "tpu"}, "unknown device 'tpu'; legal: cpu, cuda"),
    ("mixers", {"breakdown": True, "mixers": "hale,softmax"}, "a breakdown takes one mixer apart"),
    ("decode", {"breakdown": True, "mixers": "hale"}, "a breakdown takes one mixer apart"),
    ("mixers", {"overrides": [("dwarf.window", 3)], "mixers": "hale"}, "with a label of softmax, hale"),
    ("mixers", {"overrides": [("window", 3)]}, "--set window: expected label.argument=value"),
    ("mixers", {"overrides": [("hale.window", 3), ("hale.window.size", 3)]}, "'window' has a value already"),
]


@pytest.mark.parametrize(("subject", "changes", "sentence"), REFUSED)
def test_what_cannot_be_is_refused_by_name(subject, changes, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        read_settings(subject, **changes)


def test_cuda_is_refused_where_there_is_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="PyTorch finds no CUDA device"):
        Settings(device="cuda")


def test_the_defaults_are_every_mixer_or_op_and_both_training_passes():
    settings = read_settings("mixers")
    assert settings.labels == available()
    assert settings.passes == ("forward", "forward_backward")
    assert settings.lengths == (1024, 8192)
    assert read_settings("decode").passes == ("decode",)
    assert read_settings("ops").labels == OPS


def test_arguments_go_to_the_longest_label_that_fits():
    overrides = [
        ("my.module:Mixer.window", 3),
        ("my.module:Mixer.graph.depth", 2),
        ("my.module:Mixer.graph.width", 5),
        ("softmax.window", 7),
    ]
    settings = read_settings("mixers", mixers="my.module:Mixer", overrides=overrides)
    assert settings.arguments == {
        "my.module:Mixer": {"window": 3, "graph": {"depth": 2, "width": 5}},
        "softmax": {"window": 7},
    }


def test_threads_are_as_before_when_a_benchmark_ends():
    before = torch.get_num_threads()
    with Settings(threads=before + 1).threading():
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
