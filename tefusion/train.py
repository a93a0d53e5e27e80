"""One run under Accelerate: build, start from the image stage, train on videos."""

from collections.abc import Callable, Iterable
from pathlib import Path

from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from torch import nn
from torch.utils.data import DataLoader

from tefusion.compressors import options_of
from tefusion.config import Run
from tefusion.data.examples import Examples, collate
from tefusion.data.motion import vocabulary
from tefusion.data.motion_truth import CHANNELS
from tefusion.data.order import Order
from tefusion.data.question import Question
from tefusion.data.source import Split
from tefusion.decoder import create_decoder
from tefusion.frame_cache import FrameCache
from tefusion.objective import Loss, VideoObjective
from tefusion.optim import freeze, optimizers, schedule
from tefusion.tokenizer import byte_level_tokenizer
from tefusion.video import Decoded, parse_size
from tefusion.vision import create_video_encoder
from tefusion.vlm import VLM

Seen = Callable[[int, Loss], None]  # told of every step
CACHE_BYTES = 20 << 30


def unseen(step: int, loss: Loss) -> None:
    """Nobody watches."""


def create_vlm(run: Run) -> VLM:
    """The run's model with fresh weights, drawn from its seed."""
    set_seed(run.seed)
    decoder = create_decoder(run.decoder)
    width = decoder.get_input_embeddings().embedding_dim
    options = {name: getattr(run, name) for name in options_of(run.compressor) if hasattr(run, name)}
    encoder = create_video_encoder(run.encoder, run.compressor, run.k, embed_dim=width, **options)
    return VLM(encoder, decoder, load_tokenizer(run.decoder))


def load_tokenizer(decoder: str):
    """The folder's own tokenizer, or a byte-level one for a decoder made from a preset."""
    if Path(decoder).is_dir():
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(decoder)
    return byte_level_tokenizer(vocabulary())


def reader(run: Run, cache: FrameCache) -> Callable[[Question], Decoded] | None:
    """question -> its frames as the run samples them; None where the run asks from the text alone."""
    if run.n_input == 0:
        return None
    size = parse_size(run.size)

    def read(question: Question) -> Decoded:
        span = question.start, question.end
        return cache.decode(question.video, run.n_input, run.policy, size, "auto", run.k, *span)

    return read


def accelerator(run: Run, log_with: str = "") -> Accelerator:
    """One process, or this one among several, as the launcher says."""
    AcceleratorState._reset_state()  # cells of one process may differ in precision
    return Accelerator(
        mixed_precision=run.precision, gradient_accumulation_steps=run.accumulate, log_with=log_with or None
    )


def frame_cache(home: Path) -> FrameCache:
    return FrameCache(home / "frames", CACHE_BYTES)


def fit(objective: nn.Module, vlm: VLM, batches: Iterable, run: Run, accelerator: Accelerator, seen: Seen) -> None:
    """`batches` gives run.accumulate of them for each of run.steps."""
    made = [accelerator.prepare(o) for o in optimizers(objective, vlm, run)]
    plans = [schedule(o, run.steps, run.warmup, run.final_lr) for o in made]
    model = accelerator.prepare(objective)
    model.train()
    for micro, batch in enumerate(batches):
        with accelerator.accumulate(model):
            with accelerator.autocast():
                loss = model(batch)
            if not loss.total.isfinite():
                raise FloatingPointError(f"the loss is {loss.total.item()} at step {micro // run.accumulate + 1}")
            accelerator.backward(loss.total)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), run.clip)
            for optimizer in made:
                optimizer.step()
                optimizer.zero_grad()
        if accelerator.sync_gradients:
            for plan in plans:
                plan.step()
            seen(micro // run.accumulate, loss)
    model.eval()


def train_videos(vlm: VLM, run: Run, split: Split, cache: FrameCache, accelerator: Accelerator, seen: Seen) -> int:
    """Returns how many videos could not be read and were left out."""
    examples = Examples(split, reader(run, cache), run.seed, run.augment)
    ranks = accelerator.process_index, accelerator.num_processes
    order = Order(len(examples), run.batch, run.steps, run.seed, run.accumulate, *ranks)
    batches = DataLoader(examples, batch_sampler=order, collate_fn=collate, num_workers=run.workers)
    freeze(vlm, run.freeze)
    objective = VideoObjective(vlm, sum(CHANNELS.values()), run.auxiliary if split.targets is not None else 0.0)
    fit(objective, vlm, batches, run, accelerator, seen)
    return len(examples.bad)
