"""A video language model in plain PyTorch with a compressor of the zoo in it.

    python examples/plain_vlm.py                            # te_fusion, k = 4
    python examples/plain_vlm.py kangaroo --k 2 --steps 100

A square moves left, right, up or down; the model is asked where to. Everything but `create_compressor` and the three
places where its hooks are called is this file's own: a tower, a projector, a decoder. Ten seconds on one core.
"""

import argparse

import torch
from einops import rearrange
from torch import Tensor, nn

from tefusion.compressors import COMPRESSORS, Clip, create_compressor

SIDE, PATCH, WIDTH, EMBED, HEADS, DEPTH = 16, 4, 32, 48, 4, 2
GRID = (SIDE // PATCH, SIDE // PATCH)
QUESTION, ANSWERS = 0, {"left": 1, "right": 2, "up": 3, "down": 4}


class Block(nn.Module):
    """(rows, frames, tokens, width) -> the same: a row is one sequence, whatever number of frames it holds."""

    def __init__(self, width: int):
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(width), nn.MultiheadAttention(width, HEADS, batch_first=True)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        sequence = x.flatten(1, 2)
        seen = self.norm(sequence)
        sequence = sequence + self.attention(seen, seen, seen, attn_mask=mask, need_weights=False)[0]
        return (sequence + self.mlp(sequence)).unflatten(1, x.shape[1:3])


class Merge(nn.Module):
    """2x2 patches of `frames` frames, side by side on the channels, become one token."""

    def __init__(self, frames: int):
        super().__init__()
        self.map = nn.Linear(4 * frames * WIDTH, EMBED)

    def forward(self, x: Tensor) -> Tensor:
        return self.map(rearrange(x, "... (h p) (w q) d -> ... h w (p q d)", p=2, q=2))


class Projector(nn.Module):
    """Features -> what the decoder reads, in the two halves that compressors may use apart."""

    def __init__(self, frames: int):
        super().__init__()
        self.merge = Merge(frames)
        self.glu = nn.Sequential(nn.GELU(), nn.Linear(EMBED, EMBED))

    def forward(self, x: Tensor) -> Tensor:
        return self.glu(self.merge(x))


class VideoLanguageModel(nn.Module):
    def __init__(self, name: str, k: int):
        super().__init__()
        self.compressor = create_compressor(
            name, k=k, width=WIDTH, embed_dim=EMBED, depth=DEPTH, heads=HEADS, grid=GRID
        )
        self.patches = nn.Conv2d(3 * self.compressor.in_frames, WIDTH, PATCH, PATCH)
        self.places = nn.Parameter(0.5 * torch.randn(GRID[0] * GRID[1], WIDTH))
        self.blocks = nn.ModuleList(Block(WIDTH) for _ in range(DEPTH))
        self.norm = nn.LayerNorm(WIDTH)
        self.projector = Projector(self.compressor.out_frames)
        self.words = nn.Embedding(1 + len(ANSWERS), EMBED)
        self.decoder = nn.ModuleList(Block(EMBED) for _ in range(2))
        self.head = nn.Linear(EMBED, 1 + len(ANSWERS))

    def embeds(self, video: Tensor) -> Tensor:
        """(videos, frames, 3, height, width) -> (videos, tokens, embed)"""
        groups, left = divmod(video.shape[1], self.compressor.k)
        if left:
            raise ValueError(f"{video.shape[1]} frames do not divide into groups of k = {self.compressor.k}")
        seconds = torch.arange(video.shape[1], device=video.device) / 8  # when each frame is shown
        clip = Clip(*GRID, seconds=seconds.expand(len(video), -1))
        x = self.compressor.pixels(video)  # before the encoder
        if x.shape[-2:] != video.shape[-2:]:
            raise ValueError("this method shows frames of another size, for which this tower has no places")
        s = x.shape[1]
        x = self.patches(x.flatten(0, 1)).flatten(2).transpose(1, 2) + self.places
        x = rearrange(x, "(b s) n d -> b s n d", s=s)
        x = self.compressor.encode(x, self.blocks, clip)  # inside: it runs the blocks, on frames or on groups
        x = rearrange(self.norm(x), "b (g j) (h w) d -> b g j h w d", g=groups, h=GRID[0])
        x = self.compressor.project(x, self.projector, clip)  # after
        return x.flatten(1, 3)

    def forward(self, video: Tensor, question: Tensor) -> Tensor:
        """Logits of the word that follows the question, (videos, words)"""
        x = torch.cat([self.embeds(video), self.words(question)], 1)
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)  # True: not seen
        for block in self.decoder:
            x = block(x[:, None], mask)[:, 0]
        return self.head(x[:, -1])


def clips(count: int, frames: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Videos and the words that say where their squares go. Two pixels a frame, in a world without edges."""
    answers = torch.randint(1, 1 + len(ANSWERS), (count,), generator=generator)
    way = torch.tensor([[0, 0], [0, -1], [0, 1], [-1, 0], [1, 0]])[answers]
    start = torch.randint(SIDE, (count, 1, 2), generator=generator)
    corner = start + 2 * torch.arange(frames)[None, :, None] * way[:, None]
    away = (torch.arange(SIDE) - corner[..., None]) % SIDE  # (videos, frames, 2, side)
    inside = (away < SIDE // 2).float()
    picture = rearrange(inside[:, :, 0], "b t h -> b t 1 h 1") * rearrange(inside[:, :, 1], "b t w -> b t 1 1 w")
    return 2 * picture.expand(-1, -1, 3, -1, -1) - 1, answers


def main(words: list[str] | None = None) -> float:
    """Trains, and returns the accuracy on new videos."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("compressor", nargs="?", default="te_fusion", help=", ".join(COMPRESSORS))
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--steps", type=int, default=60)
    chosen = parser.parse_args(words)
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    try:
        model = VideoLanguageModel(chosen.compressor, chosen.k)
        video, answers = clips(64, chosen.frames, generator)
        tokens = model.embeds(video).shape[1]
    except ValueError as error:
        parser.error(str(error))
    print(f"{chosen.compressor}, k = {chosen.k}: {chosen.frames} frames are {tokens} tokens")
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    question = torch.full((64, 1), QUESTION)
    for step in range(1, chosen.steps + 1):
        video, answers = clips(64, chosen.frames, generator)
        loss = nn.functional.cross_entropy(model(video, question), answers)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 0:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    model.eval()
    with torch.no_grad():
        video, answers = clips(512, chosen.frames, generator)
        found = model(video, question[:1].expand(512, 1)).argmax(-1)
    accuracy = (found == answers).float().mean().item()
    print(f"{100 * accuracy:.1f} % of 512 new videos are answered right; chance is 25 %")
    return accuracy


if __name__ == "__main__":
    main()
