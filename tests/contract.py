"""The contract of a compressor. Every check takes `create`, a maker of encoders, and fails on one that breaks it."""

from collections.abc import Callable

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from tefusion.compressors import create_compressor, method_of
from tefusion.compressors.base import run_blocks
from tefusion.encoders import VisionConfig
from tefusion.vision import VideoEncoder, assemble, clip_of, method_for

TINY = {"patch_size": 8, "width": 32, "depth": 2, "heads": 2, "mlp": 64, "embed_dim": 48, "glu": 40}
KS = (1, 2, 3, 4, 6, 8, 16)
SIZES = ((32, 32), (40, 32), (40, 40), (24, 56))  # pixels, down and across: even and odd grids
WIDE = (32, 64)  # large enough that matching tokens in another order also matches others
ROUNDING = 1e-5  # relative, in fp32
HALF = 0.05  # bf16 rounds to 1/256
DEEP = {"stc": 0.08, "stp": 0.08}  # eight bottlenecks in a row: 0.050 at k = 1
IDLE = 1e-13  # in fp64, a gradient below this is rounding
WRONG_KS = (0, -1, True, 4.0, "four", None)


class Sizes(VisionConfig):
    """A frame that is no square: `image_size` is (height, width)."""

    @property
    def grid(self) -> tuple[int, int]:
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size


class Create:
    """`create(k)` is a fresh encoder around the method of this name; one seed, so towers agree between methods."""

    def __init__(self, name: str, encoder: type[VideoEncoder] = VideoEncoder):
        self.name, self.encoder, self.method = name, encoder, method_of(name)

    def ks(self, *among: int) -> list[int]:
        return [k for k in among or KS if k in self.method.valid_k]

    def __call__(self, k: int, size: tuple[int, int] = SIZES[0], depth: int = TINY["depth"]) -> VideoEncoder:
        config = Sizes(image_size=size, **TINY | {"depth": depth})
        torch.manual_seed(0)
        with torch.random.fork_rng(devices=[]):
            compressor = method_for(config, self.name, k)
        made = assemble(config, compressor)
        return self.encoder(made.tower, made.compressor, made.projector, made.scale)

    def perturbed(self, k: int, size: tuple[int, int] = SIZES[0]) -> VideoEncoder:
        return perturb(self(k, size))


@torch.no_grad()
def perturb(module: nn.Module) -> nn.Module:
    """Every parameter moves, so that nothing hides behind a zero."""
    noise = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        parameter.add_(0.2 * torch.randn(parameter.shape, generator=noise))
    return module


def video(frames: int, size: tuple[int, int] = SIZES[0], batch: int = 1, seed: int = 2) -> Tensor:
    return torch.randn(batch, frames, 3, *size, generator=torch.Generator().manual_seed(seed))


