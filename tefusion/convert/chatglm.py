"""GLM-4-9B's decoder under its original names (ChatGLM's) <-> transformers' `GlmForCausalLM`, the same function.

Both rotate the first half of a head's channels, neighbours in pairs, and both put the gate before the other half of the
first map of the MLP. What differs is that queries, keys and values are one map here and three there.
"""

from collections.abc import Mapping
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from jaxtyping import Float
from torch import Tensor
from transformers import GlmConfig

from tefusion.choices import brief, in_short
from tefusion.convert.move import Move, Slot, same, split
from tefusion.encoders.released import is_size

PREFIX, OURS = "transformer.", "decoder."
FREQUENCIES = PREFIX + "rotary_pos_emb.inv_freq"  # a buffer that the original writes and never reads
BASE = 10_000.0  # of its rotation; a configuration multiplies it by rope_ratio
PARTIAL = 0.5  # of a head's channels are rotated

SIZES = {  # GlmConfig's -> ChatGLM's
    "num_hidden_layers": "num_layers",
    "hidden_size": "hidden_size",
    "intermediate_size": "ffn_hidden_size",
    "num_attention_heads": "num_attention_heads",
    "num_key_value_heads": "multi_query_group_num",
    "head_dim": "kv_channels",
    "vocab_size": "padded_vocab_size",
    "max_position_embeddings": "seq_length",
}
LARGEST = {"num_layers": 1 << 10, "seq_length": 1 << 30}  # the others end at 2**20
FIXED = {  # what a ChatGLM may say and GLM-4-9B's decoder has thus; its defaults, where they differ, are not these
    "add_bias_linear": False,
    "add_qkv_bias": True,
    "apply_residual_connection_post_layernorm": False,
    "multi_query_attention": True,
    "post_layer_norm": True,
    "rmsnorm": True,
    "tie_word_embeddings": False,
}
NEEDED = ("add_qkv_bias", "multi_query_attention")


def decoder_config(config: Mapping[str, Any], file: object) -> GlmConfig:
    """A ChatGLM's configuration as transformers has it. Raises ValueError that names what does not fit."""
    wrong = [name for name in SIZES.values() if not is_size(config.get(name), LARGEST.get(name, 1 << 20))]
    wrong += [name for name, value in FIXED.items() if config.get(name, None if name in NEEDED else value) is not value]
    numbers: dict[str, Any] = {
        "layernorm_epsilon": config.get("layernorm_epsilon"),
        "rope_ratio": config.get("rope_ratio", 1),
    }
    wrong += [name for name, value in numbers.items() if type(value) not in (int, float) or not 0 < value < 1e9]
    if not wrong and config["num_attention_heads"] % config["multi_query_group_num"]:
        wrong.append("multi_query_group_num")
    if not wrong and config["kv_channels"] % 4:
        wrong.append("kv_channels")
    if wrong:
        said = ", ".join(f"{name} = {brief(config.get(name))}" for name in wrong)
        raise ValueError(f"{file} does not describe GLM-4V-9B's decoder: {said}")
    rope = {"rope_type": "default", "rope_theta": BASE * numbers["rope_ratio"], "partial_rotary_factor": PARTIAL}
    sizes: dict[str, Any] = {ours: config[theirs] for ours, theirs in SIZES.items()}
    try:
        return GlmConfig(
            **sizes,
            pad_token_id=config.get("pad_token_id"),
            eos_token_id=config.get("eos_token_id"),
            rms_norm_eps=numbers["layernorm_epsilon"],
            rope_parameters=rope,
            attention_bias=True,
        )
    except StrictDataclassError as error:
        raise ValueError(f"{file} does not describe GLM-4V-9B's decoder: {in_short(error)}") from None


def original_config(config: GlmConfig) -> dict[str, Any]:
    """The same configuration in ChatGLM's words. Raises ValueError where it has none for it."""
    rope: Any = config.rope_parameters
    theta, partial = rope["rope_theta"], rope.get("partial_rotary_factor", 1.0)
    odd = {"rope_type": rope.get("rope_type", "default"), "partial_rotary_factor": partial}
    odd |= {"attention_bias": config.attention_bias, "tie_word_embeddings": config.tie_word_embeddings}
    odd |= {"hidden_act": config.hidden_act}
    plain = {"rope_type": "default", "partial_rotary_factor": PARTIAL, "attention_bias": True}
    plain |= {"tie_word_embeddings": False, "hidden_act": "silu"}
    if wrong := [f"{name} = {brief(odd[name])}" for name in odd if odd[name] != plain[name]]:
        raise ValueError(f"the decoder is none that GLM-4V-9B could have: {', '.join(wrong)}")
    ratio = theta / BASE
    tokens = {name: getattr(config, name) for name in ("pad_token_id", "eos_token_id")}
    return {
        **{theirs: getattr(config, ours) for ours, theirs in SIZES.items()},
        **FIXED,
        **tokens,
        "layernorm_epsilon": config.rms_norm_eps,
        "rope_ratio": int(ratio) if ratio == int(ratio) else ratio,
    }


def decoder_moves(config: GlmConfig) -> list[Move]:
    sizes: Any = config
    d, mlp, vocab = sizes.hidden_size, sizes.intermediate_size, sizes.vocab_size
    q, kv = sizes.num_attention_heads * sizes.head_dim, sizes.num_key_value_heads * sizes.head_dim
    moves = [same(PREFIX + "embedding.word_embeddings.weight", OURS + "model.embed_tokens.weight", (vocab, d))]
    for i in range(sizes.num_hidden_layers):
        theirs, ours = f"{PREFIX}encoder.layers.{i}.", f"{OURS}model.layers.{i}."
        for leaf, *columns in (("weight", d), ("bias",)):
            rows = zip("qkv", (q, kv, kv), strict=True)
            parts = [Slot(f"{ours}self_attn.{part}_proj.{leaf}", (size, *columns)) for part, size in rows]
            moves.append(split(Slot(f"{theirs}self_attention.query_key_value.{leaf}", (q + 2 * kv, *columns)), parts))
        moves += [
            same(theirs + "self_attention.dense.weight", ours + "self_attn.o_proj.weight", (d, q)),
            same(theirs + "mlp.dense_h_to_4h.weight", ours + "mlp.gate_up_proj.weight", (2 * mlp, d)),
            same(theirs + "mlp.dense_4h_to_h.weight", ours + "mlp.down_proj.weight", (d, mlp)),
            *(same(f"{theirs}{norm}.weight", f"{ours}{norm}.weight", (d,)) for norm in NORMS),
        ]
    return [
        *moves,
        same(PREFIX + "encoder.final_layernorm.weight", OURS + "model.norm.weight", (d,)),
        same(PREFIX + "output_layer.weight", OURS + "lm_head.weight", (vocab, d)),
    ]


NORMS = ("input_layernorm", "post_attention_layernorm")


def frequencies(config: GlmConfig, dtype: torch.dtype) -> Float[Tensor, " pairs"]:
    """The original's buffer, by its own steps in its own precision; rope_ratio does not enter it."""
    sizes: Any = config
    channels = int(sizes.head_dim * PARTIAL)
    return 1.0 / (BASE ** (torch.arange(0, channels, 2).to(dtype) / channels))
