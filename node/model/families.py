"""Which model families can be split into spans; asked before any weight is read. Pure."""

from __future__ import annotations

from typing import Any

from node.errors import UnsupportedFamily

CHECKED_FAMILIES = frozenset(
    {
        "apertus", "arcee", "biogpt", "bloom", "codegen", "cohere", "cohere2", "deepseek_v2", "deepseek_v3", "dots1",
        "ernie4_5", "exaone4", "falcon", "gemma", "gemma2", "gemma3_text", "glm", "glm4", "glm4_moe", "gpt2",
        "gpt_bigcode", "gpt_neo", "gpt_neox", "gpt_oss", "gptj", "granite", "granitemoe", "helium",
        "hunyuan_v1_dense", "llama", "ministral", "mistral", "mixtral", "mpt", "nemotron", "olmo", "olmo2", "olmo3",
        "olmoe", "opt", "persimmon", "phi", "phi3", "phimoe", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "seed_oss",
        "smollm3", "stablelm", "starcoder2", "vaultgemma",
    }
)  # fmt: skip
"""``model_type`` of the families whose spans equal transformers' whole model in tests/node/model/test_families.py."""

_REASONS = {
    "gemma3n_text": "its layers share keys and values across the model",
    "jamba": "its state-space layers keep a state that cannot be cropped to a position",
    "mamba": "its state-space layers keep a state that cannot be cropped to a position",
    "mamba2": "its state-space layers keep a state that cannot be cropped to a position",
    "falcon_mamba": "its state-space layers keep a state that cannot be cropped to a position",
    "recurrent_gemma": "its recurrent layers keep a state that cannot be cropped to a position",
    "t5": "it has an encoder beside its decoder",
    "bart": "it has an encoder beside its decoder",
    "bert": "it does not generate text from left to right",
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
