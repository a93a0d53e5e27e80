"""What is counted equals what is there; what is measured is a time and a memory."""

import re
from dataclasses import replace

import pytest
import torch
from transformers import GlmForCausalLM

from tefusion.compressors import COMPRESSORS
from tefusion.config import Run
from tefusion.cost import PeakMemory, activations, count, measure
from tefusion.decoder import decoder_config
from tefusion.describe import attention, describe_run, scaled, zoo
from tefusion.tokenizer import byte_level_tokenizer
from tefusion.train import create_vlm
from tefusion.vision import create_video_encoder

TINY = Run(compressor="none", k=1, n_input=8, size="32", encoder="tiny", decoder="tiny")


def run_of(compressor):
    return TINY if compressor == "none" else replace(TINY, compressor=compressor, k=4)


@pytest.mark.parametrize("compressor", COMPRESSORS)
def test_counted_parameters_and_tokens_are_the_real_models(compressor):
    run = run_of(compressor)
    cost, vlm = count(run), create_vlm(run)
    assert cost["params"] == sum(p.numel() for p in vlm.parameters())
    assert cost["encoder_params"] == sum(p.numel() for p in vlm.encoder.parameters())
    assert cost["compressor_params"] == sum(p.numel() for p in vlm.encoder.compressor.parameters())
    assert cost["l_decoder"] == vlm.encoder(torch.zeros(1, 8, 3, 32, 32)).flatten(1, 2).shape[1]
    assert cost["flops"] == cost["encoder_flops"] + cost["compressor_flops"] + cost["prefill_flops"]


