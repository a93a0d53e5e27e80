"""One run under Accelerate: build, start from the image stage, train on videos."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs, set_seed
from torch.utils.data import DataLoader, Dataset

from tefusion.compressors import options_of
from tefusion.config import Run, choose
from tefusion.data.examples import Batch, Examples, collate, within_budget
from tefusion.data.motion import vocabulary
from tefusion.data.motion_truth import CHANNELS
from tefusion.data.order import Order
from tefusion.data.prompt import worded
from tefusion.data.question import Question
from tefusion.data.source import Split
from tefusion.decoder import create_decoder
from tefusion.frame_cache import FrameCache
from tefusion.launch import gather, join
from tefusion.objective import VideoObjective
from tefusion.optim import freeze
from tefusion.pruners import create_pruner
from tefusion.stop import leave_to_parent
from tefusion.tokenizer import byte_level_tokenizer
from tefusion.training import Training, fit
from tefusion.video import Decoded, Request, parse_size
from tefusion.vision import create_video_encoder
from tefusion.vlm import VLM

CACHE_BYTES = 20 << 30


def create_vlm(run: Run) -> VLM:
    """The run's model with fresh weights, drawn from its seed."""
    set_seed(run.seed)
    decoder = create_decoder(run.decoder)
    width = decoder.get_input_embeddings().embedding_dim
    options = {name: getattr(run, name) for name in options_of(run.compressor) if hasattr(run, name)}
    encoder = create_video_encoder(run.encoder, run.compressor, run.k, embed_dim=width, **options)
    return VLM(encoder, decoder, load_tokenizer(run.decoder), create_pruner(run.pruner), run.pruned == "always")


def load_tokenizer(decoder: str):
    """The folder's own tokenizer, or a byte-level one for a decoder made from a preset."""
    if Path(decoder).is_dir():
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(decoder, trust_remote_code=False)
    asked = [worded(text, [f"A. {text}"]) for text in vocabulary()]  # each as a question and as an option of one
    return byte_level_tokenizer(asked)


def reader(run: Run, cache: FrameCache, size: tuple[int, int], length: int = 0) -> Callable[[Question], Decoded] | None:
    """question -> its frames as the run samples them; None where the run asks from the text alone."""
    return partial(read_clip, run, cache, size, length) if run.n_input else None


def read_clip(run: Run, cache: FrameCache, size: tuple[int, int], length: int, question: Question) -> Decoded:
    """Clips of a known `length` in frames are decoded whole, once for all cells that want fewer of them."""
    asked = partial(Request, size=size, start=question.start, end=question.end)
    if run.n_input < length:
        whole = cache.decode(question.video, asked(length, "centres"))
        return whole.sampled(run.policy, run.n_input, run.k)
    return cache.decode(question.video, asked(run.n_input, run.policy, multiple_of=run.k))


def accelerator(run: Run, log_with: str = "", folder: Path | None = None) -> Accelerator:
    """One process, or this one among several, as the launcher says; a tracker of local files keeps them in `folder`."""
    if log_with:
        choose("log_with", log_with, [str(name) for name in get_available_trackers()])
    join()
    AcceleratorState._reset_state()  # cells of one process may differ in precision
    made = Accelerator(
        mixed_precision=run.precision,
        log_with=log_with or None,
        project_dir=folder,
        # Text alone leaves the encoder out of the loss, and no auxiliary loss its head.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    made.init_trackers("tefusion", asdict(run))
    return made


def frame_cache(home: Path) -> FrameCache:
    return FrameCache(home / "frames", CACHE_BYTES)


def train_videos(vlm: VLM, split: Split, cache: FrameCache, training: Training) -> None:
    run, accelerator, progress = training.run, training.accelerator, training.progress
    size = parse_size(run.size)
    turned = run.augment and split.targets is not None
    read = reader(run, cache, (max(size),) * 2 if turned else size, split.length)
    examples = Examples(split, read, size, run.seed, turned)
    order = ordered(len(examples), run, accelerator)
    freeze(vlm, run.freeze)
    objective = VideoObjective(vlm, sum(CHANNELS.values()), run.auxiliary if split.targets is not None else 0.0)

    def feed(done: int) -> Iterable[Batch]:
        batches = batched(examples, replace(order, done=done), collate, run.workers)
        return within_budget(batches, len(examples), progress.unread)

    fit(objective, vlm, feed, training)
    progress.unread |= set(gather(sorted(progress.unread)))


def ordered(examples: int, run: Run, accelerator: Accelerator) -> Order:
    ranks = accelerator.process_index, accelerator.num_processes
    return Order(examples, run.batch, run.steps, run.seed, run.accumulate, *ranks)


def batched(examples: Dataset, order: Order, collate: Callable, workers: int = 0) -> DataLoader:
    """The loader draws from a generator of its own: the run's would be elsewhere after a resume."""
    return DataLoader(
        examples,
        batch_sampler=order,
        collate_fn=collate,
        num_workers=workers,
        worker_init_fn=leave_to_parent,
        generator=torch.Generator(),
    )
