"""Embeds + question -> answer: a video encoder in front of any Hugging Face decoder.

A group of frames is one image block of GLM-4V-9B: boi, m embeds that share a position, eoi. The block is spliced in as
embeddings and never as text, so a question may contain any token's name.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from tefusion.pruners import Pruner
from tefusion.vision import VideoEncoder, pixels

Seconds = Sequence[Float[Tensor, " _t"] | None] | None  # when the frames of each video are shown; None: unknown
IGNORED = -100  # the label that the loss leaves out
TEXTS = 4096  # whose tokens are remembered: training asks the same questions again


@dataclass(frozen=True)
class Reply:
    """`logits` predict `labels`, the answer's tokens (left-padded with -100); `embeds` holds one (g, m, e) a video."""

    logits: Float[Tensor, "b n vocab"]
    labels: Int[Tensor, "b n"]
    embeds: list[Float[Tensor, "_g _m e"] | None]

    @property
    def loss(self) -> Float[Tensor, ""]:
        return F.cross_entropy(self.logits.flatten(0, 1).float(), self.labels.flatten(), ignore_index=IGNORED)


@dataclass(frozen=True)
class Spliced:
    """Left-padded decoder input: the last position of every row is the end of its text."""

    embeds: Float[Tensor, "b l e"]
    mask: Int[Tensor, "b l"]
    positions: Int[Tensor, "b l"]


def stacked(seconds: Seconds, device: torch.device) -> Float[Tensor, "b t"] | None:
    """Those of videos of one length; None where they are unknown of all."""
    known = [shown for shown in seconds or () if shown is not None]
    if not known:
        return None
    if len(known) < len(seconds or ()):
        raise ValueError("seconds must be known of all videos of a shape, or of none")
    return torch.stack(known).to(device)


