"""What a run costs: tokens, parameters and FLOPs, counted before anything runs; milliseconds and memory, measured."""

import statistics
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from math import prod
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from tefusion.config import Run
from tefusion.video import parse_size
from tefusion.vlm import VLM

PROMPT_TOKENS = 64  # the text that a counted prefill carries beside the video
REPEATS = 15


def count(run: Run) -> dict[str, int]:
    """Decoder tokens of one video (boi and eoi left out), parameters, and FLOPs of one video's forward pass.

    Built on the meta device: a 13 B model costs no memory. A multiply and an add are two operations.
    """
    from tefusion.train import create_vlm

    with torch.device("meta"):
        vlm = create_vlm(run).requires_grad_(False)  # the counter asks what requires a gradient for its function
    height, width = parse_size(run.size)
    visual = run.n_input and vlm.tokens_out(run.n_input, height, width)
    text = torch.empty(1, visual + PROMPT_TOKENS, vlm.boi.shape[-1], device="meta")
    flops = {"encoder_flops": 0, "compressor_flops": 0}
    if run.n_input:
        video = torch.empty(1, run.n_input, 3, height, width, device="meta")
        flops["encoder_flops"], features = counted(lambda: vlm.encoder.encode(video))
        flops["compressor_flops"], _ = counted(lambda: vlm.encoder.project(features))
    flops["prefill_flops"], _ = counted(lambda: prefill(vlm, text))
    return {
        "l_decoder": run.n_input and vlm.embeds_out(run.n_input, height, width),
        "params": sum(p.numel() for p in vlm.parameters()),
        "encoder_params": sum(p.numel() for p in vlm.encoder.parameters()),
        "compressor_params": sum(p.numel() for p in vlm.encoder.compressor.parameters()),
        **flops,
        "flops": sum(flops.values()),
    }


@lru_cache(maxsize=256)
def training_flops(run: Run) -> int:
    """FLOPs of one example, forward and backward, with PROMPT_TOKENS of text; what is frozen costs no gradient of its
    own. The auxiliary heads and the image stage are left out: they are alike for all methods."""
    from tefusion.optim import freeze
    from tefusion.train import create_vlm

    height, width = parse_size(run.size)
    with torch.device("meta"):
        vlm = create_vlm(run)
        video = torch.empty(1, run.n_input, 3, height, width)
        boundaries = run.n_input and vlm.tokens_out(run.n_input, height, width)
        boundaries -= run.n_input and vlm.encoder.tokens_out(run.n_input, height, width)
        text = torch.empty(1, boundaries + PROMPT_TOKENS, vlm.boi.shape[-1], requires_grad=True)
    freeze(vlm, run.freeze)
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: gradients}) as counter:
        embeds = vlm.encoder(video).flatten(1, 2) if run.n_input else text[:, :0]
        prefill(vlm, torch.cat([embeds, text], dim=1)).sum().backward()
    return counter.get_total_flops()


def gradients(grad, x, weight, _bias, _stride, _padding, _dilation, transposed, _more, _groups, wanted, out_shape=None):
    """FLOPs of a convolution's gradients from the shapes; PyTorch's own count takes a weight's gradient for one of all
    groups with all."""
    return 2 * prod(x if transposed else grad) * prod(weight[1:]) * sum(wanted[:2])


def prefill(vlm: VLM, tokens: torch.Tensor) -> torch.Tensor:
    """Logits of the last token, on the meta device."""
    # A mask of four dimensions is used as it is; transformers would look into the values of any other.
    mask = torch.ones(1, 1, tokens.shape[1], tokens.shape[1], dtype=torch.bool, device="meta")
    return vlm.decoder(inputs_embeds=tokens, attention_mask=mask, logits_to_keep=1, use_cache=False).logits


def counted(compute: Callable):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        result = compute()
    return counter.get_total_flops(), result


class FusedAttention(TorchFunctionMode):
    """On the meta device PyTorch would take the unfused attention, which keeps the weights of every pair."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and kwargs.keys() <= {"is_causal", "scale"}:
            return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*args, **kwargs)[0]
        return func(*args, **kwargs)


def activations(run: Run) -> int:
    """Bytes in fp32 that the encoder keeps of one video for a backward pass, parameters left out: what autograd saves,
    counted on the meta device. Attention keeps what fused kernels keep: queries, keys, values, output, sums."""
    from tefusion.vision import create_video_encoder

    if not run.n_input:
        return 0
    with torch.device("meta"):
        encoder = create_video_encoder(run.encoder, run.compressor, run.k)
        video = torch.empty(1, run.n_input, 3, *parse_size(run.size))
    own = {parameter.untyped_storage()._cdata for parameter in encoder.parameters()}
    saved: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            saved[storage._cdata] = storage.nbytes()
        return tensor

    with FusedAttention(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        kept = encoder(video)  # holds the graph, so that no storage is counted twice
    assert kept.requires_grad
    return sum(saved.values())


@torch.no_grad()
def measure(vlm: VLM, run: Run) -> dict[str, float]:
    """Median milliseconds for one video: `encoder_ms` is everything before the compressor's `project`,
    `compressor_ms` all of it, `prefill_ms` the decoder over the video and PROMPT_TOKENS of text."""
    height, width = parse_size(run.size)
    times = {"encoder_ms": 0.0, "compressor_ms": 0.0}
    embeds = None
    if run.n_input:
        video = torch.rand(1, run.n_input, 3, height, width).to(vlm.boi)
        times["encoder_ms"], features = timed(lambda: vlm.encoder.encode(video))
        times["compressor_ms"], embeds = timed(lambda: vlm.encoder.project(features))
    spliced = vlm.splice([None if embeds is None else embeds[0]], [[0] * PROMPT_TOKENS])
    times["prefill_ms"], _ = timed(lambda: vlm.decode(spliced, 1))
    return times


def timed(compute: Callable):
    cuda = torch.cuda.is_available()
    seconds = []
    for _ in range(REPEATS + 2):
        start = time.perf_counter()
        result = compute()
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return 1e3 * statistics.median(seconds[2:]), result


class PeakMemory:
    """The most memory in use since it was made, in MB: of the GPU where there is one, else of this process."""

    def __init__(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        elif sys.platform == "linux":
            with suppress(OSError):  # some containers forbid it: then the mark is the process's, not the cell's
                Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark, which would outlive a cell

    def read(self) -> float:
        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated() / 2**20
        if sys.platform == "linux":
            status = Path("/proc/self/status").read_text()
            return int(status.split("VmHWM:")[1].split()[0]) / 2**10
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
