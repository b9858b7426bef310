"""One Hugging Face model class for every mixer; importing this package registers it with the Auto classes."""

from transformers import AutoConfig, AutoModelForCausalLM

from longwave.model.cache import CACHE_NAME, LongwaveCache
from longwave.model.configuration import LongwaveConfig
from longwave.model.generation import print_continuation
from longwave.model.loading import load_model, load_tokenizer
from longwave.model.modeling import LongwaveForCausalLM

AutoConfig.register("longwave", LongwaveConfig, exist_ok=True)
AutoModelForCausalLM.register(LongwaveConfig, LongwaveForCausalLM, exist_ok=True)

__all__ = [
    "CACHE_NAME",
    "LongwaveCache",
    "LongwaveConfig",
    "LongwaveForCausalLM",
    "load_model",
    "load_tokenizer",
    "print_continuation",
]
