"""Small random models of every family that eFedLLM serves: four layers, text longer than their sliding windows."""

from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, GenerationConfig

NUM_BLOCKS = 4
VOCABULARY = 128
WINDOW = 8
"""Positions of a sliding window, in families that have one; prompts are longer."""

_WIDE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": NUM_BLOCKS,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
_GROUPED = {**_WIDE, "num_key_value_heads": 2}
_HEAD = {**_GROUPED, "head_dim": 8}
_SLIDING = {**_HEAD, "sliding_window": WINDOW}
_GPT2 = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": NUM_BLOCKS, "n_head": 4, "n_positions": 128}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
_LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
_DEEPSEEK_EXPERTS = {
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 2,
    "n_group": 1,
    "topk_group": 1,
}
_LATENT = {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}

_MIX = ["linear_attention", "full_attention", "linear_attention", "full_attention"]
_CONVOLUTIONS = ["conv", "full_attention", "conv", "full_attention"]
_MAMBA = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_n_groups": 2,
    "mamba_d_state": 8,
    "mamba_expand": 2,
    "mamba_chunk_size": 4,
}
_DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": _MIX,
}
_QWEN_EXPERTS = {**_EXPERTS, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32}

FAMILIES: dict[str, dict[str, Any]] = {
    "afmoe": {
        **_SLIDING,
        **_EXPERTS,
        "moe_intermediate_size": 32,
        "num_shared_experts": 1,
        "num_dense_layers": 1,
        "global_attn_every_n_layers": 2,
    },
    "apertus": _GROUPED,
    "arcee": _GROUPED,
    "biogpt": _WIDE,
    "bitnet": _GROUPED,
    "bloom": {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": NUM_BLOCKS, "n_head": 4},
    "codegen": {**_GPT2, "rotary_dim": 4},
    "cohere": _GROUPED,
    "cohere2": {**_GROUPED, "sliding_window": WINDOW},
    "cohere2_moe": {**_SLIDING, **_EXPERTS},
    "deepseek_v2": {**_WIDE, **_LATENT, **_DEEPSEEK_EXPERTS},
    "deepseek_v3": {**_WIDE, **_LATENT, **_DEEPSEEK_EXPERTS},
    "diffllama": _GROUPED,
    "doge": _GROUPED,
    "dots1": {**_HEAD, **_DEEPSEEK_EXPERTS},
    "ernie4_5": _GROUPED,
    "ernie4_5_moe": {
        **_GROUPED,
        "moe_num_experts": 4,
        "moe_k": 2,
        "moe_intermediate_size": 32,
        "moe_num_shared_experts": 1,
    },
    "exaone4": {**_GROUPED, "sliding_window": WINDOW},
    "exaone_moe": {**_SLIDING, **_EXPERTS, "moe_intermediate_size": 32, "n_group": 1, "topk_group": 1},
    "falcon": {key: _WIDE[key] for key in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")},
    "flex_olmo": {**_GROUPED, **_EXPERTS},
    "gemma": _HEAD,
    "gemma2": _SLIDING,
    "gemma3_text": _SLIDING,
    "glm": {**_HEAD, "pad_token_id": 0},
    "glm4": {**_HEAD, "pad_token_id": 0},
    "glm4_moe": {**_HEAD, **_DEEPSEEK_EXPERTS},
    "glm4_moe_lite": {**_WIDE, **_LATENT, **_DEEPSEEK_EXPERTS},
    "gpt2": _GPT2,
    "gpt_bigcode": _GPT2,
    "gpt_neo": {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_layers": NUM_BLOCKS,
        "num_heads": 4,
        "max_position_embeddings": 128,
        "attention_types": [[["global", "local"], 2]],
        "window_size": WINDOW,
    },
    "gpt_neox": _WIDE,
    "gpt_neox_japanese": _WIDE,
    "gpt_oss": {**_SLIDING, **_LOCAL_EXPERTS},
    "gptj": {**_GPT2, "rotary_dim": 4},
    "granite": {**_GROUPED, "embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.5},
    "granitemoe": {**_GROUPED, **_LOCAL_EXPERTS, "embedding_multiplier": 3.0},
    "granitemoeshared": {**_GROUPED, **_LOCAL_EXPERTS, "shared_intermediate_size": 32, "embedding_multiplier": 3.0},
    "helium": _HEAD,
    "hunyuan_v1_dense": _HEAD,
    "hunyuan_v1_moe": {**_HEAD, "num_experts": 4, "moe_topk": 2},
    "hyperclovax": _GROUPED,
    "jais2": _HEAD,
    "jetmoe": {**_GROUPED, **_LOCAL_EXPERTS},
    "llama": _GROUPED,
    "mellum": {**_HEAD, **_EXPERTS, "moe_intermediate_size": 32},
    "minicpm3": {**_WIDE, **_LATENT},
    "minimax_m2": {**_HEAD, **_LOCAL_EXPERTS},
    "ministral": _SLIDING,
    "ministral3": _GROUPED,
    "mistral": {**_GROUPED, "sliding_window": WINDOW},
    "mixtral": {**_GROUPED, **_LOCAL_EXPERTS},
    "mpt": {"vocab_size": VOCABULARY, "d_model": 32, "n_layers": NUM_BLOCKS, "n_heads": 4, "max_seq_len": 128},
    "nanochat": _HEAD,
    "nemotron": _GROUPED,
    "olmo": _GROUPED,
    "olmo2": _GROUPED,
    "olmo3": {**_GROUPED, "sliding_window": WINDOW},
    "olmoe": {**_GROUPED, **_EXPERTS},
    "opt": {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": NUM_BLOCKS,
        "num_attention_heads": 4,
        "ffn_dim": 64,
        "max_position_embeddings": 128,
        "word_embed_proj_dim": 32,
    },
    "persimmon": _WIDE,
    "phi": _WIDE,
    "phi3": {**_GROUPED, "pad_token_id": 0},
    "phimoe": {**_GROUPED, **_LOCAL_EXPERTS},
    "qwen2": _GROUPED,
    "qwen2_moe": {
        **_GROUPED,
        **_EXPERTS,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32,
        "decoder_sparse_step": 2,
    },
    "qwen3": _HEAD,
    "qwen3_moe": {**_HEAD, **_EXPERTS, "moe_intermediate_size": 32},
    "seed_oss": _HEAD,
    "smollm3": {**_GROUPED, "pad_token_id": 0},
    "solar_open": {**_HEAD, **_DEEPSEEK_EXPERTS},
    "stablelm": _GROUPED,
    "starcoder2": _GROUPED,
    "vaultgemma": _SLIDING,
    "youtu": {**_WIDE, **_LATENT},
}
"""``model_type`` to the values of its config, for every family in ``node.model.families.CHECKED_FAMILIES``."""

STATEFUL: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {
        **_WIDE,
        **_LATENT,
        **_LOCAL_EXPERTS,
        "num_key_value_heads": 4,
        "head_dim": 8,
        "n_group": 1,
        "topk_group": 1,
        "moe_intermediate_size": 32,
        "first_k_dense_replace": 1,
        "layer_types": _MIX,
    },
    "bamba": {**_GROUPED, **_MAMBA, "attn_layer_indices": [1, 3]},
    "falcon_h1": {
        **_HEAD,
        **_MAMBA,
        "mamba_d_ssm": 64,
        "embedding_multiplier": 2.0,
        "lm_head_multiplier": 0.5,
        "ssm_in_multiplier": 1.3,
    },
    "granitemoehybrid": {
        **_GROUPED,
        **_LOCAL_EXPERTS,
        **_MAMBA,
        "shared_intermediate_size": 32,
        "embedding_multiplier": 3.0,
        "position_embedding_type": "rope",
        "layer_types": _MIX,
    },
    "jamba": {
        **_GROUPED,
        **_EXPERTS,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 3,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
    },
    "kimi_linear": {
        **_WIDE,
        **_LATENT,
        **_LOCAL_EXPERTS,
        "moe_intermediate_size": 32,
        "linear_head_dim": 8,
        "linear_num_heads": 4,
        "layer_types": _MIX,
        "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
    },
    "lfm2": {**_GROUPED, "layer_types": _CONVOLUTIONS},
    "lfm2_moe": {
        **_GROUPED,
        **_EXPERTS,
        "moe_intermediate_size": 32,
        "num_dense_layers": 1,
        "layer_types": _CONVOLUTIONS,
    },
    "lfm3": {**_SLIDING, "layer_types": ["conv", "full_attention", "conv", "sliding_attention"]},
    "nemotron_h": {
        **{name: value for name, value in _HEAD.items() if name != "num_hidden_layers"},
        "layers_block_type": ["linear_attention", "full_attention", "moe", "linear_attention"],
        "ssm_state_size": 8,
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "n_groups": 2,
        "chunk_size": 4,
        "n_routed_experts": 4,
        "moe_intermediate_size": 32,
        "moe_shared_expert_intermediate_size": 32,
    },
    "olmo_hybrid": {**_GROUPED, **_DELTA, "linear_num_key_heads": 4},
    "qwen3_5_moe_text": {**_HEAD, **_QWEN_EXPERTS, **_DELTA},
    "qwen3_5_text": {**_HEAD, **_DELTA},
    "qwen3_next": {**_HEAD, **_QWEN_EXPERTS, **_DELTA},
}
"""The same for every family in ``node.model.families.STATE_FAMILIES``."""

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama with tied embeddings": ("llama", {**_GROUPED, "tie_word_embeddings": True}),
    "llama without groups": ("llama", {**_WIDE, "num_key_value_heads": 4}),
    "llama with one key head": ("llama", {**_WIDE, "num_key_value_heads": 1}),
    "llama with biases": ("llama", {**_GROUPED, "attention_bias": True, "mlp_bias": True}),
    "llama with llama3 rotary scaling": (
        "llama",
        {
            **_GROUPED,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        },
    ),
    "gemma with untied embeddings": ("gemma", {**_HEAD, "tie_word_embeddings": False}),
    "gpt2 with untied embeddings": ("gpt2", {**_GPT2, "tie_word_embeddings": False}),
    "qwen2 with tied embeddings": ("qwen2", {**_GROUPED, "tie_word_embeddings": True}),
    "qwen2 with windows in its upper layers": (
        "qwen2",
        {**_GROUPED, "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2},
    ),
    "falcon with alibi": ("falcon", {**FAMILIES["falcon"], "alibi": True}),
    "falcon of the new architecture": (
        "falcon",
        {**FAMILIES["falcon"], "new_decoder_architecture": True, "num_kv_heads": 2},
    ),
}
"""Other shapes of some of these families: title to ``model_type`` and config values."""


def build(family: str, values: dict[str, Any], seed: int = 0) -> Any:
    """Return a model with random weights that are far from degenerate: every tensor takes part in the output.

    It generates without an end token, so that no family's random weights cut a test short.
    """
    torch.manual_seed(seed)
    config = CONFIG_MAPPING[family](**values)
    config.bos_token_id, config.eos_token_id, config.pad_token_id = 1, 2, 0
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, 0.15)
            elif "bias" in name:
                parameter.normal_(0, 0.05)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.generation_config = GenerationConfig(bos_token_id=1, pad_token_id=0)
    return model
