"""Model directories of strangers: whatever they hold, nothing of it runs, and each is refused in one line."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from longwave import cli
from longwave.data import build_tokenizer
from longwave.model import LongwaveConfig, LongwaveForCausalLM, load_model, load_tokenizer

EVIL = """import pathlib, sys
pathlib.Path({marker!r}).write_text("ran")
from longwave.mixers import TokenMixer
from tests.toys import CumulativeMean
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

class X(CumulativeMean):
    pass

class Config(GPT2Config):
    model_type = "evil"

class Model(GPT2LMHeadModel):
    config_class = Config

class Tokenizer(PreTrainedTokenizerFast):
    pass
"""
COMMANDS = {
    "verify": ("verify", "{directory}", "--longest", "8"),
    "generate": ("generate", "{directory}", "--max-new-tokens", "2"),
    "evaluate": ("evaluate", "{directory}", "--data", "{text}"),
}
EXIT = "import sys\nsys.exit(0)\n"


def config(**values):
    return lambda d: _change(d / "config.json", values)


def weights(change):
    def damage(directory: Path) -> None:
        tensors = load_file(directory / "model.safetensors")
        change(tensors)
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})

    return damage


def text(name: str, content: str | bytes):
    return lambda d: (d / name).write_bytes(content.encode() if isinstance(content, str) else content)


def generation(**values):
    return lambda d: _change(d / "generation_config.json", values)


def foreign(directory: Path) -> None:
    """A model type of its own, whose code lies beside it."""
    shutil.copy(directory.parent / "evilmod.py", directory / "evilmod.py")
    names = {"AutoConfig": "evilmod.Config", "AutoModelForCausalLM": "evilmod.Model"}
    _change(directory / "config.json", {"model_type": "evil", "auto_map": names})


def foreign_tokenizer(directory: Path) -> None:
    shutil.copy(directory.parent / "evilmod.py", directory / "evilmod.py")
    values = {"auto_map": {"AutoTokenizer": [None, "evilmod.Tokenizer"]}, "tokenizer_class": "Tokenizer"}
    _change(directory / "tokenizer_config.json", values)


def stretched(name: str):
    return weights(lambda t: t.update({name: torch.cat([t[name], t[name]])}))


def poked(name: str, value: float):
    return weights(lambda t: t[name].flatten()[:1].fill_(value))


def typed(name: str, dtype: torch.dtype):
    return weights(lambda t: t.update({name: t[name].to(dtype)}))


NAME = "final_norm.weight"
LARGE = "embeddings.tokens.weight"
LABELS = "mixer_types names"
DEEP = '{"model_type": "longwave", "mixer_kwargs": ' + "[" * 100_000 + "]" * 100_000 + "}"
HOSTILE = {  # what is done to a directory, and what is said of it
    "label of all layers": (config(mixer_types="evilmod:X"), f"{LABELS} 'evilmod:X'"),
    "label of one layer": (config(mixer_types=["hale", "evilmod:X"]), f"{LABELS} 'evilmod:X'"),
    "label within a layer": (config(mixer_types=[["hale", "evilmod:X"], "softmax"]), f"{LABELS} 'evilmod:X'"),
    "label of a variant": (config(mixer_types=["evilmod:X@softmax", "hale"]), f"{LABELS} 'evilmod:X@softmax'"),
    "label of the standard library": (config(mixer_types=["os:system", "hale"]), f"{LABELS} 'os:system'"),
    "label of the package": (config(mixer_types=["longwave.cli:main", "hale"]), f"{LABELS} 'longwave.cli:main'"),
    "label that ends the program": (config(mixer_types="exitmod:X"), f"{LABELS} 'exitmod:X'"),
    "label and a mark of trust": (
        config(mixer_types="evilmod:X", _read_without_trust=False, trust_remote_code=True),
        f"{LABELS} 'evilmod:X'",
    ),
    "label with arguments": (config(mixer_types="evilmod:X", mixer_kwargs={"evilmod:X": {}}), LABELS),
    "labels as a mapping": (config(mixer_types={"evilmod:X": 2}), "mixer_types"),
    "labels in lists of lists": (config(mixer_types=[[["evilmod:X"]], "hale"]), "expected labels"),
    "a layer without labels": (config(mixer_types=[[], "hale"]), "expected labels"),
    "a label that is a number": (config(mixer_types=[3, "hale"]), "mixer_types holds 3, expected labels"),
    "arguments of no mixer": (config(mixer_kwargs={"evilmod:X": {}}), "which no layer uses"),
    "a model type with its code": (foreign, "custom code"),
    "kernels that are fetched": (config(attn_implementation="someone/kernel"), "names the kernels someone/kernel"),
    "a setting that is a method": (config(to_dict=3), "'to_dict' is no setting"),
    "fewer layers than weights": (config(mixer_types=["hale"], num_hidden_layers=1), "the model has no blocks.1."),
    "more layers than weights": (
        config(mixer_types=["hale", "softmax", "hale"], num_hidden_layers=3),
        "no fitting blocks.2.",
    ),
    "layers without end": (config(mixer_types="hale", num_hidden_layers=10**9), "num_hidden_layers"),
    "many layers": (config(mixer_types="hale", num_hidden_layers=4000), "num_hidden_layers is 4000"),
    "width of a machine's dreams": (config(hidden_size=10**12), "hidden_size must be a whole number of at most"),
    "width as a float": (config(hidden_size=1e12), "hidden_size"),
    "width above the weights": (config(hidden_size=4096), "has shape"),
    "width of true": (config(hidden_size=True), "expected int, got bool (value: True)"),
    "width of text": (config(hidden_size="16"), "hidden_size"),
    "width of nothing": (config(hidden_size=None), "hidden_size"),
    "rows above the weights": (config(vocab_size=1 << 23), "has shape"),
    "norm of NaN": (config(norm_eps=float("nan")), "norm_eps must be a finite number, got nan"),
    "range of infinity": (config(initializer_range=float("inf")), "initializer_range must be a finite number"),
    "dropout of true": (config(dropout=True), "expected int, got bool (value: True)"),
    "window of NaN": (config(mixer_kwargs={"hale": {"window": float("nan")}}), "window"),
    "window of true": (config(mixer_kwargs={"hale": {"window": True}}), "window: expected a number"),
    "window beyond memory": (config(mixer_kwargs={"hale": {"window": 10**23}}), "a number that a machine can hold"),
    "a type that is a function": (config(dtype="load"), "dtype"),
    "a type of whole numbers": (config(dtype="int8"), "unknown dtype 'int8'"),
    "an end beyond the tokens": (config(eos_token_id=257), "eos_token_id must be below vocab_size 257"),
    "a negative padding": (config(pad_token_id=-1), "pad_token_id must be below vocab_size 257"),
    "nested without end": (text("config.json", DEEP), "config.json" if sys.version_info < (3, 11) else ""),
    "no object": (text("config.json", "[1, 2]"), ""),
    "not JSON": (text("config.json", "{model_type: longwave"), "config.json"),
    "not text": (text("config.json", b"\xff\xfe\x00"), "config.json"),
    "no model type": (text("config.json", "{}"), ""),
    "an extra tensor": (weights(lambda t: t.update(extra=torch.zeros(2))), "the model has no extra"),
    "a missing tensor": (weights(lambda t: t.pop(NAME)), f"no fitting {NAME}"),
    "a renamed tensor": (weights(lambda t: t.update(other=t.pop(NAME))), "belong to another model"),
    "a longer tensor": (stretched(NAME), f"{NAME} has shape [32], expected [16]"),
    "a tensor of whole numbers": (typed(NAME, torch.int64), f"{NAME} is of type I64"),
    "a tensor of truths": (typed(NAME, torch.bool), f"{NAME} is of type BOOL"),
    "a complex tensor": (typed(NAME, torch.complex64), f"{NAME} is of type C64"),
    "NaN": (poked(NAME, float("nan")), f"{NAME} holds NaN or infinity"),
    "infinity": (poked(LARGE, float("-inf")), f"{LARGE} holds NaN or infinity"),
    "empty weights": (text("model.safetensors", b""), "model.safetensors"),
    "weights that are no weights": (text("model.safetensors", b"\x80\x04."), "model.safetensors"),
    "a header without end": (text("model.safetensors", b"\xff" * 16), "model.safetensors"),
    "generation not JSON": (text("generation_config.json", "{"), "generation_config.json: not a JSON object"),
    "generation no object": (text("generation_config.json", "3"), "generation_config.json: expected a JSON object"),
    "temperature of text": (generation(temperature="hot"), "temperature must be a number"),
    "temperature of NaN": (generation(temperature=float("nan")), "temperature must be a number"),
    "a negative length": (generation(max_length=-5), "max_length must be a whole number"),
    "beams without end": (generation(num_beams=10**9), "num_beams must be a whole number"),
    "sampling of a number": (generation(do_sample=3), "do_sample must be true or false"),
    "an end that is text": (generation(eos_token_id="stop"), "eos_token_id must be tokens below 257"),
    "an end beyond the embedding": (generation(eos_token_id=[0, 999]), "eos_token_id must be tokens below 257"),
    "an unknown setting": (generation(validate=1), "unknown setting 'validate'"),
}
TOKENIZERS = {  # read by `generate` and `evaluate`, not by `verify`
    "a tokenizer with its code": (foreign_tokenizer, "the tokenizer cannot be loaded"),
    "no JSON": (text("tokenizer.json", "{"), "the tokenizer cannot be loaded"),
    "not text": (text("tokenizer.json", b"\xff\xfe"), "the tokenizer cannot be loaded"),
    "nothing": (text("tokenizer.json", "{}"), "the tokenizer cannot be loaded"),
    "more tokens than rows": (
        lambda d: build_tokenizer("bpe:300", [f"{i} times {i}" for i in range(900)]).save_pretrained(d),
        "the tokenizer has 300 tokens, the model's embedding 257 rows",
    ),
    "a token beyond the rows": (lambda d: _tokens(d, lambda ids: ids.update({"a": 10**6})), "the tokenizer"),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """The directory of a small model that nothing is wrong with."""
    folder = tmp_path_factory.mktemp("good") / "model"
    torch.manual_seed(0)
    settings = {"hidden_size": 16, "num_heads": 2, "num_hidden_layers": 2, "mixer_types": ["hale", "softmax"]}
    LongwaveForCausalLM(LongwaveConfig(vocab_size=257, eos_token_id=0, **settings)).save_pretrained(folder)
    build_tokenizer("byte", []).save_pretrained(folder)
    return folder


@pytest.fixture
def directory(good, tmp_path, monkeypatch) -> Path:
    """A copy of it; modules that must not be imported lie beside it, and whoever is asked says yes."""
    (tmp_path / "evilmod.py").write_text(EVIL.format(marker=str(tmp_path / "marker")))
    (tmp_path / "exitmod.py").write_text(EXIT)
    (tmp_path / "text.txt").write_text("a few words, and then some more of them. " * 20)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    yield Path(shutil.copytree(good, tmp_path / "model"))
    for name in ("evilmod", "exitmod"):
        sys.modules.pop(name, None)


@pytest.fixture
def longwave(monkeypatch, capsys, tmp_path):
    """Run a command in this process: exit code, standard output, standard error."""

    def run(*arguments):
        words = {"directory": tmp_path / "model", "text": tmp_path / "text.txt"}
        monkeypatch.setattr(sys, "argv", ["longwave", *(str(word).format(**words) for word in arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return (ended.value.code or 0, *capsys.readouterr())

    return run


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_directory_is_refused_and_runs_nothing(kind, directory, longwave):
    damage, sentence = HOSTILE[kind]
    damage(directory)
    with pytest.raises(ValueError, match=f"{re.escape(str(directory))}.*{re.escape(sentence)}"):
        load_model(directory)
    for command in COMMANDS.values():
        _refused(longwave(*command), directory, sentence)
    assert not (directory.parent / "marker").exists()


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_hostile_tokenizer_is_refused_and_runs_nothing(kind, directory, longwave):
    damage, sentence = TOKENIZERS[kind]
    damage(directory)
    for command in ("generate", "evaluate"):
        _refused(longwave(*COMMANDS[command]), directory, sentence)
    assert not (directory.parent / "marker").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_good_directory_is_taken(command, directory, longwave):
    assert longwave(*COMMANDS[command])[0] == 0


class TestTheUsersOwnMixer:
    """A model with a mixer of the user's own, which lies in a module that marks when it is imported."""

    @pytest.fixture
    def own(self, directory) -> Path:
        settings = {"hidden_size": 16, "num_heads": 2, "num_hidden_layers": 1, "mixer_types": ["evilmod:X"]}
        LongwaveForCausalLM(LongwaveConfig(vocab_size=257, **settings)).save_pretrained(directory)
        (directory.parent / "marker").unlink()
        sys.modules.pop("evilmod")
        return directory

    @pytest.mark.parametrize("command", COMMANDS)
    def test_is_run_with_trust_alone(self, command, own, longwave):
        _refused(longwave(*COMMANDS[command]), own, f"{LABELS} 'evilmod:X'")
        assert not (own.parent / "marker").exists()
        assert longwave(*COMMANDS[command], "--trust")[0] == 0
        assert (own.parent / "marker").exists()

    @pytest.mark.parametrize(
        "load",
        [
            LongwaveForCausalLM.from_pretrained,
            AutoModelForCausalLM.from_pretrained,
            lambda d: LongwaveForCausalLM(LongwaveConfig.from_pretrained(d)),
            lambda d: LongwaveForCausalLM(AutoConfig.from_pretrained(d)),
            lambda d: LongwaveForCausalLM(LongwaveConfig.from_json_file(d / "config.json")),
            lambda d: AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(d)),
            lambda d: LongwaveForCausalLM.from_pretrained(d, config=str(d)),
            lambda d: LongwaveForCausalLM.from_pretrained(d, config=AutoConfig.from_pretrained(d)),
            lambda d: AutoModelForCausalLM.from_pretrained(d, trust_remote_code=False),
        ],
    )
    def test_is_refused_by_every_way_to_load(self, load, own):
        with pytest.raises(ValueError, match=f"{LABELS} 'evilmod:X'"):
            load(own)
        assert not (own.parent / "marker").exists()

    def test_is_loaded_by_the_auto_classes_with_trust(self, own):
        for auto in (AutoModelForCausalLM, LongwaveForCausalLM):
            model = auto.from_pretrained(own, trust_remote_code=True)
            assert type(model.blocks[0].mixers[0]).__name__ == "X"
        config = LongwaveConfig.from_pretrained(own, trust_remote_code=True)
        assert LongwaveForCausalLM(config).config.mixer_types == ["evilmod:X"]

    def test_is_free_where_the_user_names_it(self, own, longwave):
        assert longwave("verify", "evilmod:X", "--longest", "8")[0] == 0
        assert LongwaveForCausalLM(LongwaveConfig(hidden_size=16, num_heads=2, mixer_types="evilmod:X"))

    def test_saved_again_it_is_not_trusted(self, own, tmp_path):
        AutoModelForCausalLM.from_pretrained(own, trust_remote_code=True).save_pretrained(tmp_path / "again")
        assert "trust" not in (tmp_path / "again" / "config.json").read_text()
        with pytest.raises(ValueError, match=LABELS):
            load_model(tmp_path / "again")


