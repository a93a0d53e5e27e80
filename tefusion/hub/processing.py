"""Text and video files -> what the model takes: frames as it was trained on them, and as many places as they need."""

from collections.abc import Iterator, Sequence
from os import PathLike
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from transformers import BatchFeature, ProcessorMixin

from tefusion.choices import brief
from tefusion.resize import resize
from tefusion.video import Request, decode, parse_size
from tefusion.vision import grid_of, groups_of, pixels

VIDEO = "<|video|>"
QUESTION = "\ue000question\ue000"  # stands for one while a chat template is filled
# For decoders that know no chat: what was asked during training, a question and a line break.
PLAIN_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message.content is string -%}{{ message.content }}"
    "{%- else -%}"
    "{%- for part in message.content -%}"
    "{%- if part.type == 'video' -%}" + VIDEO + "{%- else -%}{{ part.text }}{%- endif -%}"
    "{%- endfor -%}"
    "{%- endif -%}{{ '\\n' }}"
    "{%- endfor -%}"
)


class TEFusionProcessor(ProcessorMixin):
    """`frames` of a file are sampled by `policy` and resized to `size`; frames that come as an array are taken as they
    are, and resized. `frames=0` is a model of the text alone."""

    def __init__(
        self,
        tokenizer=None,
        chat_template: str | None = None,
        frames: int = 16,
        size: str = "32",
        policy: str = "centres",
        k: int = 1,
        patch_size: int = 8,
    ):
        self.frames, self.size, self.policy, self.k, self.patch_size = frames, size, policy, k, patch_size
        if frames:
            self.request()
        super().__init__(tokenizer, chat_template=chat_template)
        self.video_token = VIDEO
        if VIDEO not in tokenizer.get_vocab():
            raise ValueError(f"the tokenizer has no token {VIDEO}: add it, or save it with the model")
        self.video_token_id = tokenizer.convert_tokens_to_ids(VIDEO)

    def request(self) -> Request:
        """What is asked of a video file."""
        return Request(self.frames, self.policy, parse_size(self.size), multiple_of=self.k)

    def __call__(
        self,
        text: str | Sequence[str] | None = None,
        videos: Any = None,
        images: None = None,
        audio: None = None,
        *,
        return_tensors: str | None = "pt",
        padding: bool = True,
        split_special_tokens: bool = False,
        add_special_tokens: bool = False,
    ) -> BatchFeature:
        """`videos` are files or uint8 arrays (t h w 3), one for each `<|video|>` of the texts, in their order.

        `split_special_tokens` reads the names of special tokens in a text as plain text, but for `<|video|>`. Rows are
        padded on the left. Raises ValueError where the texts have more or fewer places than there are videos.
        """
        if images is not None or audio is not None:
            raise ValueError("the model takes text and videos, no images and no audio")
        if text is None:
            raise ValueError("a text is needed, with one <|video|> for each video")
        texts = [text] if isinstance(text, str) else list(text)
        clips, seconds = zip(*map(self.read, flat(videos)), strict=True) if flat(videos) else ([], [])
        parts = [each.split(VIDEO) for each in texts]
        if (places := sum(len(part) - 1 for part in parts)) != len(clips):
            raise ValueError(f"the text has {places} times {VIDEO} for {len(clips)} videos")
        left = iter(clips)
        rows = [self.row(part, left, split_special_tokens, add_special_tokens) for part in parts]
        return self.features(rows, clips, seconds, padding, return_tensors)

    def question(self, text: str, video: Any = None) -> BatchFeature:
        """A question in the chat template's words, with a video before it or none. Names of tokens in it are text."""
        parts = [{"type": "video"}] * (video is not None) + [{"type": "text", "text": QUESTION}]
        asked: Any = [{"role": "user", "content": parts}]
        head, _, tail = str(self.apply_chat_template(asked, add_generation_prompt=True)).partition(QUESTION)
        clips, seconds = ([], []) if video is None else ([each] for each in self.read(video))
        row = self.row(head.split(VIDEO), iter(clips), False, False)
        if any(token in tail for token in self.tokenizer.all_special_tokens):
            row += self.row([text], iter(()), True, False) + self.row([tail], iter(()), False, False)
        else:
            row += self.row([text + tail], iter(()), True, False)  # in one, as training joined them
        return self.features([row], clips, seconds, False, "pt")

    def features(
        self,
        rows: Sequence[Sequence[int]],
        clips: Sequence[torch.Tensor],
        seconds: Sequence[torch.Tensor],
        padding: bool,
        return_tensors: str | None,
    ) -> BatchFeature:
        """What the model takes, of rows of token ids and the videos that stand in them."""
        made = self.tokenizer.pad(
            {"input_ids": rows}, padding=padding, padding_side="left", return_tensors=return_tensors
        )
        features = dict(made)
        if clips:
            features["pixel_values_videos"] = together([pixels(clip) for clip in clips])
            features["video_seconds"] = together(seconds)
        return BatchFeature(features)

    def num_video_tokens(self, frames: int, height: int, width: int) -> int:
        """The places that a video of this size in pixels takes in a text, boi and eoi of each group included."""
        h, w = grid_of(height, width, self.patch_size)
        return groups_of(frames, self.k) * ((h // 2) * (w // 2) + 2)

    def row(
        self, parts: Sequence[str], clips: Iterator[torch.Tensor], split_special_tokens: bool, add_special_tokens: bool
    ) -> list[int]:
        """Token ids of a text that was split where its videos stand."""
        said = [
            self.tokenizer.encode(
                part,
                add_special_tokens=add_special_tokens and i == 0,
                split_special_tokens=split_special_tokens,
            )
            for i, part in enumerate(parts)
        ]
        places = [[self.video_token_id] * self.num_video_tokens(*next(clips).shape[:3]) for _ in parts[1:]]
        return [*said[0], *(i for place, text in zip(places, said[1:], strict=True) for i in (*place, *text))]

    def read(self, video: Any) -> tuple[UInt8[torch.Tensor, "t h w 3"], Float[torch.Tensor, " t"]]:
        """A file as `request` asks for it; frames as they are, at our size, and one a second."""
        if not self.frames:
            raise ValueError("the model was trained on the text alone: it takes no video")
        if isinstance(video, str | PathLike):
            decoded = decode(video, self.request())
            return torch.from_numpy(decoded.frames), torch.tensor(decoded.seconds)
        frames = torch.from_numpy(video) if isinstance(video, np.ndarray) else video
        if not isinstance(frames, torch.Tensor) or frames.dtype != torch.uint8 or frames.shape[3:] != (3,):
            said = f"{frames.dtype} {tuple(frames.shape)}" if isinstance(frames, torch.Tensor) else brief(video)
            raise ValueError(f"a video is a file or uint8 frames (t, h, w, 3), got {said}")
        size, seconds = parse_size(self.size), torch.arange(len(frames), dtype=torch.float32)
        return frames if tuple(frames.shape[1:3]) == size else resize(frames, size), seconds


def together(rows: Sequence[torch.Tensor]) -> torch.Tensor | list[torch.Tensor]:
    """One tensor where all have one shape."""
    return torch.stack(list(rows)) if len({row.shape for row in rows}) == 1 else list(rows)


def flat(videos: Any) -> list[Any]:
    """One list, row by row: chat templates give one list a row."""
    if videos is None:
        return []
    if not isinstance(videos, list | tuple):
        return [videos]
    return [clip for video in videos for clip in flat(video)]
