"""``LongwaveForCausalLM``: one language model for every mixer, usable wherever a Hugging Face model is."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.initialization import guard_torch_init_functions
from transformers.modeling_outputs import CausalLMOutputWithPast

from longwave.mixers import TokenMixer
from longwave.model.block import Block
from longwave.model.cache import CACHE_NAME, LongwaveCache
from longwave.model.configuration import LongwaveConfig, trusting
from longwave.model.embeddings import Embeddings, Head
from longwave.model.memory import Stream, in_batch_order, insert_memory, requested_memory, text_rows
from longwave.model.weights import check_files, check_loaded
from longwave.modules import norm
from longwave.ops import cross_entropy, document_positions


class LongwaveForCausalLM(PreTrainedModel, GenerationMixin):
    """Embedding, blocks, final norm, head.

    ``forward`` takes what any causal language model of transformers takes, and ``starts`` `[B, N]` bool,
    the first token of each document. An ``attention_mask`` `[B, past + N]` says the same in other words:
    left padding is a start at the first real token.
    """

    config_class = LongwaveConfig
    base_model_prefix = ""
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True
    _no_split_modules = ("Block",)
    _is_stateful = True
    _tied_weights_keys = {"lm_head.weight": "embeddings.tokens.weight"}  # noqa: RUF012

    def __init__(self, config: LongwaveConfig) -> None:
        config.check_trust()
        super().__init__(config)
        self.embeddings = Embeddings(config)
        self.blocks = nn.ModuleList(Block(config, index) for index in range(config.num_hidden_layers))
        self.final_norm = nn.Identity()
        if config.norm_placement == "pre":
            self.final_norm = norm(config.norm, config.hidden_size, config.norm_eps)
        self.lm_head = Head(config.hidden_size, config.vocab_size, bias=False)
        self.memory_rows = requested_memory(mixer for block in self.blocks for mixer in block.mixers)
        if self.memory_rows is not None:
            self.memory = nn.Parameter(torch.empty(self.memory_rows.count, config.hidden_size))
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: LongwaveCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        starts: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        return_dict: bool | None = None,
        cache: LongwaveCache | None = None,
        skip_logits: bool = False,
    ) -> CausalLMOutputWithPast:
        """Logits, and the mean cross-entropy of ``labels`` (shifted inside, -100 ignored) if given.

        ``cache`` and ``past_key_values`` are the newer and the older name of the same argument.
        ``labels`` are `[B, N]`, or `[B, N + 1]` with the token that follows the last.
        ``skip_logits``: beside a loss ``logits`` may be ``None``, so that those of all rows need not be held at once.
        ``hidden_states``, if asked for, are the residual streams: after the embedding and after each block.

        Raises:
            ValueError: not exactly one of ``input_ids`` and ``inputs_embeds``; a cache by both names; ``starts``
                beside an ``attention_mask``; a mask of the wrong shape or with holes; a cache after right padding;
                on a CPU, a token beyond the embedding.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if output_attentions:
            raise ValueError("not every mixer has attention maps; longwave.mixers.base.collecting shows what there is")
        if labels is not None and not (isinstance(logits_to_keep, int) and logits_to_keep == 0):
            raise ValueError("the loss needs all logits: give labels or logits_to_keep, not both")
        embeds = self._embed(input_ids) if inputs_embeds is None else inputs_embeds
        cache, starts = self._prepare(embeds, attention_mask, _either(cache, past_key_values), starts, use_cache)
        residual = self._residual_streams(embeds, starts, cache, every=bool(output_hidden_states))
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        hidden = self.final_norm(residual[-1])[:, kept]
        loss, logits = self._loss_and_logits(hidden, labels, num_items_in_batch, skip_logits)
        output = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=tuple(residual) if output_hidden_states else None,
            **{CACHE_NAME: cache},
        )
        return output.to_tuple() if return_dict is False else output

    def _residual_streams(
        self, embeds: Tensor, starts: Tensor | None, cache: LongwaveCache | None, *, every: bool
    ) -> list[Tensor]:
        """`[B, N, D]` after the last block; with ``every``, after the embedding and each block. Fills the cache."""
        streams, positions = self._streams(embeds, starts, cache)
        residuals, states = [], []
        for stream in streams:
            current = self._fresh_states() if cache is None else cache.read(stream.batch)
            residual = [stream.hidden]
            for index, block in enumerate(self.blocks):
                x, current[index] = block(
                    residual[-1], current[index], starts=stream.starts, return_state=cache is not None
                )
                residual = [*residual, x] if every else [x]
            residuals.append([text_rows(stream, x) for x in residual])
            states.append(current)
        if cache is not None:
            cache.write(streams, states, positions)
        return [in_batch_order(streams, parts) for parts in zip(*residuals, strict=True)]

    def _loss_and_logits(
        self, hidden: Tensor, labels: Tensor | None, num_items: Tensor | int | None, skip_logits: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """The loss is a mean over the labels that count, or the sum over ``num_items`` (gradient accumulation)."""
        if labels is None:
            return None, self.lm_head(hidden)
        targets = labels[:, 1:].to(hidden.device)
        read = targets.shape[1]
        if skip_logits and isinstance(self.lm_head, Head):
            logits, total = None, self.lm_head(hidden[:, :read], targets)
        else:
            logits = self.lm_head(hidden)
            total = cross_entropy(logits[:, :read].flatten(0, 1), targets.flatten())
        return total / ((targets != -100).sum() if num_items is None else num_items), logits

    def _embed(self, input_ids: Tensor) -> Tensor:
        try:
            return self.embeddings.tokens(input_ids)
        except IndexError:
            least, most, rows = int(input_ids.min()), int(input_ids.max()), self.embeddings.tokens.num_embeddings
            raise ValueError(f"input_ids holds {least} to {most}, the embedding has {rows} rows") from None

    def _prepare(
        self,
        embeds: Tensor,
        attention_mask: Tensor | None,
        cache: LongwaveCache | None,
        starts: Tensor | None,
        use_cache: bool | None,
    ) -> tuple[LongwaveCache | None, Tensor | None]:
        """The cache to fill, if any, and the document starts, from whatever the caller gave."""
        padded = False
        if attention_mask is not None:
            if starts is not None:
                raise ValueError("give starts or an attention_mask, not both")
            seen = 0 if cache is None else cache.get_seq_length()
            starts, padded = starts_of_mask(attention_mask, seen, embeds.shape[1])
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training and not padded
        if cache is None and use_cache:
            cache = LongwaveCache(self.config)
        if cache is not None and cache.tokens is not None and len(cache.tokens) != len(embeds):
            raise ValueError(f"the cache holds {len(cache.tokens)} sequences, the input {len(embeds)}")
        if padded and cache is not None:
            raise ValueError("the state after right padding is not the state after the text; pad on the left")
        return cache, starts

    def _streams(
        self, embeds: Tensor, starts: Tensor | None, cache: LongwaveCache | None
    ) -> tuple[list[Stream], Tensor]:
        """What runs through the blocks, and the position `[B, N]` of each text token in its document."""
        tokens = None if cache is None else cache.tokens
        positions = document_positions(*embeds.shape[:2], tokens=tokens, starts=starts, device=embeds.device)
        hidden = self.embeddings(embeds, positions)
        if self.memory_rows is None:
            return [Stream(None, hidden, starts, None)], positions
        every, exact_end = self.memory_rows.every, cache is not None
        return insert_memory(hidden, starts, positions, self.memory, every, exact_end=exact_end), positions

    def _fresh_states(self) -> list[list[None]]:
        return [[None] * len(block.mixers) for block in self.blocks]

    def get_input_embeddings(self) -> nn.Embedding:
        """The token embedding."""
        return self.embeddings.tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the token embedding."""
        self.embeddings.tokens = value

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """As in transformers; then each mixer has the last word on its own. Loaded weights stay."""
        super().initialize_weights()
        with guard_torch_init_functions():
            if self.memory_rows is not None:
                nn.init.normal_(self.memory, std=self.config.initializer_range)
            for module in self.modules():
                if isinstance(module, TokenMixer):
                    _reset(module)

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *args) -> None:
        if model_kwargs.get(CACHE_NAME) is None and generation_config.use_cache is not False:
            model_kwargs[CACHE_NAME] = LongwaveCache(self.config)

    @classmethod
    def from_pretrained(
        cls, source, *args, trust_remote_code: bool | None = None, output_loading_info: bool = False, **kwargs
    ):
        """As in transformers, but whole models only.

        Args:
            trust_remote_code: a label of the configuration may name code that is not the package's.

        Raises:
            ValueError: a label names such code without trust; a weight is missing, is not the model's, has another
                shape, is no floating-point number, or holds NaN or infinity.
        """
        with trusting(trust_remote_code):
            model, report = super().from_pretrained(
                source, *args, trust_remote_code=bool(trust_remote_code), output_loading_info=True, **kwargs
            )
        check_loaded(model, report, source, any_size=kwargs.get("ignore_mismatched_sizes", False))
        return (model, report) if output_loading_info else model

    @classmethod
    def _load_pretrained_model(cls, model, state_dict, checkpoint_files, load_config, expected_keys=None):
        """Called by transformers when the model is built, without memory, and its files, or an adapter's, are known."""
        whole = expected_keys is None  # an adapter brings the names that it expects
        if whole and load_config.hf_quantizer is None and checkpoint_files is not None:
            source, any_size = load_config.pretrained_model_name_or_path, load_config.ignore_mismatched_sizes
            check_files(model, checkpoint_files, source, any_size=any_size)
        return super()._load_pretrained_model(model, state_dict, checkpoint_files, load_config, expected_keys)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModel") -> None:
        """Nothing: the code of a saved model is the installed package, so that no source is copied beside it."""


def _either(cache: LongwaveCache | None, past_key_values: LongwaveCache | None) -> LongwaveCache | None:
    """The argument that has two names."""
    if cache is not None and past_key_values is not None:
        raise ValueError("cache and past_key_values are two names of one argument: give one of them")
    return past_key_values if cache is None else cache


def starts_of_mask(mask: Tensor, num_seen: int, num_new: int) -> tuple[Tensor | None, bool]:
    """Document starts `[B, num_new]` that an attention mask implies, and whether it pads on the right.

    ``None`` if no row starts later than the first position.

    Raises:
        ValueError: the mask is not `[B, num_seen + num_new]`, or has a hole.
    """
    if mask.dim() != 2 or mask.shape[1] != num_seen + num_new:
        raise ValueError(
            f"attention_mask must be [batch, {num_seen + num_new}], the cached positions included; "
            f"got {tuple(mask.shape)}"
        )
    if mask[:, -num_new - 1 :].all():
        return None, False
    real = mask.bool()
    before = F.pad(real, (1, 0))[:, :-1]
    begins = real & ~before
    if (begins.sum(dim=1) > 1).any():
        raise ValueError("attention_mask has a hole; mark documents with starts instead")
    padded = bool((before & ~real)[:, -num_new:].any())
    return begins[:, -num_new:], padded


@torch.no_grad()
def _reset(mixer: TokenMixer) -> None:
    """Initial values for the mixer's parameters, those excepted that transformers marks as loaded."""
    loaded = [(p, p.clone()) for p in mixer.parameters() if getattr(p, "_is_hf_initialized", False)]
    mixer.reset_parameters()
    for parameter, value in loaded:
        parameter.copy_(value)
