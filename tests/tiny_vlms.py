"""Every video model that takes a compressor, at a size of milliseconds, and prompts as its processor writes them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from tiny_towers import spread
from torch import Tensor, nn

IMAGE, VIDEO, START, END, TEXT = 90, 91, 92, 93, 10
PICTURES = 3  # of an image, for models that cut one into tiles
DECODER = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 100,
    "max_position_embeddings": 400,
    "pad_token_id": 0,
    "eos_token_id": 99,
    "bos_token_id": 98,
}
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
TOKENS = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": START, "vision_end_token_id": END}
PACKED = {"depth": 3, "num_heads": 2, "patch_size": 4, "in_channels": 3, "temporal_patch_size": 2}


class Batch(dict[str, Any]):
    """`visuals`: what a batch itself does not tell of models to which a video is a row of pictures."""

    visuals: list[tuple[str, int]] | None = None


@dataclass(frozen=True)
class TinyVLM:
    model: nn.Module
    frames_per_step: int
    packed: bool  # into patches by the processor
    side: int  # pixels of a frame
    video: Callable[[int, int], Tensor]  # time steps, seed -> the pixels of one video
    prompt: Callable[[int], list[int]]  # time steps -> the placeholders of one video, as the processor writes them
    image: Callable[[], tuple[list[int], dict[str, Tensor]]]  # a prompt's part and the model's inputs
    one_token: bool = False  # whether videos use the placeholder of images
    more: Mapping[str, Tensor] = field(default_factory=dict)  # what else each video needs

    pixels_name: str = "pixel_values_videos"
    pictures: bool = False  # whether a video is a row of pictures

    def batch(self, videos: Sequence[Sequence[int]], image: bool = False, seed: int = 0) -> Batch:
        """A row for each entry of `videos`, with a video of each number of steps; then, where asked, one with an image.
        Rows are padded on the left."""
        rows = [
            [TEXT + i, *(t for steps in row for t in (*self.prompt(steps), TEXT + 5))] for i, row in enumerate(videos)
        ]
        steps = [step for row in videos for step in row]
        batch = Batch()
        if steps:
            batch |= self.pixels([self.video(step, seed + i) for i, step in enumerate(steps)], steps)
        if image:
            tokens, inputs = self.image()
            rows.append([TEXT + 7, *tokens, TEXT + 8])
            batch |= self.joined(batch, inputs)
        longest = max(map(len, rows))
        ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
        types = (ids == IMAGE).int() + 2 * (ids == VIDEO).int()
        if self.one_token:
            ids = ids.masked_fill(ids == VIDEO, IMAGE)
        batch |= {"input_ids": ids, "attention_mask": (ids != 0).long()}
        batch |= {key: value.repeat(len(steps)) for key, value in self.more.items() if steps}
        batch |= {"mm_token_type_ids": types} if self.frames_per_step == 2 else {}
        if self.pictures:
            batch.visuals = [("video", step) for step in steps] + [("image", PICTURES)] * image
        return batch

    def joined(self, batch: dict[str, Any], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """An image's inputs, behind those of videos that have the same name."""
        if not self.pictures or not batch:
            return inputs
        parts = [batch["pixel_values"], inputs["pixel_values"]]
        return {"pixel_values": torch.cat(parts if parts[0].ndim == 4 else padded(parts))}

    def prompts(self, row: Sequence[int]) -> list[int]:
        return [token for steps in row for token in (*self.prompt(steps), TEXT + 5)]

    def pixels(self, videos: list[Tensor], steps: list[int]) -> dict[str, Any]:
        if self.packed:
            grid = torch.tensor([[t, 4, 4] for t in steps])
            return {"pixel_values_videos": torch.cat(videos), "video_grid_thw": grid}
        if self.pictures:  # SmolVLM's processor pads a batch, InternVL's puts pictures one after another
            return {"pixel_values": torch.cat(padded(videos) if videos[0].ndim == 5 else videos)}
        same = len(set(steps)) == 1
        return {"pixel_values_videos": torch.stack(videos) if same else videos}


def padded(rows: list[Tensor]) -> list[Tensor]:
    """(rows, pictures, channels, height, width), with black pictures behind those of the shorter ones"""
    most = max(row.shape[1] for row in rows)
    return [nn.functional.pad(row, (0, 0, 0, 0, 0, 0, 0, most - row.shape[1])) for row in rows]


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(100 + seed))


def llava(kind: str, extra: int, **more: Any) -> TinyVLM:
    """Frames of 6x6 patches: 3x3 tokens."""
    vision = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}
    vision |= {"image_size": 24, "patch_size": 4, "model_type": more.pop("tower")}
    text = {**DECODER, "model_type": "qwen2"}
    config = getattr(transformers, f"{kind}Config")(
        vision_config=vision, text_config=text, image_grid_pinpoints=[[24, 24]], **more
    )
    model = spread(getattr(transformers, f"{kind}ForConditionalGeneration")(config))
    count = 3 * 3

    def image() -> tuple[list[int], dict[str, Tensor]]:
        pixels = random(77, 1, 2, 3, 24, 24)  # the whole and one tile: 36 tokens, and 36 with a newline a row
        inputs = {"pixel_values": pixels, "image_sizes": torch.tensor([[24, 24]])}
        return [IMAGE] * (36 + 6 * 7), inputs

    return TinyVLM(
        model,
        1,
        False,
        24,
        lambda steps, seed: random(seed, steps, 3, 24, 24),
        lambda steps: [VIDEO] * (steps * count + extra),
        image,
    )


def llava_onevision() -> TinyVLM:
    tokens = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_feature_layer": -1}
    tokens |= {"image_token_index": IMAGE, "video_token_index": VIDEO}
    return llava("LlavaOnevision", 1, tower="siglip_vision_model", vision_feature_select_strategy="full", **tokens)