class TestTheRunFileOfADirectory:
    def test_its_model_is_not_read_and_its_cache_not_written_to(self, directory, longwave):
        source = {"train": str(directory.parent / "text.txt"), "sequence_length": 8}
        values = {"model": {"mixer_types": "evilmod:X"}, "data": {**source, "cache": str(directory / "cache")}}
        (directory / "run.yaml").write_text(json.dumps(values))
        assert longwave("evaluate", directory)[0] == 0
        assert not (directory / "cache").exists()
        assert not (directory.parent / "marker").exists()

    @pytest.mark.parametrize("name", ["train", "validation"])
    def test_a_data_set_that_it_names_is_not_fetched(self, name, directory, longwave):
        (directory / "run.yaml").write_text(json.dumps({"data": {name: "hf:someone/something"}}))
        _refused(longwave("evaluate", directory), directory, "data names 'hf:someone/something', which is fetched")


def test_code_of_a_foreign_model_is_run_with_trust_alone(directory):
    GPT2LMHeadModel(GPT2Config(vocab_size=257, n_embd=16, n_head=2, n_layer=1, n_positions=64)).save_pretrained(
        directory
    )
    foreign(directory)
    with pytest.raises(ValueError, match="custom code"):
        load_model(directory)
    assert not (directory.parent / "marker").exists()
    load_model(directory, trust_remote_code=True)
    assert (directory.parent / "marker").exists()


