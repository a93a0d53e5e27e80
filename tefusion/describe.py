"""What the zoo holds and what a run would cost, as text."""

from typing import Any

from tefusion.config import Run
from tefusion.cost import PROMPT_TOKENS, count


def zoo() -> str:
    """One row a method, as a Markdown table: README's is this."""
    from tefusion.compressors import COMPRESSORS
    from tefusion.encoders import PRESETS
    from tefusion.vision import method_for

    head = ["method", "acts", "sees the order of frames", "module of its own", "source"]
    rows = []
    for name, method in COMPRESSORS.items():
        made = method_for(PRESETS["tiny"], name, k=max(k for k in (1, 4) if k in method.valid_k))
        words = {"none": "nowhere"}.get(made.stage, f"{made.stage} the encoder")
        rows.append([f"`{name}`", words, yes(made.order_sensitive), yes(made.adds_module), made.source])
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def yes(value: bool) -> str:
    return "yes" if value else "no"


def describe_run(run: Run, device: str | None = None) -> str:
    """`device` is where the attention would run: the GPU where there is one."""
    from tefusion.compressors import COMPRESSORS

    cost = count(run)
    plain = count(Run(compressor="none", k=1, n_input=run.n_input, size=run.size, encoder=run.encoder))
    tokens = (
        f"{cost['l_decoder']} ({run.n_input // run.k} groups of {cost['l_decoder'] * run.k // max(1, run.n_input)})"
    )
    rows = [
        ("compressor", f"{run.compressor}, k = {run.k}, {COMPRESSORS[run.compressor].stage} the encoder"),
        ("frames", f"{run.n_input} at {run.size} px"),
        ("decoder tokens", f"{tokens}, and boi and eoi of each group"),
        ("attention", attention(run, device)),
        ("parameters", f"{cost['params']:,}"),
        ("  encoder", f"{cost['encoder_params']:,}, of which the compressor's module {cost['compressor_params']:,}"),
        ("FLOPs, one video", scaled(cost["flops"])),
        ("  encoder", f"{scaled(cost['encoder_flops'])}, {ratio(cost, plain, 'encoder_flops')} of the plain encoder's"),
        ("  compressor", f"{scaled(cost['compressor_flops'])}, projector included"),
        ("  prefill", f"{scaled(cost['prefill_flops'])}, with {PROMPT_TOKENS} tokens of text"),
    ]
    return "\n".join(f"{name:18}{value}" for name, value in rows)


def attention(run: Run, device: str | None = None) -> str:
    """The backend that the tower's attention would run on, and the shape by which it is picked."""
    import torch

    from tefusion.kernels.backends import pick
    from tefusion.video import parse_size
    from tefusion.vision import create_video_encoder

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    with torch.device("meta"):
        encoder = create_video_encoder(run.encoder, run.compressor, run.k)
    layer: Any = next((module for module in encoder.tower.modules() if hasattr(module, "heads")), None)
    if layer is None:
        return "timm's own"
    dim, (h, w) = layer.qkv.out_features // 3 // layer.heads, encoder.grid(*parse_size(run.size))
    length = (h * w + encoder.tower.prefix) * (run.k if encoder.compressor.stage == "inside" else 1)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(run.precision, torch.float32)
    try:
        backend = pick(torch.empty(1, length, 3, 1, dim, device=device, dtype=dtype))
    except ValueError as refused:
        return str(refused)
    return f"{backend} on {device}: {length} tokens a row, {layer.heads} heads of {dim}"


def ratio(cost: dict[str, int], plain: dict[str, int], name: str) -> str:
    return f"{cost[name] / plain[name]:.3f}x" if plain[name] else "none"


def scaled(flops: int) -> str:
    for unit, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if flops >= size:
            return f"{flops / size:.3g} {unit}FLOP"
    return f"{flops} FLOP"
