"""What mixers share: generic functions on states, documents one by one, observation, construction by name."""

from __future__ import annotations

import inspect
import re
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from longwave.mixers import TokenMixer, available, build, resolve
from longwave.mixers.base import (
    collecting,
    concatenate,
    fork,
    load,
    nbytes,
    observe,
    put,
    run_by_document,
    save,
    select,
    to_device,
)
from tests.toys import CumulativeMean, Mixture, WeightedMean

CONFIGURATION = {"window": 3, "kinds": ["a", "b"]}


class ExampleState(NamedTuple):
    """`rows [B, R, 2]`, `tokens [B]`."""

    rows: Tensor
    tokens: Tensor


class Cast(CumulativeMean):
    """A mixer with an argument of a class that no file can hold."""

    def __init__(self, hidden_size: int, num_heads: int, *, precision: torch.dtype | None = None) -> None:
        super().__init__(hidden_size, num_heads)
        self.precision = precision


def state(batch_size=3, size=4):
    rows = torch.randn(batch_size, size, 2)
    return ExampleState(rows, torch.arange(1, batch_size + 1))


def assert_same(found, expected):
    assert type(found) is type(expected)
    for name, tensor in expected._asdict().items():
        torch.testing.assert_close(getattr(found, name), tensor, rtol=0, atol=0, msg=name)


class TestSelect:
    def test_takes_rows_in_the_given_order_and_repeats_them(self):
        whole = state()
        found = select(whole, [2, 0, 2])
        assert found.tokens.tolist() == [3, 1, 3]
        assert torch.equal(found.rows, torch.stack([whole.rows[2], whole.rows[0], whole.rows[2]]))

    def test_takes_a_tensor_of_rows(self):
        assert select(state(), torch.tensor([1])).tokens.tolist() == [2]

    def test_copies(self):
        whole = state()
        before = fork(whole)
        select(whole, [0, 1, 2]).rows.zero_()
        assert_same(whole, before)

    def test_refuses_a_row_that_is_not_there(self):
        with pytest.raises(IndexError):
            select(state(), [3])


class TestPut:
    def test_replaces_these_rows_and_no_others(self):
        whole, part = state(), state(2)
        found = put(whole, [2, 0], part)
        assert_same(select(found, [2, 0]), part)
        assert_same(select(found, [1]), select(whole, [1]))

    def test_undoes_select(self):
        whole = state()
        assert_same(put(whole, [1, 2], select(whole, [1, 2])), whole)

    def test_leaves_its_arguments_alone(self):
        whole, part = state(), state(1)
        before = fork(whole), fork(part)
        put(whole, [1], part).rows.zero_()
        assert_same(whole, before[0])
        assert_same(part, before[1])

    @pytest.mark.parametrize(("size", "other"), [(4, 8), (8, 4)])
    def test_grows_to_the_larger_size_with_zeros(self, size, other):
        whole, part = state(2, size), state(1, other)
        found = put(whole, [0], part)
        assert found.rows.shape == (2, 8, 2)
        assert torch.equal(found.rows[0, :other], part.rows[0])
        assert torch.equal(found.rows[1, :size], whole.rows[1])
        assert (found.rows[0, other:] == 0).all()
        assert (found.rows[1, size:] == 0).all()


class TestConcatenate:
    def test_joins_batches_in_order(self):
        parts = [state(1), state(2), state(3)]
        found = concatenate(parts)
        assert found.tokens.tolist() == [1, 1, 2, 1, 2, 3]
        assert_same(select(found, [1, 2]), parts[1])

    def test_grows_to_the_largest_size_with_zeros(self):
        parts = [state(1, 2), state(1, 8), state(1, 4)]
        found = concatenate(parts)
        assert found.rows.shape == (3, 8, 2)
        for row, part in enumerate(parts):
            size = part.rows.shape[1]
            assert torch.equal(found.rows[row, :size], part.rows[0])
            assert (found.rows[row, size:] == 0).all()


def test_fork_is_equal_and_shares_no_memory():
    whole = state()
    copy = fork(whole)
    assert_same(copy, whole)
    copy.rows.zero_()
    copy.tokens.zero_()
    assert whole.rows.abs().sum() > 0
    assert whole.tokens.tolist() == [1, 2, 3]


def test_fork_stays_differentiable():
    rows = torch.randn(1, 2, 2, requires_grad=True)
    fork(ExampleState(rows, torch.tensor([2]))).rows.sum().backward()
    assert torch.equal(rows.grad, torch.ones_like(rows))