def test_a_label_whose_module_ends_the_program_is_one_line(directory, longwave):
    code, out, error = longwave("verify", "exitmod:X")
    assert (code, out) == (2, "")
    assert error == "longwave: mixer 'exitmod:X' cannot be imported: it called sys.exit(0)\n"
    _change(directory / "config.json", {"mixer_types": "exitmod:X"})
    _refused(longwave("verify", directory, "--trust"), directory, "it called sys.exit(0)")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_any_floating_point_type_is_taken(dtype, directory):
    model = load_model(directory)
    model.to(dtype).save_pretrained(directory)
    assert load_model(directory, torch.float32).dtype == torch.float32
    assert LongwaveForCausalLM.from_pretrained(directory).dtype == dtype


@pytest.mark.parametrize(
    "kind", [kind for kind, (_, sentence) in HOSTILE.items() if NAME in sentence or "blocks" in sentence]
)
@pytest.mark.parametrize("auto", [AutoModelForCausalLM, LongwaveForCausalLM])
def test_from_pretrained_takes_whole_weights_alone(auto, kind, directory):
    damage, sentence = HOSTILE[kind]
    damage(directory)
    with pytest.raises(ValueError, match=rf"\A{re.escape(str(directory))}.*{re.escape(sentence)}.*\Z"):
        auto.from_pretrained(directory)


