"""A frozen SigLIP tower with a compressor of the zoo: videos -> a safetensors file of compressed features.

    python examples/siglip_features.py clip.mp4 --k 4                                    # a tiny random tower
    python examples/siglip_features.py *.mp4 --model google/siglip-so400m-patch14-384 --out features.safetensors

Each video becomes a tensor (groups, rows, columns, width) under its file's name; the file's metadata tells compressor,
k, tower and frames. Nothing is trained here, so only methods without weights of their own are taken:
te_fusion:readout=mean (group attention in every layer, then the mean), te_pyramid, tome_clip, pllava, tpool.
"""

import argparse
from pathlib import Path

import torch
from einops import rearrange, reduce
from safetensors.torch import save
from torch import Tensor, nn
from transformers import SiglipVisionConfig, SiglipVisionModel

from tefusion.compressors import Clip, Compressor, create_compressor
from tefusion.files import replace_file
from tefusion.sampling import Request
from tefusion.video import VideoError, decode

TINY = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}


class Layer(nn.Module):
    """SigLIP's layer over rows of several frames: (rows, frames, tokens, width) -> the same."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1, 2), None).unflatten(1, x.shape[1:3])


class Merge(nn.Module):
    """Instead of a projector: the mean over 2x2 patches. `glu` is where a trained one would go on."""

    def forward(self, x: Tensor) -> Tensor:
        return reduce(x, "... (h p) (w q) d -> ... h w d", "mean", p=2, q=2)


class Projector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.merge, self.glu = Merge(), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.glu(self.merge(x))


class FeatureExtractor(nn.Module):
    def __init__(self, tower: SiglipVisionModel, name: str, k: int):
        super().__init__()
        config = tower.config
        self.tower, self.size = tower.eval().requires_grad_(False), config.image_size
        self.side = config.image_size // config.patch_size
        self.compressor = untrained(name, k, config, self.side)
        self.layers = nn.ModuleList(map(Layer, tower.encoder.layers))
        self.projector = Projector()

    @torch.inference_mode()
    def forward(self, frames: Tensor, seconds: Tensor) -> Tensor:
        """(frames, height, width, 3) in 0..255 -> (groups, rows, columns, width)"""
        x = rearrange(frames.to(self.tower.dtype) / 127.5 - 1, "t h w c -> 1 t c h w")  # SigLIP's mean and deviation
        side = self.side - self.side % 2  # an odd grid loses its last row and column
        clip = Clip(self.side, self.side, seconds=seconds[None])
        x = self.compressor.pixels(x)
        x = self.tower.embeddings(x.flatten(0, 1))[None]
        x = self.compressor.encode(x, self.layers, clip)
        x = self.tower.post_layernorm(x)
        x = rearrange(x, "1 (g j) (h w) d -> 1 g j h w d", g=len(frames) // self.compressor.k, h=self.side)
        return self.compressor.project(x[..., :side, :side, :], self.projector, clip)[0]


def untrained(name: str, k: int, config: SiglipVisionConfig, side: int) -> Compressor:
    """A compressor that needs no training: without maps over several frames or weights that are drawn."""
    sizes = {"width": config.hidden_size, "embed_dim": config.hidden_size, "grid": (side, side)}
    compressor = create_compressor(name, k=k, depth=config.num_hidden_layers, heads=config.num_attention_heads, **sizes)
    own = compressor.in_frames > 1 or compressor.out_frames > 1 or compressor.adds_module or compressor.owns_merge
    if own or compressor.control:
        raise ValueError(f"{name} has to be trained first; te_fusion:readout=mean, te_pyramid, tome_clip need not")
    return compressor


def main(words: list[str] | None = None) -> Path:
    """Returns the file that was written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="+", type=Path)
    parser.add_argument("--model", help="a folder or a name of the hub; without one, a tiny random tower")
    parser.add_argument("--compressor", default="te_fusion:readout=mean")
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--frames", type=int, default=16, help="of each video; a multiple of k")
    parser.add_argument("--out", type=Path, default=Path("features.safetensors"))
    chosen = parser.parse_args(words)
    if chosen.frames % chosen.k:
        parser.error(f"{chosen.frames} frames do not divide into groups of k = {chosen.k}")
    if len({video.name for video in chosen.videos}) < len(chosen.videos):
        parser.error("two videos have one name, under which one of them would be lost")
    torch.manual_seed(0)
    tower = (
        SiglipVisionModel(SiglipVisionConfig(**TINY, image_size=32, patch_size=8))
        if chosen.model is None
        else SiglipVisionModel.from_pretrained(chosen.model)
    )
    try:
        extractor = FeatureExtractor(tower, chosen.compressor, chosen.k)
    except ValueError as error:
        parser.error(str(error))
    extractor.to("cuda" if torch.cuda.is_available() else "cpu")
    features = {}
    for video in chosen.videos:
        try:
            decoded = decode(video, Request(chosen.frames, "centres", extractor.size))
        except VideoError as error:
            parser.error(str(error))
        frames = torch.from_numpy(decoded.frames).to(tower.device)
        seconds = torch.tensor(decoded.seconds, dtype=torch.float32, device=tower.device)
        features[video.name] = extractor(frames, seconds).cpu().contiguous()
        before = chosen.frames * extractor.side**2
        after = features[video.name][..., 0].numel()
        print(f"{video}: {chosen.frames} frames, {before} tokens -> {after}")
    about = {"compressor": chosen.compressor, "k": str(chosen.k), "frames": str(chosen.frames)}
    about["tower"] = chosen.model or "tiny, random"
    replace_file(chosen.out, save(features, about))
    print(f"{chosen.out}: {len(features)} videos, {chosen.out.stat().st_size:,} bytes")
    return chosen.out


if __name__ == "__main__":
    main()