class VLM(nn.Module):
    decoder: Any  # nn.Module does not know what every decoder of transformers can do

    def __init__(
        self,
        encoder: VideoEncoder,
        decoder: nn.Module,
        tokenizer,
        pruner: Pruner | None = None,
        prunes_training: bool = True,
    ):
        """Without `prunes_training` the pruner acts in eval() alone."""
        super().__init__()
        self.encoder, self.decoder, self.tokenizer = encoder, decoder, tokenizer
        self.pruner, self.prunes_training = pruner or Pruner(), prunes_training
        self._ids = lru_cache(maxsize=TEXTS)(partial(text_ids, tokenizer))
        width = self.decoder.get_input_embeddings().embedding_dim
        self.boi = nn.Parameter(torch.empty(1, width).normal_(std=0.02))
        self.eoi = nn.Parameter(torch.empty(1, width).normal_(std=0.02))

    def forward(
        self,
        videos: list[UInt8[Tensor, "_t _h _w 3"] | None],
        prompts: list[str],
        answers: list[str],
        seconds: Seconds = None,
    ) -> Reply:
        """`None` in place of a video asks from the text alone. Videos of one batch may differ in length and size;
        `seconds` says of each when its frames are shown."""
        return self.reply(self.encode(videos, seconds), prompts, answers)

    def reply(self, embeds: list[Float[Tensor, "_g _m e"] | None], prompts: list[str], answers: list[str]) -> Reply:
        ends = [[*self.ids(answer), self.tokenizer.eos_token_id] for answer in answers]
        spliced = self.splice(embeds, [self.ids(p) + end for p, end in zip(prompts, ends, strict=True)])
        longest = max(map(len, ends))
        logits = self.decode(spliced, longest + 1)[:, :-1]
        labels = [[IGNORED] * (longest - len(end)) + end for end in ends]
        return Reply(logits, torch.tensor(labels, device=logits.device), embeds)

    def likelihoods(
        self,
        videos: list[UInt8[Tensor, "_t _h _w 3"] | None],
        prompts: list[str],
        answers: list[str],
        seconds: Seconds = None,
    ) -> Float[Tensor, "b answers"]:
        """Log-probability of each answer's first token after each prompt: one prefill a question."""
        firsts = [self.ids(answer)[0] for answer in answers]
        if len(set(firsts)) < len(firsts):
            raise ValueError(f"the tokenizer starts two of the answers {', '.join(answers)} with the same token")
        logits = self.decode(self.splice(self.encode(videos, seconds), [self.ids(p) for p in prompts]), 1)[:, -1]
        return logits.float().log_softmax(-1)[:, firsts]

    def generate(
        self,
        videos: list[UInt8[Tensor, "_t _h _w 3"] | None],
        prompts: list[str],
        max_new_tokens: int = 32,
        seconds: Seconds = None,
        **settings: object,
    ) -> list[str]:
        """Replies as text; `settings` go to the decoder's own `generate`."""
        spliced = self.splice(self.encode(videos, seconds), [self.ids(p) for p in prompts])
        self.check_length(spliced.embeds.shape[1] + max_new_tokens)
        ids = self.decoder.generate(
            inputs_embeds=spliced.embeds,
            attention_mask=spliced.mask,
            position_ids=spliced.positions,
            pad_token_id=self.tokenizer.pad_token_id,
            max_new_tokens=max_new_tokens,
            **settings,
        )
        return self.tokenizer.batch_decode(ids, skip_special_tokens=True)

    def tokens_out(self, frames: int, height: int, width: int) -> int:
        """Decoder positions that a video costs, boi and eoi of every group included."""
        return self.embeds_out(frames, height, width) + 2 * self.encoder.groups(frames)

    def embeds_out(self, frames: int, height: int, width: int) -> int:
        """Without boi and eoi: what the pruner leaves."""
        groups = self.encoder.groups(frames)
        return self.pruner.tokens_out(groups, self.encoder.tokens_out(frames, height, width) // groups)

    def ids(self, text: str) -> list[int]:
        return [*self._ids(text)]

    def encode(
        self, videos: list[UInt8[Tensor, "_t _h _w 3"] | None], seconds: Seconds = None
    ) -> list[Float[Tensor, "_g _m e"] | None]:
        """Videos of one shape go through the encoder together."""
        clips = {i: video for i, video in enumerate(videos) if video is not None}
        shapes: dict[tuple[int, ...], list[int]] = {}
        for i, clip in clips.items():
            shapes.setdefault(tuple(clip.shape), []).append(i)
        embeds: list[Tensor | None] = [None] * len(videos)
        for rows in shapes.values():
            stack = torch.stack([clips[i] for i in rows]).to(self.boi.device)
            shown = stacked(seconds and [seconds[i] for i in rows], stack.device)
            for i, embed in zip(rows, self.encoder(pixels(stack).to(self.boi.dtype), shown), strict=True):
                embeds[i] = embed
        return embeds

    def splice(self, embeds: list[Float[Tensor, "_g _m e"] | None], texts: list[list[int]]) -> Spliced:
        """Every row is its video's blocks, then its text. Positions: boi p, its embeds p + 1, eoi p + 2, and on."""
        device = self.boi.device
        ids = torch.tensor(list(chain(*texts)), dtype=torch.long, device=device)
        text_embeds = self.decoder.get_input_embeddings()(ids)
        rows, positions = [], []
        pruner = self.pruner if self.prunes_training or not self.training else Pruner()
        for embed, text in zip(embeds, text_embeds.split([len(t) for t in texts]), strict=True):
            block, place = (text[:0], list[int]())
            if embed is not None:
                block, place = pruner.prune(embed, *blocks(embed.to(text.dtype), self.boi, self.eoi))
            start = place[-1] + 1 if place else 0
            rows.append(torch.cat([block, text]))
            positions.append(place + list(range(start, start + len(text))))
        longest = max(map(len, rows))
        return Spliced(
            pad_sequence(rows, batch_first=True, padding_side="left"),
            torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device),
            torch.tensor([[0] * (longest - len(place)) + place for place in positions], device=device),
        )

    def check_length(self, length: int) -> None:
        check_length(self.decoder.config, length)

    def decode(self, spliced: Spliced, keep: int) -> Float[Tensor, "b keep vocab"]:
        self.check_length(spliced.embeds.shape[1])
        return self.decoder(
            inputs_embeds=spliced.embeds,
            attention_mask=spliced.mask,
            position_ids=spliced.positions,
            logits_to_keep=keep,
            use_cache=False,
        ).logits


def text_ids(tokenizer: Any, text: str) -> list[int]:
    """A question is text throughout, whatever names of tokens it holds."""
    return tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)


def blocks(
    embed: Float[Tensor, "g m e"], boi: Float[Tensor, "1 e"], eoi: Float[Tensor, "1 e"]
) -> tuple[Float[Tensor, "l e"], list[int]]:
    """A video as the decoder reads it: g blocks of boi, m embeds, eoi, and where each stands."""
    g, m, _ = embed.shape
    first, last = repeat(boi.to(embed), "1 e -> g 1 e", g=g), repeat(eoi.to(embed), "1 e -> g 1 e", g=g)
    block = rearrange(torch.cat([first, embed, last], dim=1), "g m e -> (g m) e")
    return block, [3 * i + p for i in range(g) for p in (0, *[1] * m, 2)]


def check_length(config: Any, length: int) -> None:
    """Raises ValueError where a decoder of this configuration has a shorter context."""
    limit = getattr(config, "max_position_embeddings", None)
    if limit and length > limit:
        raise ValueError(f"{length} tokens are {length - limit} more than the decoder's context of {limit}")