def test_flops_follow_the_closed_form():
    """Two operations a multiply-and-add: patch map, then for each block qkv, attention, output and MLP; `none` at
    the tower's own sizes."""
    from tefusion.encoders import PRESETS

    c, cost = PRESETS["tiny"], count(TINY)
    patches = (32 // c.patch_size) ** 2
    n = patches + 1
    block = 2 * n * c.width * 3 * c.width + 2 * 2 * n * n * c.width + 2 * n * c.width**2 + 2 * 2 * n * c.width * c.mlp
    assert cost["encoder_flops"] == 8 * (2 * patches * c.width * 3 * c.patch_size**2 + c.depth * block)


def test_text_alone_costs_no_encoder():
    cost = count(replace(TINY, n_input=0))
    assert (cost["l_decoder"], cost["encoder_flops"], cost["compressor_flops"]) == (0, 0, 0)
    assert 0 < cost["prefill_flops"] < count(TINY)["prefill_flops"]


@pytest.fixture(scope="module")
def glm4v():
    """An encoder's FLOPs at GLM-4V's size, over the plain encoder's: counted, not run."""
    plain = Run(compressor="none", k=1, n_input=16, size="224", encoder="glm4v-9b", decoder="tiny")
    alone = count(plain)["encoder_flops"]
    return lambda compressor, k: count(replace(plain, compressor=compressor, k=k))["encoder_flops"] / alone


@pytest.mark.parametrize(("k", "factor"), [(4, 1.040), (16, 1.201)])
def test_te_fusions_encoder_at_glm4vs_size_costs_what_the_closed_form_says(glm4v, k, factor):
    assert glm4v("te_fusion", k) == pytest.approx(factor, abs=6e-4)


@pytest.mark.parametrize(
    ("compressor", "k", "least", "most"),
    [
        ("te_interleave", 4, 1.009, 1.012),  # every 4th block
        ("te_interleave", 16, 1.045, 1.051),
        ("te_shift", 4, 1.035, 1.040),  # the half groups at both ends are cheaper
        ("te_pyramid", 4, 0.5, 0.52),  # merges at a quarter and a half of the depth
        ("image_grid", 4, 0.249, 0.251),
        ("te_factor", 4, 1.18, 1.2),  # qkv and output map of every block
    ],
)
def test_the_encoder_at_glm4vs_size_costs(glm4v, compressor, k, least, most):
    assert least <= glm4v(compressor, k) <= most


def test_what_training_keeps_is_what_autograd_saves_on_a_cpu():
    run = replace(TINY, n_input=4)
    encoder = create_video_encoder("tiny").requires_grad_(True)
    own, saved = {p.untyped_storage().data_ptr() for p in encoder.parameters()}, {}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        kept = encoder(torch.zeros(1, 4, 3, 32, 32))
    assert kept.requires_grad
    assert activations(run) == pytest.approx(sum(saved.values()), rel=0.1)
    assert activations(replace(run, n_input=0)) == 0


@pytest.mark.parametrize(
    ("compressor", "rows"),
    [
        ("pllava", "17 tokens a row"),
        ("te_fusion", "68 tokens a row"),
        ("te_fusion:readout=registers", "85 tokens a row"),
        ("te_interleave", "17 and 68 tokens a row"),
        ("te_shift", "68 and 34 tokens a row"),
        ("te_pyramid", "17 tokens a row"),
        ("te_factor", "17 and 4 tokens a row"),
        ("te_factor:weights=shared", "17 and 4 tokens a row"),
        ("pvc", "17 and 8 causal tokens a row"),
    ],
)
def test_the_attention_line_says_what_the_encoder_calls(compressor, rows):
    assert attention(replace(TINY, compressor=compressor, k=4), "cpu") == f"sdpa on cpu: {rows}, 4 heads of 16"


def test_a_decoder_in_a_folder_is_counted_without_its_weights(tmp_path):
    GlmForCausalLM(decoder_config("tiny")).save_pretrained(tmp_path)
    byte_level_tokenizer(["Which way?"]).save_pretrained(tmp_path)
    cost = count(replace(TINY, decoder=str(tmp_path)))
    assert cost["params"] == count(TINY)["params"]
    assert cost["prefill_flops"] == count(TINY)["prefill_flops"]


@pytest.mark.parametrize("compressor", ["none", "kangaroo"])
def test_milliseconds_are_positive_and_text_alone_has_none_for_the_encoder(compressor):
    run = run_of(compressor)
    times = measure(create_vlm(run).eval(), run)
    assert set(times) == {"encoder_ms", "compressor_ms", "prefill_ms"}
    assert all(0 < ms < 10_000 for ms in times.values())
    text = measure(create_vlm(run).eval(), replace(run, n_input=0))
    assert (text["encoder_ms"], text["compressor_ms"]) == (0, 0)
    assert text["prefill_ms"] > 0


def test_peak_memory_is_of_what_came_after():
    before = PeakMemory()
    block = torch.ones(64 << 20)  # 256 MB
    with_block = before.read()
    del block
    assert with_block - PeakMemory().read() > 200


def test_describe_says_what_a_run_costs():
    text = describe_run(Run(compressor="te_fusion", k=4, n_input=16, size="32", encoder="tiny", decoder="tiny"))
    lines = dict(line.split(maxsplit=1) for line in text.splitlines() if not line.startswith(" "))
    assert lines["compressor"] == "te_fusion, k = 4, inside the encoder"
    assert lines["frames"] == "16 at 32 px"
    assert "16 (4 groups of 4), and boi and eoi of each group" in text
    assert (
        f"{count(Run(k=4, n_input=16, size='32', encoder='tiny', decoder='tiny'))['params']:,}" in lines["parameters"]
    )
    assert "of the plain encoder's" in text
    assert "MB a video" in lines["memory"]
    assert lines["training"].startswith("300 steps of 64, ")
    longer = describe_run(replace(TINY, compressor="none", k=1, times=2, equal="flops:te_fusion:2:8"))
    assert 487 < int(re.search(r"training +(\d+) steps", longer)[1]) < 600  # its decoder has more to read
    assert "0 (0 groups" in describe_run(replace(TINY, n_input=0))


def test_the_zoos_table_has_a_line_for_each_method():
    text = zoo()
    rows = text.splitlines()
    assert len({row.count("|") for row in rows}) == 1
    assert [row.split("`")[1] for row in rows[2:]] == list(COMPRESSORS)
    fusion, pooled, fewer = (
        next(row for row in rows if f"`{n}`" in row) for n in ("te_fusion", "tpool", "fewer_frames")
    )
    # The merge reads four frames instead of one, positions have four rows; rows of 4 x 197 tokens meet in attention.
    length, block = 197, 24 * 768**2  # and two operations a token, pair and channel, for scores and for values
    work = (block + 4 * 4 * length * 768) / (block + 4 * length * 768)
    more = 3 * 4 * 768 * 768 + 4 * 768
    assert f"| inside | group | yes | 1.11x | {more:+,} |" in fusion
    assert pytest.approx(work, abs=0.015) == 1.11  # the patch map and the projector have no part in it
    assert "| after | group | no |" in pooled
    for name, reach in (("te_shift", "inside | clip"), ("pvc", "inside | past"), ("ssm", "after | clip")):
        assert f"| `{name}` | {reach} |" in text
    assert "| 0 |" in pooled
    assert "| control, before | group | yes | 0.25x | 0 |" in fewer


def test_flops_are_scaled():
    assert [scaled(f) for f in (12, 1.5e6, 2e9, 3.25e12, 7e15, 8.5e20)] == [
        "12 FLOP",
        "1.5 MFLOP",
        "2 GFLOP",
        "3.25 TFLOP",
        "7 PFLOP",
        "850 EFLOP",
    ]