def test_nbytes_counts_all_tensors_by_their_own_width():
    whole = ExampleState(torch.zeros(3, 4, 2, dtype=torch.bfloat16), torch.zeros(3, dtype=torch.int64))
    assert nbytes(whole) == 3 * 4 * 2 * 2 + 3 * 8


def test_to_device_keeps_type_and_numbers():
    whole = state()
    assert_same(to_device(whole, "cpu"), whole)
    assert to_device(whole, "meta").rows.device.type == "meta"


class TestSaveAndLoad:
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
    def test_round_trip_is_exact(self, tmp_path, dtype):
        whole = state()._replace(rows=torch.randn(3, 4, 2, dtype=dtype))
        save(whole, tmp_path / "state", configuration=CONFIGURATION)
        assert_same(load(tmp_path / "state", ExampleState, configuration=CONFIGURATION), whole)

    def test_a_transposed_tensor_is_saved_as_it_reads(self, tmp_path):
        whole = state()._replace(rows=torch.randn(3, 2, 4).transpose(1, 2))
        save(whole, tmp_path / "state", configuration=CONFIGURATION)
        assert_same(load(tmp_path / "state", ExampleState, configuration=CONFIGURATION), whole)

    def test_parts_that_share_memory_are_saved(self, tmp_path):
        both = torch.arange(3)
        save(ExampleState(both, both), tmp_path / "state", configuration=CONFIGURATION)
        assert_same(load(tmp_path / "state", ExampleState, configuration=CONFIGURATION), ExampleState(both, both))

    def test_the_order_of_the_configuration_does_not_matter(self, tmp_path):
        whole = state()
        save(whole, tmp_path / "state", configuration={"a": 1, "b": 2})
        assert_same(load(tmp_path / "state", ExampleState, configuration={"b": 2, "a": 1}), whole)

    def test_another_format_is_refused(self, tmp_path):
        from safetensors.torch import save_file

        save_file({"rows": torch.zeros(1), "tokens": torch.zeros(1)}, str(tmp_path / "state"))
        with pytest.raises(ValueError, match="state: not a state file of format 'longwave-state-1'"):
            load(tmp_path / "state", ExampleState, configuration=CONFIGURATION)

    def test_another_configuration_is_refused(self, tmp_path):
        save(state(), tmp_path / "state", configuration=CONFIGURATION)
        with pytest.raises(ValueError, match="the state was written under another configuration"):
            load(tmp_path / "state", ExampleState, configuration=CONFIGURATION | {"window": 4})

    def test_other_fields_are_refused_by_name(self, tmp_path):
        class OtherState(NamedTuple):
            keys: Tensor
            tokens: Tensor

        save(state(), tmp_path / "state", configuration=CONFIGURATION)
        with pytest.raises(ValueError, match=r"holds \['rows', 'tokens'\], expected \['keys', 'tokens'\]"):
            load(tmp_path / "state", OtherState, configuration=CONFIGURATION)


class TestRunByDocument:
    @pytest.fixture
    def mixer(self):
        return CumulativeMean(4, 1).double()

    @pytest.fixture
    def x(self):
        return torch.randn(2, 9, 4, dtype=torch.float64)

    @pytest.fixture
    def starts(self):
        starts = torch.zeros(2, 9, dtype=torch.bool)
        starts[0, [3, 7]] = True
        starts[1, 0] = True
        return starts

    def test_each_document_is_mixed_by_itself(self, mixer, x, starts):
        y, final = run_by_document(mixer, x, None, starts, True)
        for begin, end in ((0, 3), (3, 7), (7, 9)):
            alone, state = mixer(x[:1, begin:end], return_state=True)
            torch.testing.assert_close(y[:1, begin:end], alone)
        assert_same(select(final, [0]), state)
        torch.testing.assert_close(y[1:], mixer(x[1:])[0])

    def test_the_first_document_continues_the_state_unless_it_starts_there(self, mixer, x, starts):
        _, past = mixer(torch.randn(2, 5, 4, dtype=torch.float64), return_state=True)
        y, final = run_by_document(mixer, x, past, starts, True)
        continued, _ = mixer(x[:1, :3], select(past, [0]), return_state=True)
        torch.testing.assert_close(y[:1, :3], continued)
        torch.testing.assert_close(y[1:], mixer(x[1:])[0])
        assert final.tokens.tolist() == [2, 9]

    def test_no_state_is_returned_unasked(self, mixer, x, starts):
        assert run_by_document(mixer, x, None, starts, False)[1] is None

    def test_gradients_cross_no_border(self, mixer, x, starts):
        x.requires_grad_()
        y, _ = run_by_document(mixer, x, None, starts, False)
        (gradient,) = torch.autograd.grad(y[0, 4:7].sum(), x)
        touched = gradient.abs().sum(dim=-1) > 0
        assert touched[0].nonzero().flatten().tolist() == [3, 4, 5, 6]
        assert not touched[1].any()


