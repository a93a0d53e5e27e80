"""The models' own processors, with a tokenizer of a hundred words, built in code."""

from collections.abc import Callable
from typing import Any

import transformers
from tiny_vlms import END, IMAGE, START, VIDEO
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers.models.smolvlm import processing_smolvlm

SPECIAL = {"<image>": IMAGE, "<video>": VIDEO, "<vs>": START, "<ve>": END, "<pad>": 0, "<unk>": 1, "<end>": 99}


def tokenizer() -> Any:
    words = [f"w{i}" for i in range(100)]
    for i, word in enumerate("abc"):
        words[10 + i] = word
    for word, i in SPECIAL.items():
        words[i] = word
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    named = {"image_token": "<image>", "video_token": "<video>"}
    named |= {"vision_start_token": "<vs>", "vision_end_token": "<ve>"}
    named |= {"start_image_token": "<vs>", "end_image_token": "<ve>", "context_image_token": "<image>"}
    named |= {"fake_image_token": "<vs>", "global_image_token": "<ve>"}
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", pad_token="<pad>", eos_token="<end>", extra_special_tokens=named
    )
    fast.padding_side = "left"
    return fast


def llava_onevision() -> Any:
    video = transformers.LlavaOnevisionVideoProcessor(size={"height": 24, "width": 24})
    image = transformers.LlavaOnevisionImageProcessor(size={"height": 24, "width": 24})
    return transformers.LlavaOnevisionProcessor(
        image, tokenizer(), video, num_image_tokens=36, vision_feature_select_strategy="full"
    )


def llava_next_video() -> Any:
    video = transformers.LlavaNextVideoVideoProcessor(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})
    image = transformers.LlavaNextImageProcessor()
    return transformers.LlavaNextVideoProcessor(
        video, image, tokenizer(), patch_size=4, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )


def qwen(kind: str, video: str) -> Any:
    settings = {"patch_size": 4, "temporal_patch_size": 2, "merge_size": 2}
    image = transformers.Qwen2VLImageProcessor(**settings)
    size = {"shortest_edge": 256, "longest_edge": 256 * 768}
    videos = getattr(transformers, video)(**settings, size=size)
    return getattr(transformers, kind)(image, tokenizer(), videos)


def internvl() -> Any:
    size = {"height": 24, "width": 24}
    image = transformers.GotOcr2ImageProcessor(size=size, crop_to_patches=True, min_patches=1, max_patches=2)
    return transformers.InternVLProcessor(
        image, tokenizer(), transformers.InternVLVideoProcessor(size=size), image_seq_length=9
    )


def smolvlm2() -> Any:
    """It asks for a package only to write a number in words."""
    processing_smolvlm.num2words = processing_smolvlm.num2words or str
    edge = {"longest_edge": 24}
    image = transformers.SmolVLMImageProcessor(size=edge, max_image_size=edge, do_image_splitting=False)
    video = transformers.SmolVLMVideoProcessor(size=edge, max_image_size=edge)
    return transformers.SmolVLMProcessor(image, tokenizer(), video, image_seq_len=9)


TINY_PROCESSORS: dict[str, Callable[[], Any]] = {
    "LLaVA-OneVision": llava_onevision,
    "LLaVA-NeXT-Video": llava_next_video,
    "Qwen2-VL": lambda: qwen("Qwen2VLProcessor", "Qwen2VLVideoProcessor"),
    "Qwen2.5-VL": lambda: qwen("Qwen2_5_VLProcessor", "Qwen2VLVideoProcessor"),
    "InternVL3": internvl,
    "SmolVLM2": smolvlm2,
    "Qwen3-VL": lambda: qwen("Qwen3VLProcessor", "Qwen3VLVideoProcessor"),
}
