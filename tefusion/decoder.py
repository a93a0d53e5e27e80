"""The language model behind the encoder: any Hugging Face causal decoder, from a preset's sizes or from a folder."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from tefusion.choices import in_short, listed, nearest

# GLM-4-9B's are MotionBench's (2501.02955, table 5); the others keep its shape at a size that trains on a CPU.
DECODERS: dict[str, dict[str, Any]] = {
    "tiny": {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 192,
        "vocab_size": 512,
    },
    "small": {
        "hidden_size": 256,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "intermediate_size": 768,
        "vocab_size": 512,
    },
    "glm-4-9b": {
        "hidden_size": 4096,
        "num_hidden_layers": 40,
        "num_attention_heads": 32,
        "num_key_value_heads": 2,
        "intermediate_size": 13696,
        "vocab_size": 151552,
    },
}

# Short heads and short texts: with GLM-4's own rotation a small head hardly tells one position from the next.
ROPE = {
    "tiny": {"rope_theta": 100.0, "partial_rotary_factor": 1.0},
    "small": {"rope_theta": 1000.0, "partial_rotary_factor": 1.0},
    "glm-4-9b": {"rope_theta": 10000.0, "partial_rotary_factor": 0.5},
}


def decoder_config(name: str):
    """The `GlmConfig` of a preset."""
    from transformers import GlmConfig

    if name not in DECODERS:
        raise ValueError(f"decoder {name!r} is neither a folder nor a preset{nearest(name, DECODERS)}")
    sizes = DECODERS[name]
    head_dim = sizes["hidden_size"] // sizes["num_attention_heads"]
    rope = {"rope_type": "default", **ROPE[name]}
    return GlmConfig(
        **sizes, rope_parameters=rope, head_dim=head_dim, pad_token_id=0, eos_token_id=1, bos_token_id=None
    )


def config_of(name: str):
    """That of a preset, or of the folder `name`."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(name, trust_remote_code=False) if Path(name).is_dir() else decoder_config(name)


def create_decoder(name: str):
    """A fresh decoder of a preset, or the one that lies in the folder `name` (config.json, safetensors), of which no
    code is run. Raises ValueError in one line where the folder holds none, or not all of it."""
    from transformers import AutoModelForCausalLM

    if not Path(name).is_dir():
        return AutoModelForCausalLM.from_config(decoder_config(name))
    try:
        if torch.get_default_device().type == "meta":
            return AutoModelForCausalLM.from_config(config_of(name))
        made: Any = AutoModelForCausalLM.from_pretrained(
            name, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    except (ValueError, OSError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"decoder {name!r} cannot be loaded: {in_short(error)}") from None
    decoder, loaded = made
    if lost := [*loaded["missing_keys"], *loaded["mismatched_keys"]]:
        raise ValueError(f"decoder {name!r} is not complete: {listed(sorted(map(str, lost)))}")
    return decoder
