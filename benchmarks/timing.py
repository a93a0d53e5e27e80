"""How long a call takes: a CUDA graph over inputs that together exceed the L2, or a CPU's clock."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

BEYOND = 4  # times the L2 that the rotated inputs fill
REPEATS = 15


class Time(NamedTuple):
    """Microseconds a call: the median and the quartiles over replays; and by which clock."""

    median: float
    low: float
    high: float
    clock: str


def copies(tensor: Tensor) -> list[Tensor]:
    """As many tensors like it, of other numbers, as do not fit into the L2 together; two on a CPU."""
    count = 2
    if tensor.is_cuda:
        l2 = torch.cuda.get_device_properties(tensor.device).L2_cache_size
        count = max(2, math.ceil(BEYOND * l2 / (tensor.numel() * tensor.element_size())))
    return [tensor, *(torch.randn_like(tensor) for _ in range(count - 1))]


def measure(calls: Sequence[Callable[[], object]], device: torch.device) -> Time:
    """The calls in turn, each on its own inputs."""
    if device.type == "cpu":
        return quartiles([seconds_of(calls) / len(calls) for _ in range(REPEATS)], "perf_counter")
    for call in calls:  # compilers and handles first
        call()
    torch.cuda.synchronize()
    replay, clock = captured(calls)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    seconds = []
    for i in range(-3, REPEATS):
        start.record()
        replay()
        end.record()
        end.synchronize()
        if i >= 0:
            seconds.append(start.elapsed_time(end) / 1e3 / len(calls))
    return quartiles(seconds, clock)


def captured(calls: Sequence[Callable[[], object]]) -> tuple[Callable[[], object], str]:
    """One graph of all calls, so that launching costs nothing; what cannot be captured is launched, and so recorded."""
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
            for call in calls:
                call()
    except RuntimeError:
        torch.cuda.synchronize()
        return lambda: [call() for call in calls], "events"
    return graph.replay, "graph"


def seconds_of(calls: Sequence[Callable[[], object]]) -> float:
    start = time.perf_counter()
    for call in calls:
        call()
    return time.perf_counter() - start


def quartiles(seconds: Sequence[float], clock: str) -> Time:
    low, median, high = statistics.quantiles([1e6 * s for s in seconds], n=4)
    return Time(median, low, high, clock)


def peak_mb(call: Callable[[], object], device: torch.device) -> float | None:
    """What a call allocates at most beside its inputs; of a GPU only."""
    if device.type == "cpu":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def ceiling(dtype: torch.dtype, device: torch.device) -> float:
    """TFLOP/s of a large matrix product on random numbers: what the share of an attention is counted against."""
    side = 8192 if device.type == "cuda" else 256
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / measure([lambda: a @ b], device).median / 1e6
