"""Models and tokenizers from a directory that a user names: whole ones only, and nothing is unpickled."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase


def load_model(directory: str | Path, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The causal language model of a local directory, ours or another's, in evaluation mode.

    Raises:
        ValueError: there is no model, its weights are missing, corrupt or of another model, or are pickled.
    """
    path = Path(directory)
    if not (path / "config.json").is_file():
        raise ValueError(f"{directory}: holds no config.json; expected the directory of a run or model")
    if not list(path.glob("*.safetensors")):
        raise ValueError(f"{directory}: holds no weights in safetensors; other formats are not loaded")
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype or "auto", use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except Exception as error:
        raise ValueError(f"{directory}: the model cannot be loaded: {_first_line(error)}") from error
    lacking = sorted(report["missing_keys"]) + sorted(str(item) for item in report["mismatched_keys"])
    if lacking:
        raise ValueError(f"{directory}: the weights belong to another model: no fitting {lacking[0]}")
    return model.eval()


def load_tokenizer(directory: str | Path, model: PreTrainedModel) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model.

    Raises:
        ValueError: there is none, it cannot be read, or it has more tokens than the model.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except Exception as error:
        raise ValueError(f"{directory}: the tokenizer cannot be loaded: {_first_line(error)}") from error
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise ValueError(f"{directory}: the tokenizer has {len(tokenizer)} tokens, the model's embedding {rows} rows")
    return tokenizer


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
