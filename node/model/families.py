"""Which model families can be split into spans; asked before any weight is read. Pure."""

from __future__ import annotations

from typing import Any

from node.errors import UnsupportedFamily

CHECKED_FAMILIES = frozenset(
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

_STATE = "its layers keep a state that cannot be cropped to a position"
_ENCODER = "it has an encoder beside its decoder"
_SHARED = "its layers share keys and values across the model"

_REASONS = {
    "bamba": _STATE,
    "bart": _ENCODER,
    "bert": "it does not generate text from left to right",
    "falcon_h1": _STATE,
    "falcon_mamba": _STATE,
    "gemma3n_text": _SHARED,
    "gemma4_text": _SHARED,
    "jamba": _STATE,
    "kimi_linear": _STATE,
    "lfm2": _STATE,
    "lfm2_moe": _STATE,
    "mamba": _STATE,
    "mamba2": _STATE,
    "minimax": _STATE,
    "nemotron_h": _STATE,
    "olmo_hybrid": _STATE,
    "qwen3_next": _STATE,
    "recurrent_gemma": _STATE,
    "rwkv": _STATE,
    "t5": _ENCODER,
    "xglm": "it adds positions to what enters its layers",
    "zamba2": _STATE,
}


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