def llava_next_video() -> TinyVLM:
    tokens = {"image_token_index": IMAGE, "video_token_index": VIDEO, "vision_feature_layer": -2}
    tokens |= {"image_token_id": IMAGE, "video_token_id": VIDEO}
    return llava("LlavaNextVideo", 0, tower="clip_vision_model", vision_feature_select_strategy="default", **tokens)


def qwen(kind: str, vision: dict[str, Any], apart: bool = False, rope: dict[str, Any] = ROPE, **text: Any) -> TinyVLM:
    config = getattr(transformers, f"{kind}Config")(
        vision_config={**PACKED, **vision}, text_config={**DECODER, "rope_parameters": rope, **text}, **TOKENS
    )
    model = spread(getattr(transformers, f"{kind}ForConditionalGeneration")(config))

    def prompt(steps: int) -> list[int]:
        if apart:
            return [t for step in range(steps) for t in (20 + step, START, *[VIDEO] * 4, END)]
        return [START, *[VIDEO] * (steps * 4), END]

    def image() -> tuple[list[int], dict[str, Tensor]]:
        inputs = {"pixel_values": random(77, 24, 96), "image_grid_thw": torch.tensor([[1, 4, 6]])}
        return [START, *[IMAGE] * 6, END], inputs

    one = kind == "Glm4v"
    return TinyVLM(model, 2, True, 16, lambda steps, seed: random(seed, steps * 16, 96), prompt, image, one)


def qwen2_vl() -> TinyVLM:
    return qwen("Qwen2VL", {"embed_dim": 32, "hidden_size": 32})


def qwen2_5_vl() -> TinyVLM:
    vision = {"hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 32, "window_size": 8}
    return qwen("Qwen2_5_VL", {**vision, "fullatt_block_indexes": [1], "tokens_per_second": 2})


def qwen3_vl() -> TinyVLM:
    vision = {"hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 32, "num_position_embeddings": 16}
    vision |= {"deepstack_visual_indexes": [0, 1]}
    return qwen("Qwen3VL", vision, apart=True, head_dim=8)


def glm4v() -> TinyVLM:
    vision = {"hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 32, "image_size": 16}
    return qwen("Glm4v", vision, apart=True)


def video_llama_3() -> TinyVLM:
    vision = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}
    config = transformers.VideoLlama3Config(
        vision_config={**vision, "patch_size": 4}, text_config={**DECODER, "model_type": "qwen2"}, **TOKENS
    )
    model = spread(transformers.VideoLlama3ForConditionalGeneration(config))

    def image() -> tuple[list[int], dict[str, Tensor]]:
        inputs = {"pixel_values": random(77, 24, 48), "image_grid_thw": torch.tensor([[1, 4, 6]])}
        return [IMAGE] * 24, inputs | {"image_merge_sizes": torch.tensor([1])}

    return TinyVLM(
        model,
        1,
        True,
        16,
        lambda steps, seed: random(seed, steps * 16, 48),
        lambda steps: [token for step in range(steps) for token in (20 + step, *[VIDEO] * 4)],
        image,
        more={"video_merge_sizes": torch.tensor([2])},
    )


def internvl() -> TinyVLM:
    """Pictures of 6x6 patches: 3x3 tokens. `<video>` is what its tokenizer calls it, the model knows images alone."""
    vision = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}
    vision |= {"image_size": [24, 24], "patch_size": [4, 4], "use_mean_pooling": False}
    config = transformers.InternVLConfig(
        vision_config=vision, text_config={**DECODER, "model_type": "qwen2"}, image_token_id=IMAGE, image_seq_length=9
    )
    model = spread(transformers.InternVLForConditionalGeneration(config))
    return TinyVLM(
        model,
        1,
        False,
        24,
        lambda steps, seed: random(seed, steps, 3, 24, 24),
        lambda steps: [token for step in range(steps) for token in (20 + step, START, *[IMAGE] * 9, END)],
        lambda: ([START, *[IMAGE] * 9 * PICTURES, END], {"pixel_values": random(77, PICTURES, 3, 24, 24)}),
        pixels_name="pixel_values",
        pictures=True,
    )


def smolvlm() -> TinyVLM:
    vision = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}
    vision |= {"image_size": 24, "patch_size": 4}
    config = transformers.SmolVLMConfig(
        vision_config=vision, text_config={**DECODER, "model_type": "llama"}, image_token_id=IMAGE, scale_factor=2
    )
    model = spread(transformers.SmolVLMForConditionalGeneration(config))
    return TinyVLM(
        model,
        1,
        False,
        24,
        lambda steps, seed: random(seed, 1, steps, 3, 24, 24),
        lambda steps: [token for step in range(steps) for token in (20 + step, START, *[IMAGE] * 9, START)],
        lambda: (
            [token for i in range(PICTURES) for token in (START, 30 + i, *[IMAGE] * 9)],
            {"pixel_values": random(77, 1, PICTURES, 3, 24, 24)},
        ),
        pixels_name="pixel_values",
        pictures=True,
    )


TINY_VLMS: dict[str, Callable[[], TinyVLM]] = {
    "LLaVA-OneVision": llava_onevision,
    "LLaVA-NeXT-Video": llava_next_video,
    "Qwen2-VL": qwen2_vl,
    "Qwen2.5-VL": qwen2_5_vl,
    "Qwen3-VL": qwen3_vl,
    "GLM-4.1V": glm4v,
    "VideoLLaMA3": video_llama_3,
    "InternVL3": internvl,
    "SmolVLM2": smolvlm,
}

OLDEST = "5.17"  # the version of transformers that everything runs on
BEAMS_SINCE: dict[str, str | None] = {"GLM-4.1V": None}  # a later version; None where the library itself has none