def test_a_step_is_a_piece_of_one_row_without_gradient():
    mixer = CumulativeMean(4, 1)
    x, past = torch.randn(2, 4, requires_grad=True), mixer.init_state(2)
    y, final = mixer(x, past)
    whole, expected = mixer(x[:, None], past, return_state=True)
    torch.testing.assert_close(y, whole[:, 0])
    assert_same(final, expected)
    assert not y.requires_grad


class Doubled(CumulativeMean):
    """A step of its own, which forgets to switch gradients off."""

    def step(self, x, state):
        return 2 * self.proj(x), state


class TestTheDoor:
    """One call for a piece and for a step, checked, whoever wrote the mixer."""

    ALL = (*available(), "tests.toys:CumulativeMean", f"{__name__}:Doubled")

    @pytest.mark.parametrize("name", ALL)
    @pytest.mark.parametrize(
        "shape", [(2, 0, 16), (0, 5, 16), (0, 16), (2, 5, 15), (2, 17), (16,), (2, 5, 1, 16), (), (2, 5, 0)], ids=str
    )
    def test_an_input_of_another_shape_is_refused_in_one_sentence(self, name, shape):
        mixer = build(name, 16, 2)
        legal = "[B, N, 16] or, for a step, [B, 16], with B and N at least 1"
        sentence = f"{type(mixer).__name__}: x must be {legal}; got {shape}"
        for state in (None, mixer.init_state(2)):
            with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
                mixer(torch.zeros(shape), state)

    @pytest.mark.parametrize("name", ALL)
    def test_one_row_or_one_sequence_is_enough(self, name):
        mixer = build(name, 16, 2)
        y, state = mixer(torch.randn(1, 1, 16), return_state=True)
        assert y.shape == (1, 1, 16)
        assert mixer(torch.randn(1, 16), state)[0].shape == (1, 16)

    @pytest.mark.parametrize("name", ALL)
    @pytest.mark.parametrize(
        "starts",
        [torch.zeros(2, 5), torch.zeros(2, 5).long(), torch.zeros(2, 4).bool(), torch.zeros(5).bool()],
        ids=["float", "integer", "short", "flat"],
    )
    def test_other_starts_are_refused(self, name, starts):
        mixer = build(name, 16, 2)
        sentence = rf"starts must be bool \[2, 5\], got {starts.dtype} {re.escape(str(list(starts.shape)))}$"
        with pytest.raises(ValueError, match=sentence):
            mixer(torch.zeros(2, 5, 16), starts=starts)

    @pytest.mark.parametrize("name", ALL)
    def test_a_step_needs_a_state_and_takes_no_starts(self, name):
        mixer, x, sentence = build(name, 16, 2), torch.zeros(2, 16), r"a step, x of shape \[B, 16\], needs a state and"
        with pytest.raises(ValueError, match=sentence):
            mixer(x)
        with pytest.raises(ValueError, match=sentence):
            mixer(x, mixer.init_state(2), starts=torch.zeros(2).bool())

    @pytest.mark.parametrize("name", ALL)
    @pytest.mark.parametrize("shape", [(2, 5, 16), (2, 16)], ids=str)
    def test_a_state_of_other_sequences_is_refused(self, name, shape):
        mixer = build(name, 16, 2)
        with pytest.raises(ValueError, match=r"the state is of 1 sequences, x of 2$"):
            mixer(torch.zeros(shape), mixer.init_state(1))

    @pytest.mark.parametrize("name", ALL)
    def test_hooks_see_every_piece_and_every_step_once(self, name):
        mixer, x, seen = build(name, 16, 2), torch.randn(2, 5, 16), []
        mixer.register_forward_pre_hook(lambda mixer, given: seen.append(given[0].shape))
        inner = mixer.forward
        mixer.forward = lambda *given, **named: seen.append("forward") or inner(*given, **named)
        starts = torch.tensor([[True, False, True, False, False], [False] * 5])
        _, state = mixer(x, starts=starts, return_state=True)
        mixer(x[:, 0], state)
        assert seen == [x.shape, "forward", x[:, 0].shape, "forward"]

    @pytest.mark.parametrize("name", ALL)
    def test_a_step_has_no_gradient(self, name):
        mixer = build(name, 16, 2)
        y, state = mixer(torch.randn(2, 16, requires_grad=True), mixer.init_state(2))
        assert not any(tensor.requires_grad for tensor in (y, *state))

    def test_a_step_of_ones_own_is_taken(self):
        mixer, x = Doubled(16, 2), torch.randn(2, 16)
        torch.testing.assert_close(mixer(x, mixer.init_state(2))[0], 2 * mixer.proj(x))

    def test_the_signature_is_the_authors(self):
        assert list(inspect.signature(CumulativeMean(4, 1).forward).parameters) == [
            *("x", "state", "starts", "return_state")
        ]

    @pytest.mark.parametrize("name", ALL)
    def test_a_state_is_made_where_it_is_asked_for(self, name):
        mixer = build(name, 16, 2).double()
        widths = {tensor.dtype for tensor in mixer.init_state(2) if tensor.is_floating_point() and tensor.numel()}
        assert widths == {torch.float64}
        assert {tensor.device.type for tensor in mixer.init_state(2, device="meta")} == {"meta"}
        assert {tensor.device.type for tensor in mixer.to("meta").init_state(2)} == {"cpu"}

    @torch.no_grad()
    @pytest.mark.parametrize("name", ["cumulative_mean", ALL[-1]])
    def test_it_compiles_whole(self, name):
        torch.compiler.reset()
        mixer = build(name, 16, 2).double().eval()
        x, past = torch.randn(2, 7, 16, dtype=torch.float64), mixer.init_state(2, max_tokens=32)
        compiled = torch.compile(mixer, fullgraph=True, backend="aot_eager")
        y, state = mixer(x, past, return_state=True)
        torch.testing.assert_close(compiled(x, past, return_state=True)[0], y)
        torch.testing.assert_close(compiled(x[:, 0], fork(state))[0], mixer(x[:, 0], fork(state))[0])


