"""A causal language model without any weights: ids go to the first server, logits or ids come back from the last one.

transformers' own ``generate`` runs on it. The logits of a position are those that the last server sent, the largest
``top`` of them; all others are minus infinity. Where the server samples, the one id that it chose stands at 0 and
whatever picks from such logits picks it. Synchronous: called from the user's thread.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.generation.configuration_utils import GenerationMode
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper
from transformers.modeling_outputs import CausalLMOutputWithPast

from node.client.model_sessions import DistributedMixin
from node.client.remote_session import AUTO_CODEC, Connector
from node.client.thin_session import ThinCache
from node.errors import LocalError, UserError
from node.wire import MAX_LENGTH, MAX_SEED, MAX_TEMPERATURE, Sampling

DEFAULT_TOP = 64
"""Logits of a position that are sent where nothing else is asked for: 512 bytes."""
THIN_NOTICE = (
    "This client holds no weights: the server of the first blocks reads the token ids of your whole prompt, and the "
    "server of the last blocks reads every token that is generated."
)
_GREEDY: Sampling = (0.0, 0, 1.0, 0)
_NOT_BY_SERVERS = (
    "bad_words_ids", "begin_suppress_tokens", "epsilon_cutoff", "eta_cutoff", "exponential_decay_length_penalty",
    "forced_bos_token_id", "forced_eos_token_id", "guidance_scale", "min_length", "min_new_tokens", "min_p",
    "no_repeat_ngram_size", "num_beams", "prompt_lookup_num_tokens", "repetition_penalty", "sequence_bias",
    "suppress_tokens", "top_h", "typical_p",
)  # fmt: skip
"""Settings of transformers' generation that a server, which sees logits and not the text, does not follow."""
_DONE_BY_SERVERS = (TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper)
_MODES_BY_SERVERS = (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE)


class ThinRemote:
    """Sends a forward pass to the session that it was aimed at."""

    def __init__(self) -> None:
        self._call = threading.local()

    def aim(self, runner: Any, left_padding: tuple[int, ...]) -> None:
        """Say where the next forward pass of this thread goes, and only that one."""
        self._call.target = (runner, left_padding)

    def score(self, ids: torch.Tensor, keep: int) -> torch.Tensor:
        """Run ``ids`` (``[batch, seq]``) along the route; return the logits of the ``keep`` last positions."""
        target = getattr(self._call, "target", None)
        if target is None:
            raise LocalError("Call the model itself, not its inner modules: they do not know the session.")
        cache, left_padding = target
        self._call.target = None  # A session ends with the last reference to its cache; this is none of them.
        logits: torch.Tensor = cache.score(ids, left_padding, keep)
        return logits


