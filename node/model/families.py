"""Which model families can be split into spans; asked before any weight is read. Pure."""

from __future__ import annotations

from typing import Any

from node.errors import UnsupportedFamily

STATE_FAMILIES = frozenset(
    {
        "bailing_hybrid", "bamba", "falcon_h1", "granitemoehybrid", "jamba", "kimi_linear", "lfm2", "lfm2_moe", "lfm3",
        "nemotron_h", "olmo_hybrid", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next",
    }
)  # fmt: skip
"""Those of the checked families in whose layers a session keeps a state: it cannot go back, and never batches."""

CHECKED_FAMILIES = STATE_FAMILIES | frozenset(
    {
        "afmoe", "apertus", "arcee", "biogpt", "bitnet", "bloom", "codegen", "cohere", "cohere2", "cohere2_moe",
        "deepseek_v2", "deepseek_v3", "diffllama", "doge", "dots1", "ernie4_5", "ernie4_5_moe", "exaone4", "exaone_moe",
        "falcon", "flex_olmo", "gemma", "gemma2", "gemma3_text", "glm", "glm4", "glm4_moe", "glm4_moe_lite", "gpt2",
        "gpt_bigcode", "gpt_neo", "gpt_neox", "gpt_neox_japanese", "gpt_oss", "gptj", "granite", "granitemoe",
        "granitemoeshared", "helium", "hunyuan_v1_dense", "hunyuan_v1_moe", "hyperclovax", "jais2", "jetmoe", "llama",
        "mellum", "minicpm3", "minimax_m2", "ministral", "ministral3", "mistral", "mixtral", "mpt", "nanochat",
        "nemotron", "olmo", "olmo2", "olmo3", "olmoe", "opt", "persimmon", "phi", "phi3", "phimoe", "qwen2",
        "qwen2_moe", "qwen3", "qwen3_moe", "seed_oss", "smollm3", "solar_open", "stablelm", "starcoder2", "vaultgemma",
        "youtu",
    }
)  # fmt: skip
"""``model_type`` of the families whose spans equal transformers' whole model in tests/node/model/test_families.py."""

_FORGETFUL = frozenset({"jamba"})
"""Families whose scan takes no state to begin with: steps of several tokens are right at the beginning only."""

_OWN_CACHE = "its model takes a cache of its own class only"
_SHARED_LAYER = "its layers use the embedded text beside what the layer before gives"
_ENCODER = "it has an encoder beside its decoder"
_SHARED = "its layers share keys and values across the model"
_OTHER_NAME = "transformers generates with it through a cache of another name"

_REASONS = {
    "bart": _ENCODER,
    "bert": "it does not generate text from left to right",
    "deepseek_v4": "its layers hand several streams of hidden states to each other",
    "falcon_mamba": _OTHER_NAME,
    "gemma3n_text": _SHARED,
    "gemma4_text": _SHARED,
    "mamba": _OTHER_NAME,
    "mamba2": _OTHER_NAME,
    "minimax": _OWN_CACHE,
    "recurrent_gemma": "its layers keep the state of one session in themselves",
    "rwkv": _OWN_CACHE,
    "t5": _ENCODER,
    "xglm": "it adds positions to what enters its layers",
    "xlstm": _OWN_CACHE,
    "zamba": _SHARED_LAYER,
    "zamba2": _SHARED_LAYER,
    "zaya": "its layers hand more than hidden states to each other",
}


def keeps_state(config: Any) -> bool:
    """Say whether a session keeps a state in the layers of this config's family, beside keys and values."""
    return config.model_type in STATE_FAMILIES


def forgets_in_long_steps(config: Any) -> bool:
    """Say whether the layers of this config's family ignore their state in steps of several tokens."""
    return config.model_type in _FORGETFUL


_TABLED = frozenset({"codegen", "gpt_neo", "gptj", "mpt"})
"""Families whose layers look positions up in a table that ends."""
_LENGTH_ROPES = frozenset({"dynamic", "longrope"})
"""Rotary scalings that choose their frequencies by the longest text of a forward, beyond the length trained on."""


def max_positions(config: Any) -> int | None:
    """Return how many positions a session of this config's model may have here; None: as many as memory allows.

    Beyond it a table in the layers ends, or the rotary frequencies of one session would follow the length of another
    that shares its forward, and of the pieces in which its own text came.
    """
    bounds = []
    if config.model_type in _TABLED:
        bounds.append(getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None))
    parameters = getattr(config, "rope_parameters", None) or {}
    for rope in (parameters, *(part for part in parameters.values() if isinstance(part, dict))):
        if rope.get("rope_type") in _LENGTH_ROPES:
            trained = rope.get("original_max_position_embeddings")
            trained = trained or getattr(config, "original_max_position_embeddings", None)
            bounds.append(trained or config.max_position_embeddings)
    known = [int(bound) for bound in bounds if bound is not None]
    return min(known, default=None)


def check_family(config: Any) -> None:
    """Pass if models of this config's family can be split into spans.

    Raises:
        UnsupportedFamily: they cannot, or nobody has checked that they can.
    """
    family = config.model_type
    if family in CHECKED_FAMILIES:
        return
    reason = _REASONS.get(family, "nobody has checked that its spans equal the whole model")
    raise UnsupportedFamily(
        f"The model family {family} cannot be served in spans: {reason}; choose a model of one of the families "
        f"{', '.join(sorted(CHECKED_FAMILIES))}."
    )
