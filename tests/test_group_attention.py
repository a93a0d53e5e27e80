"""Group attention in every tower: the number it has to give, what it may touch, and that it goes without a trace."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from tiny_towers import TINY, Tiny
from tiny_vlms import TINY_VLMS
from torch import Tensor, nn
from transformers import AttentionInterface

from tefusion.integrations.transformers import TOWERS, group_attention_

TELL_IMAGES = [name for name, build in TINY_VLMS.items() if not build().pictures]  # from videos
CASTS = {"Qwen2-VL", "Qwen2.5-VL", "Qwen3-VL", "GLM-4.1V", "VideoLLaMA3", "DINOv3", "InternVL", "timm EVA"}  # to fp32


@pytest.fixture(params=TINY)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def of(name: str) -> Tiny:
    tiny = TINY[name]()
    tiny.tower.double()
    return tiny


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
    return scores.masked_fill(~mask, -torch.inf).softmax(-1) @ v


def cells(name: str, tiny: Tiny, frames: int, k: int) -> Tensor:
    """Of each token in the order of the tower's attention: the number of its group, -1 where it is padding."""
    groups = torch.arange(frames * tiny.tokens) // (k * tiny.tokens)
    place = torch.arange(frames * tiny.tokens) % tiny.tokens
    hidden = {"SigLIP2": place >= 14, "Idefics3": place % 4 >= 2, "SmolVLM": place % 4 >= 2}
    return groups.masked_fill(hidden[name], -1) if name in hidden else groups