def test_a_layer_left_out_by_the_caller_is_refused_too(directory):
    with pytest.raises(ValueError, match=r"the model has no blocks\.1"):
        LongwaveForCausalLM.from_pretrained(directory, num_hidden_layers=1)


FOREIGN = {
    "fewer layers": (config(n_layer=1), "the model has no"),
    "more layers": (config(n_layer=3), "no fitting"),
    "layers without end": (config(n_layer=10**9), "num_hidden_layers is 1000000000, the weights are"),
    "width above the weights": (config(n_embd=1 << 16), "config.json asks for"),
    "another width": (config(n_embd=24), "has shape"),
    "NaN": (poked("transformer.ln_f.weight", float("nan")), "transformer.ln_f.weight holds NaN or infinity"),
    "an extra tensor": (weights(lambda t: t.update(extra=torch.zeros(2))), "the model has no extra"),
    "temperature of NaN": (generation(temperature=float("nan")), "temperature must be a number"),
}


@pytest.fixture
def foreign_model(directory) -> Path:
    GPT2LMHeadModel(GPT2Config(vocab_size=257, n_embd=16, n_head=2, n_layer=2, n_positions=64)).save_pretrained(
        directory
    )
    return directory


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_model_is_held_to_its_weights(kind, foreign_model):
    damage, sentence = FOREIGN[kind]
    damage(foreign_model)
    with pytest.raises(ValueError, match=f"{re.escape(str(foreign_model))}.*{re.escape(sentence)}"):
        load_model(foreign_model)


