"""Models and tokenizers from a directory that a user names.

Whole ones only; nothing is unpickled, and no code that the directory holds or names is run unless the user trusts it.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from longwave.mixers import in_one_sentence
from longwave.model.configuration import LongwaveConfig, Refused
from longwave.model.generation import check_generation
from longwave.model.weights import check_loaded, check_size, read_headers


def load_model(
    directory: str | Path, dtype: torch.dtype | None = None, *, trust_remote_code: bool = False
) -> PreTrainedModel:
    """The causal language model of a local directory, ours or another's, in evaluation mode.

    Args:
        dtype: of the weights; ``None`` for that of the files.
        trust_remote_code: code that the directory holds or names may be run.

    Raises:
        ValueError: there is no model; its weights are missing, corrupt, of another model, not finite or pickled; its
            configuration is nonsense; or it needs code that is not trusted.
    """
    path = Path(directory)
    if not (path / "config.json").is_file():
        raise ValueError(f"{directory}: holds no config.json; expected the directory of a run or model")
    headers = read_headers(_weight_files(path))
    given = {"local_files_only": True, "trust_remote_code": trust_remote_code}
    with in_one_sentence(f"{directory}: the model cannot be loaded", passing=(Refused,)):
        config = AutoConfig.from_pretrained(path, **given)
        kernels = f"{config._attn_implementation} {config._experts_implementation}"
        if "/" in kernels and not trust_remote_code:
            raise ValueError(f"config.json names the kernels {kernels}, code that is fetched; --trust runs it")
        layers = getattr(config, "num_hidden_layers", 0)
        if isinstance(layers, int) and layers > len(headers):
            raise ValueError(f"config.json: num_hidden_layers is {layers}, the weights are {len(headers)} tensors")
        ours = isinstance(config, LongwaveConfig)
        if not ours and getattr(config, "quantization_config", None) is None:
            with torch.device("meta"):
                hollow = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
            check_size(hollow, headers, directory)
        check_generation(path / "generation_config.json", config.vocab_size if ours else None)
        model, report = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype or "auto",
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=not ours,  # for one sentence; ours says it by itself
            **given,
        )
        check_loaded(model, report, directory)
    return model.eval()


def load_tokenizer(
    directory: str | Path, model: PreTrainedModel, *, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model.

    Args:
        trust_remote_code: code that the directory holds may be run.

    Raises:
        ValueError: there is none, it cannot be read, needs code that is not trusted, or has a token beyond the model's.
    """
    with in_one_sentence(f"{directory}: the tokenizer cannot be loaded"):
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=trust_remote_code)
        tokens, largest = len(tokenizer), max(tokenizer.get_vocab().values(), default=0)
    rows = model.get_input_embeddings().num_embeddings
    if tokens > rows:
        raise ValueError(f"{directory}: the tokenizer has {tokens} tokens, the model's embedding {rows} rows")
    if largest >= rows:
        raise ValueError(f"{directory}: the tokenizer has a token {largest}, the model's embedding {rows} rows")
    return tokenizer


def _weight_files(path: Path) -> list[Path]:
    """The safetensors files that make up the model of a directory.

    Raises:
        ValueError: there are none, or the list of them cannot be read.
    """
    if (path / SAFE_WEIGHTS_NAME).is_file():
        return [path / SAFE_WEIGHTS_NAME]
    if not (path / SAFE_WEIGHTS_INDEX_NAME).is_file():
        raise ValueError(f"{path}: holds no weights in safetensors; other formats are not loaded")
    with in_one_sentence(f"{path / SAFE_WEIGHTS_INDEX_NAME}: the list of the model's files cannot be read"):
        names = json.loads((path / SAFE_WEIGHTS_INDEX_NAME).read_text(encoding="utf-8"))["weight_map"].values()
        return [path / name for name in sorted(set(names))]