def windows_of(groups: Tensor, frames: int) -> Tensor:
    """Qwen2.5-VL at 6x6 patches, 3x3 merged tokens, windows of 2x2 of those: a number for each group's window."""
    merged = torch.arange(frames * 9) % 9
    window = (merged // 3 // 2) * 2 + merged % 3 // 2
    return groups * 4 + window.repeat_interleave(4)


@contextmanager
def dense(name: str, tiny: Tiny, frames: int, k: int) -> Iterator[dict[str, Any]]:
    """The reference: one sequence of all frames' tokens under a dense block-diagonal mask, in the untouched tower."""
    groups = cells(name, tiny, frames, k)
    same = groups[:, None] == groups[None]
    seen = same & (groups >= 0)[None] | torch.eye(len(groups), dtype=torch.bool)
    if name == "Qwen2.5-VL":
        yield from dense_windows(tiny, groups, frames)
        return

    def attend(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
        long = [x.transpose(0, 1).flatten(1, 2)[None] for x in (q, k, v)]
        out = sdpa(*long, seen)[0].unflatten(1, (q.shape[0], -1))
        return out.permute(1, 2, 0, 3), None

    if name.startswith("timm"):
        before = F.scaled_dot_product_attention
        F.scaled_dot_product_attention = lambda q, k, v, **_: attend(None, q, k, v)[0].transpose(1, 2)  # type: ignore
        try:
            yield {}
        finally:
            F.scaled_dot_product_attention = before
        return
    AttentionInterface.register("dense_reference", attend)
    with implementation(tiny.tower, "dense_reference"):
        total = torch.tensor([0, frames * tiny.tokens], dtype=torch.int32)
        yield {"cu_seqlens": total} if "grid_thw" in tiny.inputs(tiny.random(frames)) else {}


def dense_windows(tiny: Tiny, groups: Tensor, frames: int) -> Iterator[dict[str, Any]]:
    full, windows = groups, windows_of(groups, frames)
    order = torch.randperm(len(groups) // 4, generator=torch.Generator().manual_seed(3))  # any order will do
    tokens = (order[:, None] * 4 + torch.arange(4)).flatten()
    wide = {id(tiny.tower.blocks[index].attn) for index in tiny.tower.fullatt_block_indexes}

    def attend(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
        groups = (full if id(module) in wide else windows)[tokens]
        return sdpa(q, k, v, groups[:, None] == groups[None]).transpose(1, 2), None

    AttentionInterface.register("dense_reference", attend)
    with implementation(tiny.tower, "dense_reference"):
        total = torch.tensor([0, len(groups)], dtype=torch.int32)
        yield {"cu_seqlens": total, "cu_window_seqlens": total, "window_index": order}


@contextmanager
def implementation(tower: nn.Module, name: str) -> Iterator[None]:
    before, tower.config._attn_implementation_internal = tower.config._attn_implementation_internal, name
    try:
        yield
    finally:
        tower.config._attn_implementation_internal = before


def ordered(name: str, tiny: Tiny, frames: Tensor, **more: Any) -> Tensor:
    """(frames, numbers), without padding, in the order of the frames."""
    output = tiny.tower(**tiny.inputs(frames), **more)
    if name == "Qwen2.5-VL":  # its last hidden state lies in the order of its windows
        return output.pooler_output.reshape(len(frames), -1)
    features = output if isinstance(output, Tensor) else output.last_hidden_state
    features = features.reshape(len(frames), -1, features.shape[-1])
    padded = cells(name, tiny, 1, 1) < 0
    return (features[:, ~padded] if padded.any() else features).flatten(1)


def gradients(tower: nn.Module, features: Tensor) -> list[Tensor]:
    parameters = [p for p in tower.parameters() if p.requires_grad]
    found = torch.autograd.grad(features.square().sum(), parameters, allow_unused=True)
    return [g for g in found if g is not None]


def close(a: Tensor, b: Tensor, tolerance: float) -> None:
    assert (a - b).norm() <= tolerance * b.norm()


def test_one_frame_is_the_untouched_tower(name):
    tiny = of(name)
    frames = tiny.random(4)
    before = ordered(name, tiny, frames)
    gradients_before = gradients(tiny.tower, before)
    with group_attention_(tiny.tower, 1):
        after = ordered(name, tiny, frames)
        assert torch.equal(before, after)
        assert all(map(torch.equal, gradients_before, gradients(tiny.tower, after)))


@pytest.mark.parametrize("k", [2, 4])
def test_equals_the_dense_block_diagonal_mask(name, k):
    tiny = of(name)
    frames = tiny.random(4)
    with dense(name, tiny, 4, k) as more:
        expected = ordered(name, tiny, frames, **more)
        expected_gradients = gradients(tiny.tower, expected)
    alone = ordered(name, tiny, frames)
    tolerance = 1e-6 if name in CASTS else 1e-10
    with group_attention_(tiny.tower, k):
        found = ordered(name, tiny, frames)
        close(found, expected, tolerance)
        for a, b in zip(gradients(tiny.tower, found), expected_gradients, strict=True):
            assert (a - b).norm() <= tolerance * max(1.0, float(b.norm()))
    assert (found - alone).norm() > 1e-3 * alone.norm()


def test_a_frame_changes_its_own_group_only(name):
    tiny = of(name)
    frames = tiny.random(6)
    changed = frames.clone()
    changed[3] += 1
    with torch.no_grad(), group_attention_(tiny.tower, 2):
        difference = (ordered(name, tiny, frames) != ordered(name, tiny, changed)).any(1)
    assert difference.tolist() == [False, False, True, True, False, False]


def test_undo_leaves_no_trace(name):
    tiny = of(name)
    frames = tiny.random(4)
    before, state = ordered(name, tiny, frames), list(tiny.tower.state_dict())
    attributes = [set(module.__dict__) for module in tiny.tower.modules()]
    group = group_attention_(tiny.tower, 2)
    assert not torch.equal(before, ordered(name, tiny, frames))
    assert list(tiny.tower.state_dict()) == state
    group.undo()
    group.undo()
    assert torch.equal(before, ordered(name, tiny, frames))
    assert [set(module.__dict__) for module in tiny.tower.modules()] == attributes
    group_attention_(tiny.tower, 2).undo()


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_gives_the_same_gradients(name, reentrant):
    tiny = of(name)
    tiny.tower.train()
    if name == "timm EVA" and reentrant:
        pytest.skip("timm passes its rotation by name, which this kind of checkpointing refuses")
    frames = tiny.random(4).requires_grad_()
    with group_attention_(tiny.tower, 2):
        torch.manual_seed(0)  # DINOv3 jitters its rotation while it is trained
        expected = gradients(tiny.tower, ordered(name, tiny, frames))
        torch.manual_seed(0)
        if name.startswith("timm"):
            timm.layers.set_reentrant_ckpt(reentrant)
            tiny.tower.set_grad_checkpointing(True)
        else:
            tiny.tower.gradient_checkpointing_enable({"use_reentrant": reentrant})
        features = ordered(name, tiny, frames)
        features.square().sum().backward()
    found = [p.grad for p in tiny.tower.parameters() if p.grad is not None]
    timm.layers.set_reentrant_ckpt(False)
    for a, b in zip(found, expected, strict=True):
        assert (a - b).norm() <= 1e-9 * max(1.0, float(b.norm()))


def test_a_copy_is_grouped_too(name):
    tiny = of(name)
    frames = tiny.random(4)
    group_attention_(tiny.tower, 2)
    twin = Tiny(copy.deepcopy(tiny.tower), tiny.inputs, tiny.frame, tiny.tokens)
    with torch.no_grad():
        for parameter in tiny.tower.parameters():
            parameter.zero_()
        assert ordered(name, twin, frames).abs().sum() > 0


def test_bad_input(name):
    tiny = of(name)
    group = group_attention_(tiny.tower, 4)
    with pytest.raises(ValueError, match=r"6 (frames|time steps) do not divide into groups of k = 4"):
        ordered(name, tiny, tiny.random(6))
    with pytest.raises(ValueError, match="already has groups of k = 4"):
        group_attention_(tiny.tower, 2)
    group.undo()


@pytest.mark.parametrize("k", [0, -1, True, 2.0, "2", 257])
def test_refused_group_sizes(k):
    with pytest.raises(ValueError, match="k must be one of 1 to 256"):
        group_attention_(TINY["SigLIP"]().tower, k)


def test_an_unknown_model_is_told_what_was_looked_for():
    with pytest.raises(ValueError, match=r"Linear is no vision tower .*looked for .*SiglipVisionModel"):
        group_attention_(nn.Linear(2, 2), 2)


def test_every_adapter_is_tested():
    kinds = {type(build().tower).__name__ for build in TINY.values()}
    assert kinds == set(TOWERS)


def test_frames_of_a_group_have_one_size_where_the_tower_needs_it():
    tiny = of("GLM-4.1V")
    frames = torch.randn(16 + 24, 6 * 16, dtype=torch.float64)
    with group_attention_(tiny.tower, 2), pytest.raises(ValueError, match="different sizes"):
        tiny.tower(hidden_states=frames, grid_thw=torch.tensor([[1, 4, 4], [1, 4, 6]]))


def test_videos_of_two_sizes_and_an_image_in_one_packed_call():
    for name in ("Qwen2-VL", "Qwen2.5-VL", "Qwen3-VL"):
        tower = of(name).tower
        grids = [[4, 4, 4], [1, 6, 4], [2, 6, 6]]
        parts = [torch.randn(t * h * w, 96, dtype=torch.float64) for t, h, w in grids]
        with torch.no_grad(), group_attention_(tower, 2):
            together = tower(torch.cat(parts), torch.tensor(grids)).pooler_output
            alone = [tower(x, torch.tensor([grid])).pooler_output for x, grid in zip(parts, grids, strict=True)]
        close(together, torch.cat(alone), 1e-6)
        with torch.no_grad():
            image = tower(parts[1], torch.tensor([grids[1]])).pooler_output
        assert torch.equal(image, alone[1])


@pytest.mark.heavy
def test_compiled(name):
    tiny = TINY[name]()
    frames = tiny.random(4, torch.float32)
    with torch.no_grad(), group_attention_(tiny.tower, 2):
        expected = ordered(name, tiny, frames)
        compiled = Tiny(torch.compile(tiny.tower, backend="eager"), tiny.inputs, tiny.frame, tiny.tokens)
        close(ordered(name, compiled, frames), expected, 1e-5)


@pytest.mark.parametrize("name", TELL_IMAGES)
def test_inside_generate_videos_are_grouped_and_images_are_not(name):
    tiny = TINY_VLMS[name]()
    batch, image = tiny.batch([[4], [4]]), tiny.batch([], image=True)
    settings = {"max_new_tokens": 3, "do_sample": False, "output_scores": True, "return_dict_in_generate": True}
    before, alone = tiny.model.generate(**batch, **settings), tiny.model.generate(**image, **settings)
    with group_attention_(tiny.model, 2):
        grouped = tiny.model.generate(**batch, **settings)
        assert not torch.equal(before.scores[0], grouped.scores[0])
        assert torch.equal(alone.scores[0], tiny.model.generate(**image, **settings).scores[0])
        if not tiny.one_token:  # a video and an image in one batch
            mixed = tiny.model.generate(**tiny.batch([[4]], image=True), **settings)
            video = tiny.model.generate(**tiny.batch([[4]]), **settings)
            for row, one in zip(mixed.scores[0], (video.scores[0][0], alone.scores[0][0]), strict=True):
                close(row, one, 1e-4)
        with pytest.raises(ValueError, match=r"3 .* (do|does) not divide into groups of k = 2"):
            tiny.model(**tiny.batch([[3]]))
    assert torch.equal(before.scores[0], tiny.model.generate(**batch, **settings).scores[0])


def test_inside_ddp(name, tmp_path):
    tiny = of(name)
    frames = tiny.random(4)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        with group_attention_(tiny.tower, 2):
            expected = ordered(name, tiny, frames)
            gradients_expected = gradients(tiny.tower, expected)
            wrapped = nn.parallel.DistributedDataParallel(tiny.tower, find_unused_parameters=True)
            found = ordered(name, Tiny(wrapped, tiny.inputs, tiny.frame, tiny.tokens), frames)
            found.square().sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    assert torch.equal(found, expected)
    found = [p.grad for p in tiny.tower.parameters() if p.grad is not None and p.grad.any()]
    for a, b in zip(found, [g for g in gradients_expected if g.any()], strict=True):
        close(a, b, 1e-9)
