"""A parameter is read in the forward of the module that owns it, and there alone; so weights may be anywhere else."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from accelerate import cpu_offload, disk_offload, dispatch_model
from torch import nn

from longwave.mixers import available
from longwave.mixers.base import run_by_document
from longwave.model import LongwaveConfig, LongwaveForCausalLM
from longwave.verification.subjects import redraw
from tests.mixers.variants import HEADS, VARIANTS, WIDTH, drawn
from tests.toys import CumulativeMean

PROMPT = torch.randint(1, 31, (2, 9), generator=torch.Generator().manual_seed(0))


def absent(module):
    """Take every module's parameters away but while its own forward runs: they are on ``meta`` then."""
    for part in module.modules():
        own = {name: tensor for name, tensor in part._parameters.items() if tensor is not None}
        away = {name: nn.Parameter(tensor.to("meta"), tensor.requires_grad) for name, tensor in own.items()}
        part._parameters.update(away)
        part.register_forward_pre_hook(lambda part, _, own=own: part._parameters.update(own))
        part.register_forward_hook(lambda part, _, y, away=away: part._parameters.update(away), always_call=True)
    return module


def on_the_cpu(module, folder):
    return cpu_offload(module, execution_device=torch.device("cpu"))


def on_the_disk(module, folder):
    return disk_offload(module, str(folder), execution_device=torch.device("cpu"))


def taken_away(module, folder):
    return absent(module)


WAYS = [on_the_cpu, on_the_disk, taken_away]


@torch.no_grad()
def told(mixer):
    """Everything that a mixer can be asked for, under names."""
    x, starts = torch.randn(2, 41, WIDTH, generator=torch.Generator().manual_seed(0)), torch.zeros(2, 41).bool()
    starts[0, [0, 17]] = True
    found = {"whole": mixer(x), "documents": mixer(x, starts=starts, return_state=True)}
    empty = mixer.init_state(2, max_tokens=50)
    found["empty"] = (None, empty)
    found["piece"] = mixer(x[:, :33], empty, return_state=True)
    found["next piece"] = mixer(x[:, 33:38], found["piece"][1], return_state=True)
    found["step"] = mixer(x[:, 38], found["next piece"][1])
    found["next step"] = mixer(x[:, 39], found["step"][1])
    state = mixer.init_state(2)
    for row in x[:, :3].unbind(dim=1):
        y, state = mixer(row, state)
    found["first steps"] = (y, state)
    return copy.deepcopy(found)


def assert_same(found, expected):
    for name, (y, state) in expected.items():
        assert y is None or torch.equal(found[name][0], y), name
        for part, tensor in () if state is None else state._asdict().items():
            assert torch.equal(getattr(found[name][1], part), tensor), (name, part)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("name", "arguments"), VARIANTS, ids=str)
def test_a_mixer_computes_the_same_whose_weights_are_elsewhere(name, arguments, way, tmp_path):
    mixer = drawn(name, arguments)
    expected = told(mixer)
    assert_same(told(way(mixer, tmp_path)), expected)


class ReadsItsLayersWeight(CumulativeMean):
    """Multiplies by another module's weight itself."""

    def forward(self, x, state=None, *, starts=None, return_state=False):
        if starts is not None:
            return run_by_document(self, x, state, starts, return_state)
        _, state = super().forward(x, state, return_state=return_state)
        return F.linear(x, self.proj.weight), state


class Scale(nn.Module):
    """A factor that its user reads through a method."""

    def __init__(self, width):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(width))

    def squared(self):
        return self.factor.square()


class AsksAMethod(CumulativeMean):
    """Calls a module's method that is not its forward, in a step only."""

    def __init__(self, hidden_size, num_heads):
        super().__init__(hidden_size, num_heads)
        self.scale = Scale(hidden_size)

    def step(self, x, state):
        y, state = super().step(x, state)
        return y * self.scale.squared(), state


@pytest.mark.parametrize("toy", [ReadsItsLayersWeight, AsksAMethod])
def test_a_mixer_that_reads_anothers_parameter_is_caught(toy):
    mixer = toy(WIDTH, HEADS).eval()
    expected = told(mixer)
    absent(mixer)
    with pytest.raises((RuntimeError, AssertionError)):
        assert_same(told(mixer), expected)


class OwnScale(CumulativeMean):
    """Reads a parameter of its own, in forward and in step: the user's own mixers may, too."""

    def __init__(self, hidden_size, num_heads):
        super().__init__(hidden_size, num_heads)
        self.factor = nn.Parameter(torch.randn(hidden_size))

    def forward(self, x, state=None, *, starts=None, return_state=False):
        y, state = super().forward(x, state, starts=starts, return_state=return_state)
        return y * self.factor, state

    def step(self, x, state):
        y, state = self.advance(x, state)
        return self.proj(y) * self.factor, state


@pytest.mark.parametrize("way", WAYS)
def test_a_users_mixer_needs_nothing_of_its_own_for_that(way, tmp_path):
    mixer = OwnScale(WIDTH, HEADS).eval()
    expected = told(mixer)
    assert_same(told(way(mixer, tmp_path)), expected)


def spread(model, folder):
    """Embeddings and head in memory, one block on the disk, the rest in memory."""
    places = {name: "cpu" for name, _ in model.named_children()} | {"blocks.0": "disk", "blocks.1": "cpu"}
    places |= {name: "cpu" for name, _ in model.named_parameters(recurse=False)}
    del places["blocks"]
    return dispatch_model(model, places, main_device="cpu", offload_dir=str(folder))


@pytest.mark.filterwarnings("ignore:The following device_map keys do not match:UserWarning")  # memory rows: no module
@pytest.mark.parametrize("way", [on_the_cpu, on_the_disk, spread])
@pytest.mark.parametrize("label", [*available(), "tests.toys:Summaries"])
def test_a_model_says_the_same_whose_weights_are_elsewhere(label, way, tmp_path):
    torch.manual_seed(0)
    settings = {"vocab_size": 31, "hidden_size": WIDTH, "num_heads": HEADS, "num_hidden_layers": 2, "pad_token_id": 0}
    model = LongwaveForCausalLM(LongwaveConfig(mixer_types=label, **settings)).eval()
    redraw(model)
    with torch.no_grad():
        logits, tokens = model(PROMPT).logits, model.generate(PROMPT, max_new_tokens=8, do_sample=False)
        way(model, tmp_path)
        assert torch.equal(model(PROMPT).logits, logits)
        assert torch.equal(model.generate(PROMPT, max_new_tokens=8, do_sample=False), tokens)