def test_a_foreign_model_with_tensors_that_it_ignores_is_taken(foreign_model):
    mask = {"transformer.h.0.attn.bias": torch.ones(1, 1, 64, 64, dtype=torch.bool)}
    weights(lambda tensors: tensors.update(mask))(foreign_model)
    generation(someones_own_setting=3)(foreign_model)
    assert load_model(foreign_model).config.n_layer == 2
    assert load_tokenizer(foreign_model, load_model(foreign_model))


class TestPrompts:
    def test_text_that_is_not_utf_8(self, directory, longwave):
        code, out, error = longwave("generate", directory, "--prompt", "ab\udcff")
        assert (code, out, error) == (2, "", "longwave: --prompt: character 3 is not UTF-8\n")

    @pytest.mark.parametrize("token", [257, -1])
    def test_tokens_beyond_the_embedding(self, token, directory):
        with pytest.raises(
            ValueError, match=f"input_ids holds {min(token, 3)} to {max(token, 3)}, the embedding has 257"
        ):
            load_model(directory)(torch.tensor([[3, token]]))


def _refused(ended, directory: Path, sentence: str) -> None:
    code, out, error = ended
    assert (code, out) == (2, "")
    (line,) = error.splitlines()
    assert line.startswith("longwave: ")
    assert str(directory) in line
    assert sentence in line


def _change(path: Path, values: dict) -> None:
    found = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**found, **values}))


def _tokens(directory: Path, change) -> None:
    values = json.loads((directory / "tokenizer.json").read_text())
    change(values["model"]["vocab"])
    (directory / "tokenizer.json").write_text(json.dumps(values))
