"""Modules of compressors against public implementations of the same, with the same weights."""

import pytest
import torch
from contract import perturb
from einops import rearrange

from tefusion.compressors.qformer import QFormerLayer
from tefusion.compressors.regstage import RegStage
from tefusion.compressors.resampler3d import Reader


def near(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def fill(theirs, ours):
    """`ours` by their names; matrices become 1x1 convolutions where theirs are."""
    state = theirs.state_dict()
    filled = {name: ours.get(name, torch.zeros(0)) for name in state}
    theirs.load_state_dict({name: tensor.reshape(state[name].shape) for name, tensor in filled.items()})


@pytest.mark.parametrize("width_in", [16, 24])
@torch.no_grad()
def test_regstage_is_timms(width_in):
    from timm.layers import LayerNorm2d
    from timm.models.regnet import RegStage as Timm

    ours = perturb(RegStage(2, width_in, 24))
    theirs = Timm(2, width_in, 24, stride=1, dilation=1, act_layer=torch.nn.SiLU, norm_layer=LayerNorm2d)
    names = {"conv1": "conv1.conv", "norm1": "conv1.bn", "conv2": "conv2.conv", "norm2": "conv2.bn"}
    names |= {
        "conv3": "conv3.conv",
        "norm3": "conv3.bn",
        "shortcut.0": "downsample.conv",
        "shortcut.1": "downsample.bn",
    }
    state = {}
    for name, tensor in ours.state_dict().items():
        block, _, rest = name.partition(".")
        part, _, leaf = rest.rpartition(".")
        state[f"b{int(block) + 1}.{names.get(part, part)}.{leaf}"] = tensor
    fill(theirs, state)
    x = torch.randn(3, 5, 4, width_in)
    near(ours(x), rearrange(theirs.eval()(rearrange(x, "r h w c -> r c h w")), "r c h w -> r h w c"))


@torch.no_grad()
def test_reader_is_perceivers_cross_attention():
    from transformers.models.perceiver.modeling_perceiver import PerceiverConfig, PerceiverLayer

    ours = perturb(Reader(32, 24, heads=4))
    theirs = PerceiverLayer(
        PerceiverConfig(hidden_act="gelu"), is_cross_attention=True, qk_channels=32, v_channels=32, num_heads=4,
        q_dim=32, kv_dim=24, widening_factor=4,
    ).eval()  # fmt: skip
    names = {"norm1": "attention.self.layernorm1", "norm2": "attention.self.layernorm2", "norm3": "layernorm"}
    names |= {"query": "attention.self.query", "key": "attention.self.key", "value": "attention.self.value"}
    names |= {"out": "attention.output.dense", "mlp.0": "mlp.dense1", "mlp.2": "mlp.dense2"}
    state = {}
    for name, tensor in ours.state_dict().items():
        part, _, leaf = name.rpartition(".")
        state[f"{names[part]}.{leaf}"] = tensor
    fill(theirs, state | {"attention.self.key.bias": torch.randn(32)})  # which the softmax cancels
    x, read = torch.randn(2, 5, 32), torch.randn(2, 9, 24)
    near(ours(x, read, torch.zeros_like(read)), theirs(x, inputs=read)[0])


@torch.no_grad()
def test_qformers_layer_is_blip2s():
    from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerConfig, Blip2QFormerLayer

    config = Blip2QFormerConfig(
        hidden_size=32, num_attention_heads=4, intermediate_size=128, encoder_hidden_size=32,
        cross_attention_frequency=1, attn_implementation="eager",
    )  # fmt: skip
    ours, theirs = perturb(QFormerLayer(32, 4)), Blip2QFormerLayer(config, 0).eval()
    parts = {"query": "attention.query", "key": "attention.key", "value": "attention.value", "out": "output.dense"}
    names = {f"attention.{part}": f"attention.{their}" for part, their in parts.items()}
    names |= {f"cross.{part}": f"crossattention.{their}" for part, their in parts.items()}
    names |= {"mlp.0": "intermediate_query.dense", "mlp.2": "output_query.dense"}
    names |= {"norm1": "attention.output.LayerNorm", "norm2": "crossattention.output.LayerNorm"}
    names |= {"norm3": "output_query.LayerNorm"}
    state = theirs.state_dict()
    for name, tensor in ours.state_dict().items():
        part, _, leaf = name.rpartition(".")
        state[f"{names[part]}.{leaf}"] = tensor
    theirs.load_state_dict(state)
    x, keys = torch.randn(2, 5, 32), torch.randn(2, 9, 32)
    said = theirs(hidden_states=x, encoder_hidden_states=keys, query_length=5)
    near(ours(x, keys), said if isinstance(said, torch.Tensor) else said[0])
