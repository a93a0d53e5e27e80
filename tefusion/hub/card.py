"""The card that every saved model has: what it is, what it was trained on, how well it answers, how to load it."""

from pathlib import Path
from typing import Any

from tefusion.compressors import COMPRESSORS
from tefusion.files import replace_file
from tefusion.hub.configuration import TEFusionConfig
from tefusion.score import category_order

NAME = "README.md"
HEAD = "---\nlibrary_name: transformers\npipeline_tag: video-text-to-text\ntags:\n- tefusion\n---\n"
LOAD = """import tefusion.hub  # makes the model known to transformers
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained(folder)
processor = AutoProcessor.from_pretrained(folder)
inputs = processor.question("How does the object move?", "clip.mp4")
ids = model.generate(**inputs, max_new_tokens=16)
print(processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))"""


def write_card(folder: Path, config: TEFusionConfig) -> None:
    """A card that is somebody else's stays."""
    path = folder / NAME
    if not path.exists() or path.read_bytes().startswith(HEAD.encode()):
        replace_file(path, card(config).encode())


def card(config: TEFusionConfig) -> str:
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts(config))
    title = f"# {config.compressor}, k = {config.k}"
    said = f"A video language model that compresses {config.k} frames into one, made with tefusion."
    scored = f"\n## Scores\n\n{scores(config.trained)}\n" if config.trained else ""
    return f"{HEAD}\n{title}\n\n{said}\n\n| | |\n| --- | --- |\n{rows}\n{scored}\n## Use\n\n```python\n{LOAD}\n```\n"


def facts(config: TEFusionConfig) -> list[tuple[str, str]]:
    vision: Any = config.vision_config
    text: Any = config.text_config
    method, trained = COMPRESSORS[config.compressor], config.trained
    where = "acts nowhere" if method.stage == "none" else f"acts {method.stage} the encoder"
    lines = [
        ("compressor", f"`{config.compressor}` ({method.source}), {where}"),
        ("k", f"{config.k} frames become one"),
        ("encoder", f"{vision.tower}: {vision.depth} layers of width {vision.width}, {vision.patch_size} px patches"),
        ("decoder", f"{text.model_type}: {text.num_hidden_layers} layers of width {text.hidden_size}"),
    ]
    if not trained:
        return [*lines, ("trained on", "unknown to this card")]
    boundaries = 2 * trained["n_input"] // config.k
    return [
        *lines,
        ("N_input", f"{trained['n_input']} frames of {trained['size']} px, sampled by `{trained['policy']}`"),
        ("decoder tokens a video", f"{trained['l_decoder']}, and {boundaries} of boi and eoi"),
        ("parameters", f"{trained['params']:,}"),
        ("trained on", f"`{trained['data']}`, {trained['steps']} steps, seed {trained['seed']}"),
        ("made", f"{trained['date']}, commit {trained['commit']}, protocol {trained['protocol']}"),
    ]


def scores(trained: dict[str, Any]) -> str:
    error = "unknown" if trained["stderr"] is None else f"± {100 * trained['stderr']:.1f}"
    lines = ["| questions | accuracy, % |", "| --- | --- |"]
    lines.append(f"| all {trained['questions']} of `{trained['split']}` | {100 * trained['accuracy']:.1f} {error} |")
    shares = trained["by_category"]  # JSON has sorted them
    lines += [f"| {name} | {100 * shares[name]:.1f} |" for name in category_order(shares)]
    note = "One standard error, clustered by video, of this one training run."
    return "\n".join([*lines, "", note])