class ThinModel(DistributedMixin, PreTrainedModel, GenerationMixin):
    """Generates as any causal language model of transformers does, and computes nothing.

    Args:
        config: transformers' config of the model.
        top: logits of a position that the last server sends.
        server_sampling: whether the last server chooses the tokens, so that one id per row and step comes back.
        device: where ids and logits stand.
    """

    main_input_name = "input_ids"
    _is_stateful = False

    def __init__(
        self,
        config: Any,
        top: int = DEFAULT_TOP,
        *,
        server_sampling: bool = False,
        device: torch.device | None = None,
    ) -> None:
        super().__init__(config)
        self._top = min(top, config.vocab_size)
        self._samples_there = server_sampling
        self._where = device or torch.device("cpu")
        self._thin_remote = ThinRemote()
        self.eval()

    def connect(self, connector: Connector, max_length: int, codec: str = AUTO_CODEC) -> None:
        """Connect the freshly built model; as ``attach``."""
        self.attach(connector, self._thin_remote, max_length, codec)

    def leave_out_defaults(self) -> list[str]:
        """Take out of the author's defaults for ``generate`` what a sampling server does not follow; return its names.

        What is asked for in a call is not left out but refused.
        """
        usual, settings = GenerationConfig(), self.generation_config
        names = [name for name in _NOT_BY_SERVERS if getattr(settings, name, None) not in (None, getattr(usual, name))]
        for name in names:
            setattr(settings, name, getattr(usual, name))
        return names

    @property
    def device(self) -> torch.device:
        """Where ids and logits stand; there are no weights that could say it."""
        return self._where

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of logits."""
        return torch.float32

    def new_cache(self, max_length: int, reserve: int = 0) -> ThinCache:
        """Return the cache of a new session of ``max_length`` positions; ``reserve`` as for ``RemoteCache``."""
        cache = ThinCache(self._connector, max_length, self.config, self._top, reserve=reserve, codec=self._codec)
        if self._samples_there:
            cache.sample_there(_GREEDY)
        return cache

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        return_dict: bool | None = None,
    ) -> CausalLMOutputWithPast:
        """Return the logits after ``input_ids`` (``[batch, seq]``), ``[batch, positions, vocabulary]`` in float32.

        Args:
            input_ids: the tokens that the session has not seen yet.
            attention_mask: tells the padding on the left; the servers count positions themselves.
            position_ids: checked, and otherwise of no account.
            past_key_values: the session; None: one of this call.
            inputs_embeds: refused: there is nothing here that embeds.
            use_cache: whether to keep the session open and return it.
            logits_to_keep: how many of the last positions; 0: all.
            return_dict: the output is an object always.

        Raises:
            UserError: something is asked for that a client without weights cannot do.
        """
        del attention_mask, position_ids, use_cache, return_dict  # The hook before this call has read them.
        if input_ids is None or inputs_embeds is not None:
            raise UserError("A client without weights embeds nothing; pass input_ids, or load the model without thin.")
        if not isinstance(logits_to_keep, int):
            raise UserError("A client without weights asks for the last positions; pass logits_to_keep as a number.")
        keep = min(logits_to_keep, input_ids.shape[1]) or input_ids.shape[1]
        logits = self._thin_remote.score(input_ids, keep)
        return CausalLMOutputWithPast(logits=logits, past_key_values=past_key_values)

    def _prepare_cache_for_generation(
        self,
        generation_config: Any,
        model_kwargs: dict[str, Any],
        generation_mode: Any,
        batch_size: int,
        max_cache_length: int,
    ) -> None:
        """Give ``generate`` a session, and tell it how the server shall sample."""
        super()._prepare_cache_for_generation(
            generation_config, model_kwargs, generation_mode, batch_size, max_cache_length
        )
        self._check_beams(generation_config)
        if not self._samples_there:
            return
        cache = model_kwargs.get("past_key_values")
        if generation_mode not in _MODES_BY_SERVERS or cache is None:
            raise UserError(
                "Where the server samples, tokens come one by one out of a session; leave out beams, assistants, "
                "prompt lookup and use_cache=False, or load the model without server_sampling."
            )
        cache.sample_there(_sampling_of(generation_config))

    def _check_beams(self, generation_config: Any) -> None:
        # Beam search looks at twice as many tokens as it has beams, and at one more for every end token.
        wanted = 2 * (generation_config.num_beams or 1)
        if wanted > 2 and wanted > self._top:
            raise UserError(
                f"{generation_config.num_beams} beams choose among {wanted} tokens and the server sends {self._top} "
                "logits; load the model with a larger num_logits, or use fewer beams."
            )

    def _sample(
        self, input_ids: Any, logits_processor: Any, stopping_criteria: Any, generation_config: Any, **options: Any
    ) -> Any:
        """Refuse what changes logits here while a server samples from its own."""
        ours = [type(each).__name__ for each in logits_processor if not isinstance(each, _DONE_BY_SERVERS)]
        if self._samples_there and ours:
            raise UserError(
                f"The server samples with temperature, top_k and top_p alone and knows nothing of {', '.join(ours)}; "
                "leave such options out, or load the model without server_sampling."
            )
        return super()._sample(input_ids, logits_processor, stopping_criteria, generation_config, **options)


def _sampling_of(generation_config: Any) -> Sampling:
    """Return what a server is told; the seed comes from torch's own generator, so ``manual_seed`` decides it.

    Raises:
        UserError: a setting is out of the range that travels.
    """
    if not generation_config.do_sample:
        return _GREEDY
    temperature = 1.0 if generation_config.temperature is None else float(generation_config.temperature)
    top_k = int(generation_config.top_k or 0)
    top_p = 1.0 if generation_config.top_p is None else float(generation_config.top_p)
    if not (0 <= temperature <= MAX_TEMPERATURE and 0 <= top_k <= MAX_LENGTH and 0 < top_p <= 1):
        raise UserError(
            f"The server cannot sample with temperature {temperature}, top_k {top_k} and top_p {top_p}; give 0 to "
            f"{MAX_TEMPERATURE:g}, 0 or more, and more than 0 and at most 1."
        )
    seed = int(torch.randint(0, 2**63 - 1, ())) & MAX_SEED
    return temperature, top_k, top_p, seed