class TestObserve:
    def test_is_the_identity_outside_a_collection(self):
        tensor = torch.randn(2)
        assert observe("map", tensor) is tensor

    def test_keeps_every_call_under_its_name(self):
        a, b, c = torch.randn(3, 2).unbind()
        with collecting() as found:
            assert observe("map", a) is a
            observe("entropy", b)
            observe("map", c)
        assert [len(found["map"]), len(found["entropy"])] == [2, 1]
        assert torch.equal(found["map"][1], c)

    def test_keeps_no_graph(self):
        with collecting() as found:
            observe("map", torch.randn(2, requires_grad=True) * 2)
        assert not found["map"][0].requires_grad

    def test_ends_with_the_block_even_after_an_exception(self):
        with pytest.raises(KeyError), collecting() as found:
            raise KeyError
        observe("map", torch.zeros(1))
        assert found == {}

    def test_an_inner_collection_has_its_own_record(self):
        with collecting() as outer:
            with collecting() as inner:
                observe("map", torch.zeros(1))
            observe("map", torch.ones(1))
        assert [len(inner["map"]), len(outer["map"])] == [1, 1]
        assert outer["map"][0] == 1


class TestBuild:
    WEIGHTED = "tests.toys:WeightedMean"

    def test_a_label_names_a_file_of_the_folder(self):
        for name in available():
            assert isinstance(build(name, 16, 2), TokenMixer)

    def test_what_follows_an_at_sign_is_a_variant_of_the_same_mixer(self):
        assert resolve("softmax@narrow") is resolve("softmax")

    def test_helpers_are_no_mixers(self):
        assert "base" not in available()
        assert list(available()) == sorted(available())

    def test_a_mixer_of_the_users_own_is_named_by_module_and_class(self):
        assert resolve(self.WEIGHTED) is WeightedMean

    def test_arguments_reach_the_constructor(self):
        assert build("softmax", 16, 2, {"window": 5}).window == 5

    def test_a_mapping_becomes_the_dataclass_of_the_argument(self):
        mixer = build(self.WEIGHTED, 4, 1, {"mixture": {"present": 0.25}})
        assert mixer.mixture == Mixture(present=0.25, mean=0.5)

    def test_a_dataclass_is_taken_as_it_is(self):
        mixture = Mixture(present=0.75)
        assert build(self.WEIGHTED, 4, 1, {"mixture": mixture}).mixture is mixture

    def test_the_place_in_the_model_is_filled_in(self):
        assert build(self.WEIGHTED, 4, 1, layer_index=2, num_layers=5).place == (2, 5)

    def test_an_unknown_mixer_is_named_with_the_nearest_and_the_legal_ones(self):
        legal = ", ".join(available())
        sentence = f"unknown mixer 'sofmax' \\(did you mean 'softmax'\\?\\); legal: {legal}, or module.path:ClassName"
        with pytest.raises(ValueError, match=sentence):
            build("sofmax", 16, 2)

    def test_an_unknown_argument_is_named_with_the_nearest_and_the_legal_ones(self):
        sentence = r"mixer 'softmax' has no argument 'windw' \(did you mean 'window'\?\); legal: num_kv_heads, window"
        with pytest.raises(ValueError, match=sentence):
            build("softmax", 16, 2, {"windw": 5})

    @pytest.mark.parametrize("name", ["hidden_size", "num_heads", "layer_index", "num_layers"])
    def test_what_the_model_fills_in_is_no_argument(self, name):
        with pytest.raises(ValueError, match=f"has no argument '{name}'"):
            build(self.WEIGHTED, 4, 1, {name: 1})

    def test_the_legal_arguments_are_those_that_are_accepted(self):
        with pytest.raises(ValueError, match=r"has no argument 'wrong'; legal: mixture$"):
            build(self.WEIGHTED, 4, 1, {"wrong": 1})

    def test_an_unknown_field_is_named_with_the_nearest_and_the_legal_ones(self):
        sentence = r": mixture has no field 'presnt' \(did you mean 'present'\?\); legal: present, mean"
        with pytest.raises(ValueError, match=sentence):
            build(self.WEIGHTED, 4, 1, {"mixture": {"presnt": 1}})

    def test_a_value_that_the_mixer_refuses_is_refused_with_its_sentence(self):
        with pytest.raises(ValueError, match="softmax: window must be at least 1, got 0"):
            build("softmax", 16, 2, {"window": 0})

    @pytest.mark.parametrize(
        ("name", "value", "legal"),
        [("window", "wide", "valid integer"), ("window", 8.5, "valid integer"), ("dropout", [0.1], "valid number")],
    )
    def test_a_value_of_another_kind_is_refused_with_what_is_legal(self, name, value, legal):
        with pytest.raises(ValueError, match=rf"mixer 'softmax': {name}: .*{legal}.*, got {re.escape(repr(value))}$"):
            build("softmax", 16, 2, {name: value})

    def test_a_field_of_another_kind_is_refused_with_its_path(self):
        with pytest.raises(ValueError, match=r"mixture\.present: .*valid number.*, got 'much'$"):
            build(self.WEIGHTED, 4, 1, {"mixture": {"present": "much"}})

    def test_a_number_written_as_text_is_that_number(self):
        assert build("softmax", 16, 2, {"rotary_base": "1e6"}).rotary_base == 1e6

    def test_an_argument_may_be_of_any_class(self):
        assert build(f"{__name__}:Cast", 4, 1, {"precision": torch.float64}).precision is torch.float64

    def test_a_width_that_heads_do_not_divide_is_refused(self):
        with pytest.raises(ValueError, match="hidden_size 10 is not divisible by num_heads 4"):
            build("softmax", 10, 4)


