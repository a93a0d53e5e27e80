"""A model's own processor that writes the prompts of the compressed model."""

from contextvars import ContextVar
from typing import Any

from tefusion.integrations.transformers.compress_video import CompressedVideo
from tefusion.integrations.transformers.hosts import host_of

WRITTEN: ContextVar[list[tuple[str, str]] | None] = ContextVar("written", default=None)  # in the call that is running


def compress_processor_(processor: Any, compressed: CompressedVideo) -> Any:
    """Every call of `processor`, `apply_chat_template` included, gives as many placeholders as the compressed videos
    have tokens. In place; the class keeps its name, so that what is saved is the model's own processor."""
    kind = type(processor)
    if hasattr(kind, "compressed_from"):
        raise ValueError(f"this {kind.__name__} writes a compressed model's prompts already")

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        before = WRITTEN.set([])
        try:
            batch = kind.__call__(self, *args, **kwargs)
            written = WRITTEN.get() or []
        finally:
            WRITTEN.reset(before)
        tokenizer = self.tokenizer
        pad = 0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        visuals = host_of(compressed.owner).written(written, self.image_token)
        batch.update(compressed.shorten(batch, pad, tokenizer.padding_side == "left", visuals))
        return batch

    def replace(self: Any, *args: Any, **kwargs: Any) -> Any:
        text, offsets = kind.get_text_with_replacements(self, *args, **kwargs)
        WRITTEN.set([(visual["type"], visual["replacement"]) for row in offsets for visual in row])
        return text, offsets

    methods = {"__call__": call, "get_text_with_replacements": replace, "compressed_from": kind}
    processor.__class__ = type(kind.__name__, (kind,), methods)
    return processor
