"""A trained VLM of a run -> the transformers model and processor of the same weights."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AddedToken

from tefusion.compressors import options_of
from tefusion.config import Run
from tefusion.files import replace_file
from tefusion.hub.card import write_card
from tefusion.hub.configuration import TEFusionConfig, TEFusionVisionConfig
from tefusion.hub.modeling import TEFusionForConditionalGeneration
from tefusion.hub.processing import PLAIN_TEMPLATE, VIDEO, TEFusionProcessor
from tefusion.vision import tower_of
from tefusion.vlm import VLM

FACTS = ["n_input", "size", "data", "steps", "seed", "questions", "accuracy", "stderr", "by_category", "l_decoder"]
FACTS += ["params", "flops", "protocol", "commit", "date"]  # of a results row, for the model card


def export(
    run: Run, vlm: VLM, row: Mapping[str, Any] | None = None
) -> tuple[TEFusionForConditionalGeneration, TEFusionProcessor]:
    """Both share the VLM's modules and its tokenizer, which learns the name of a video's place. The run's results row
    tells the model card of its data and scores."""
    id_of_video = with_video_token(vlm)
    sizes, _ = tower_of(run.encoder)
    sizes = replace(sizes, embed_dim=vlm.boi.shape[-1])
    tower = run.encoder if run.encoder.startswith("timm:") else "glm4v"
    config = TEFusionConfig(
        vision_config=TEFusionVisionConfig.of(sizes, tower),
        text_config=vlm.decoder.config,
        compressor=run.compressor,
        k=run.k,
        compressor_options={name: getattr(run, name) for name in options_of(run.compressor) if hasattr(run, name)},
        video_token_id=id_of_video,
        dtype=vlm.boi.dtype,
        trained={"policy": run.policy, "split": run.split} | {name: row[name] for name in FACTS} if row else {},
    )
    processor = TEFusionProcessor(
        vlm.tokenizer,
        chat_template=getattr(vlm.tokenizer, "chat_template", None) or PLAIN_TEMPLATE,
        frames=run.n_input,
        size=run.size,
        policy=run.policy,
        k=run.k,
        patch_size=vlm.encoder.tower.patch_size,
    )
    return assembled(config, vlm), processor


def write_beside(folder: Path, model: TEFusionForConditionalGeneration, processor: TEFusionProcessor) -> None:
    """All that makes a folder with weights one of transformers', each file whole; the configuration comes last."""
    partial = folder / f".export.{os.getpid()}.partial"
    try:
        processor.save_pretrained(partial)
        model.generation_config.save_pretrained(partial)
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(partial)
        config: Any = model.config
        write_card(partial, config)
        for file in sorted(partial.iterdir(), key=lambda file: (file.name == "config.json", file.name)):
            replace_file(folder / file.name, file.read_bytes())
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def assembled(config: TEFusionConfig, vlm: VLM) -> TEFusionForConditionalGeneration:
    with torch.device("meta"):
        model = TEFusionForConditionalGeneration(config)
    model.encoder, model.decoder, model.boi, model.eoi = vlm.encoder, vlm.decoder, vlm.boi, vlm.eoi
    settings: Any = model.generation_config
    own = vlm.decoder.generation_config
    settings.eos_token_id = own.eos_token_id if own.eos_token_id is not None else vlm.tokenizer.eos_token_id
    settings.pad_token_id = vlm.tokenizer.pad_token_id
    settings.suppress_tokens = [config.video_token_id]  # a place of a video is no word
    return model.train(vlm.training)


def with_video_token(vlm: VLM) -> int:
    """The id of a video's place. Where the decoder's vocabulary has no number left, it gets one row more."""
    vlm.tokenizer.add_tokens([AddedToken(VIDEO, special=True)])
    found = vlm.tokenizer.convert_tokens_to_ids(VIDEO)
    if found >= vlm.decoder.get_input_embeddings().num_embeddings:
        vlm.decoder.resize_token_embeddings(found + 1, mean_resizing=False)
    return found