class TestResolveErrors:
    def test_a_missing_module(self):
        with pytest.raises(ValueError, match=r"mixer 'no\.such:Mixer' cannot be imported: No module named 'no'"):
            resolve("no.such:Mixer")

    def test_a_missing_class(self):
        with pytest.raises(ValueError, match=r"cannot be imported: module 'tests\.toys' has no attribute 'Missing'"):
            resolve("tests.toys:Missing")

    def test_no_module_at_all(self):
        with pytest.raises(ValueError, match="mixer ':Mixer' cannot be imported"):
            resolve(":Mixer")

    def test_a_relative_module(self):
        with pytest.raises(ValueError, match=r"mixer '\.toys:WeightedMean' cannot be imported"):
            resolve(".toys:WeightedMean")

    @pytest.mark.parametrize("label", ["tests.toys:Mixture", "os.path:join"])
    def test_something_that_is_no_mixer(self, label):
        with pytest.raises(ValueError, match=f"mixer '{label}' is not a subclass of longwave.mixers.TokenMixer"):
            resolve(label)

    def test_a_module_that_does_not_parse(self, tmp_path, monkeypatch):
        (tmp_path / "unparsable_mixer.py").write_text("class Mixer(:\n")
        monkeypatch.syspath_prepend(tmp_path)
        with pytest.raises(ValueError, match="mixer 'unparsable_mixer:Mixer' cannot be imported: invalid syntax"):
            resolve("unparsable_mixer:Mixer")