def distance(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    assert a.shape == b.shape, f"{tuple(a.shape)} is not {tuple(b.shape)}"
    return ((a - b).abs().max() / b.abs().max()).item()


def refusal(call: Callable) -> str:
    """What the ValueError says; anything else breaks the contract."""
    try:
        call()
    except ValueError as error:
        return str(error)
    except Exception as error:
        raise AssertionError(f"{type(error).__name__} instead of ValueError: {error}") from error
    raise AssertionError("taken without a word")


@torch.no_grad()
def check_tokens(create: Create) -> None:
    """1. (b, t / k, m, e), and `tokens_out` says so before anything runs."""
    for size in SIZES:
        m = (size[0] // 16) * (size[1] // 16)
        for k in create.ks():
            encoder = create(k, size)
            promised = encoder.tokens_out(2 * k, *size)
            shape = tuple(encoder(video(2 * k, size, batch=2)).shape)
            assert shape == (2, 2, m, TINY["embed_dim"]), f"k = {k} at {size} makes {shape}"
            assert promised == 2 * m, f"k = {k} at {size} promises {promised} tokens and makes {2 * m}"


def check_wrong_k(create: Create) -> None:
    """1. What is no group size is refused in one line, with the group sizes there are."""
    valid = create.method.valid_k
    for k in (*WRONG_KS, *(k for k in (2, 5, 257, 1000) if k not in valid)):
        said = refusal(lambda k=k: create_compressor(create.name, k=k, width=32, embed_dim=48, grid=(4, 4)))
        assert repr(k) in said
        assert all(str(end) in said for end in (min(valid), max(valid))), said
        assert "\n" not in said


def reached(reach: str, group: int, groups: int) -> set[int]:
    ends = {
        "group": (group, group),
        "neighbours": (max(group - 1, 0), min(group + 1, groups - 1)),
        "past": (group, groups - 1),
        "clip": (0, groups - 1),
    }
    first, last = ends[reach]
    return set(range(first, last + 1))


@torch.no_grad()
def check_locality(create: Create) -> None:
    """2. A frame changes its own group and nothing outside its reach, to the last bit; where frames are dropped, some
    of every group change it and the others nothing."""
    for k in create.ks(1, 2, 3, 4):
        groups, unseen = 3, 0
        encoder, clip = create.perturbed(k), video(3 * k, batch=2)
        before = encoder(clip)
        for frame in range(groups * k):
            changed = clip.clone()
            changed[0, frame] = -changed[0, frame]
            after = encoder(changed)
            moved = {g for g in range(groups) if not torch.equal(after[0, g], before[0, g])}
            may = reached(create.method.reach, frame // k, groups)
            if create.method.drops_frames and not moved:
                unseen += 1
                continue
            assert frame // k in moved, f"k = {k}: frame {frame} does not change its own group"
            assert moved <= may, f"k = {k}: frame {frame} changes groups {sorted(moved - may)}"
            assert torch.equal(after[1], before[1]), "a video changes another video of the batch"
        most = groups * (k - 1) if create.method.drops_frames else 0
        assert unseen <= most, f"k = {k}: {unseen} of {groups * k} frames change nothing"
        assert unseen or k == 1 or not create.method.drops_frames, f"k = {k}: says that it drops frames"


@torch.no_grad()
def check_one_frame(create: Create) -> None:
    """3. k = 1 is the baseline, bit for bit, unless the method adds a module."""
    encoder, baseline = create(1), perturb(Create("none")(1))
    if encoder.compressor.adds_module:
        return
    weights = {**encoder.state_dict(), **baseline.state_dict()}
    own = {f"compressor.{name}" for name in encoder.compressor.state_dict()}
    assert weights.keys() - own == baseline.state_dict().keys(), "holds weights that are nobody's"
    encoder.load_state_dict(weights)
    clip = video(3, batch=2)
    assert torch.equal(encoder(clip), baseline(clip)), "k = 1 is not the baseline"


def image_model(create: Create, encoder: VideoEncoder, size: tuple[int, int]) -> VideoEncoder:
    """The baseline, or the same module for one frame where a method cannot start as the identity."""
    if encoder.compressor.starts_as_image:
        return Create("none")(1, size)
    one = create(1, size)
    own, weights = one.state_dict(), encoder.state_dict()
    one.load_state_dict({name: weights[name] if weights[name].shape == own[name].shape else own[name] for name in own})
    return one


@torch.no_grad()
def check_still(create: Create) -> None:
    """4. A video that stands still is an image: this is how every method starts."""
    for size in SIZES:
        frames = video(2, size, batch=2)
        if create.method.reach != "group":  # what it sees beyond its group has to stand still as well
            frames = frames[:, :1].expand_as(frames)
        for k in create.ks():
            encoder = create(k, size)
            stills = encoder(repeat(frames, "b g c h w -> b (g k) c h w", k=k))
            gap = distance(stills, image_model(create, encoder, size)(frames))
            if why := encoder.compressor.never_still:
                assert gap > 100 * ROUNDING, f"k = {k} at {size}: a still video is an image, although {why}"
                continue
            assert gap < ROUNDING, f"k = {k} at {size}: a still video is {gap:.1e} away from an image"


@torch.no_grad()
def check_stage(create: Create) -> None:
    """5. The method acts where it says: frames meet in the encoder's blocks if and only if it is `inside`."""
    for k in create.ks(2, 4):
        encoder, clip = create.perturbed(k), video(2 * k)
        seen = encoder.compressor.pixels(clip)
        assert torch.equal(seen, clip) == (create.method.stage != "before"), "pixels changed at another stage"
        x, known = encoder.tower.patchify(seen), clip_of(clip, 2 * k, encoder.grid(*SIZES[0]), None)
        before = encoder.compressor.encode(x, encoder.tower.blocks, known)
        for frame in range(x.shape[1]):
            changed = x.clone()
            changed[:, frame] = changed[:, frame].flip(-1)
            after = encoder.compressor.encode(changed, encoder.tower.blocks, known)
            met = others(before, after, frame, x.shape[1])
            alone = create.method.reach == "past" and frame == x.shape[1] - 1  # nobody comes after it
            meets = create.method.stage == "inside" and not alone
            assert bool(met) == meets, f"frame {frame} meets frames {sorted(met)}"
        if create.method.stage != "inside":
            assert torch.equal(before, run_blocks(x, encoder.tower.blocks)), "the encoder is not the image's"


def others(before: Tensor, after: Tensor, frame: int, frames: int) -> set[int]:
    """The features that changed and are not of the changed frame alone: of merged frames one stands for several."""
    span = frames // before.shape[1]
    changed = {i for i in range(before.shape[1]) if not torch.equal(after[:, i], before[:, i])}
    return changed if span > 1 else changed - {frame}


@torch.no_grad()
def check_order(create: Create) -> None:
    """6. Turning the frames of a group round changes the output if and only if the method says so."""
    for k in create.ks(2, 3, 4, 8):
        encoder, clip = create.perturbed(k, WIDE), video(2 * k, WIDE)
        turned = rearrange(rearrange(clip, "b (g k) c h w -> b g k c h w", k=k).flip(2), "b g k c h w -> b (g k) c h w")
        gap = distance(encoder(turned), encoder(clip))
        if encoder.compressor.order_sensitive:
            assert gap > 100 * ROUNDING, f"k = {k}: claims to see order, and reversal moves it by {gap:.1e}"
        else:
            assert gap < ROUNDING, f"k = {k}: claims not to see order, and reversal moves it by {gap:.1e}"


def check_gradients(create: Create) -> None:
    """7. No parameter idles. In fp64, where a gradient that is zero on paper is rounding far below any other."""
    for k in create.ks(1, 4):
        encoder = create.perturbed(k).double()
        encoder(video(2 * k).double()).square().sum().backward()
        for name, parameter in encoder.named_parameters():
            assert parameter.grad is not None, f"k = {k}: {name} gets no gradient"
            steepest = parameter.grad.abs().max()
            assert steepest.isfinite(), f"k = {k}: {name} gets a gradient that is not finite"
            assert steepest > IDLE, f"k = {k}: {name} gets a gradient of {steepest:.1e} only"


@torch.no_grad()
def check_batch(create: Create) -> None:
    """8. A batch is its videos one by one."""
    for k in create.ks(1, 2, 4):
        encoder, clips = create.perturbed(k), video(2 * k, batch=3)
        alone = torch.cat([encoder(clip[None]) for clip in clips])
        assert distance(encoder(clips), alone) < ROUNDING, f"k = {k}: a batch differs from its videos"


def check_division(create: Create) -> None:
    """9. Frames that do not divide by k are refused with both numbers, whoever asks."""
    for k in create.ks():
        encoder = create(k)
        for frames in {0, 2 * k - 1, 2 * k + 1} - {k, 2 * k, 3 * k}:
            for call in (lambda f=frames, e=encoder: e(video(f)), lambda f=frames, e=encoder: e.tokens_out(f, 32, 32)):
                said = refusal(call)
                assert str(frames) in said, said
                assert str(k) in said, said


@torch.no_grad()
def check_distinct(create: Create, other: Create) -> None:
    """10. With the same weights, as far as shapes agree, two methods are two functions."""
    for k in set(create.ks(2, 4)) & set(other.ks(2, 4)):
        one, two = create.perturbed(k), other.perturbed(k)
        share_weights(one, two)
        one, two = one(video(2 * k)), two(video(2 * k))
        assert distance(one, two) > 100 * ROUNDING, f"{create.name} and {other.name} are one function at k = {k}"


def share_weights(one: nn.Module, two: nn.Module) -> None:
    """Names first, then shapes in order: a copy may have renamed what it holds."""
    left = dict(one.named_parameters())
    for name, parameter in two.named_parameters():
        match = name if name in left and left[name].shape == parameter.shape else None
        same = [other for other, source in left.items() if source.shape == parameter.shape]
        if match or same:
            parameter.copy_(left.pop(match or same[0]))


def gradients(create: Create, k: int, recompute: str | None) -> tuple[Tensor, list[Tensor], int]:
    """Output, every gradient, and how often a block ran."""
    encoder, runs = create.perturbed(k), []
    for block in encoder.tower.blocks:
        block.recompute = recompute
        block.attention.register_forward_hook(lambda *_: runs.append(1))
    y = encoder(video(2 * k))
    y.square().sum().backward()
    return y, [p.grad for p in encoder.parameters()], len(runs)


def check_recompute(create: Create) -> None:
    """11. Both kinds of gradient checkpointing run every block twice and change no gradient."""
    for k in create.ks(1, 4):
        y, kept, runs = gradients(create, k, None)
        for kind in ("reentrant", "non_reentrant"):
            again, computed, twice = gradients(create, k, kind)
            assert twice == 2 * runs, f"{kind}: blocks ran {twice} times instead of {2 * runs}"
            assert torch.equal(again, y)
            for a, b in zip(computed, kept, strict=True):
                assert distance(a, b) < ROUNDING, f"{kind}: another gradient at k = {k}"


def check_bf16(create: Create) -> None:
    """11. In bf16 from end to end, near fp32, gradients finite."""
    for k in create.ks(1, 4):
        encoder, clip = create(k), video(2 * k)
        exact = encoder(clip)
        try:
            y = encoder.bfloat16()(clip.bfloat16())
        except RuntimeError as error:
            raise AssertionError(f"k = {k}: {error}") from error
        assert y.dtype == torch.bfloat16, f"k = {k}: the output is {y.dtype}"
        assert distance(y.float(), exact) < DEEP.get(create.name, HALF), (
            f"k = {k}: {distance(y.float(), exact):.2f} away from fp32"
        )
        y.sum().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in encoder.parameters())


def check_compiles(create: Create) -> None:
    """11. One graph, forward and backward; one block is enough. Run it with JAXTYPING_DISABLE=1."""
    k = create.ks(1, 4)[-1]
    encoder, clip = perturb(create(k, depth=1)), video(2 * k)
    results = []
    for forward in (encoder, torch.compile(encoder, fullgraph=True, backend="aot_eager")):
        try:
            y = forward(clip)
        except torch._dynamo.exc.TorchDynamoException as error:
            raise AssertionError(f"k = {k}: {str(error).splitlines()[0]}") from error
        results.append((y, *torch.autograd.grad(y.sum(), [encoder.tower.patchify.cls])))
    for a, b in zip(*results, strict=True):
        assert distance(a, b) < 10 * ROUNDING, f"k = {k}: compiled, it is another function"
