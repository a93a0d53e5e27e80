"""A model's own processor that writes the prompts of the compressed model."""

from typing import Any

from tefusion.integrations.transformers.compress_video import CompressedVideo


def compress_processor_(processor: Any, compressed: CompressedVideo) -> Any:
    """Every call of `processor`, `apply_chat_template` included, gives as many placeholders as the compressed videos
    have tokens. In place; the class keeps its name, so that what is saved is the model's own processor."""
    kind = type(processor)
    if hasattr(kind, "compressed_from"):
        raise ValueError(f"this {kind.__name__} writes a compressed model's prompts already")

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        batch = kind.__call__(self, *args, **kwargs)
        tokenizer = self.tokenizer
        pad = 0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        batch.update(compressed.shorten(batch, pad, tokenizer.padding_side == "left"))
        return batch

    processor.__class__ = type(kind.__name__, (kind,), {"__call__": call, "compressed_from": kind})
    return processor
