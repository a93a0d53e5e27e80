"""What the zoo holds and what a run would cost, as text."""

from dataclasses import dataclass, replace
from typing import Any

from tefusion.config import Run
from tefusion.cost import PROMPT_TOKENS, activations, count, counted
from tefusion.effort import effort

ZOO_K = 4


def zoo() -> str:
    """One row a method, as a Markdown table: README's is this. The FLOPs are those of the vision branch over the
    baseline's, at preset `base`, 224 px and k = `ZOO_K`, the parameters those beyond the baseline's."""
    from tefusion.compressors import COMPRESSORS

    head = ["method", "stage", "reach", "sees order", "FLOPs", "parameters", "source"]
    rows, plain = [], branch("none")
    for name, method in COMPRESSORS.items():
        stage = f"control, {method.stage}" if method.control else method.stage
        made = branch(name)
        more = made.parameters - plain.parameters
        costs = [f"{made.flops / plain.flops:.2f}x", f"{more:+,}" if more else "0"]
        rows.append([f"`{name}`", stage, method.reach, yes(made.order_sensitive), *costs, method.source])
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


@dataclass(frozen=True)
class Branch:
    order_sensitive: bool
    flops: int
    parameters: int


def branch(name: str) -> Branch:
    """A method's vision branch, counted on the meta device."""
    import torch

    from tefusion.vision import create_video_encoder

    with torch.device("meta"):
        encoder = create_video_encoder("base", name, 1 if name == "none" else ZOO_K).requires_grad_(False)
        flops, _ = counted(lambda: encoder(torch.empty(1, 2 * ZOO_K, 3, 224, 224)))
    return Branch(encoder.compressor.order_sensitive, flops, sum(p.numel() for p in encoder.parameters()))


def yes(value: bool) -> str:
    return "yes" if value else "no"


def describe_run(run: Run, device: str | None = None) -> str:
    """`device` is where the attention would run: the GPU where there is one."""
    from tefusion.compressors import method_of

    cost, spent = count(run), effort(run)
    plain = count(Run(compressor="none", k=1, n_input=run.n_input, size=run.size, encoder=run.encoder))
    groups, left = run.n_input // run.k, cost["l_decoder"]
    tokens = f"{left} ({groups} groups of {left // max(1, groups)})"
    if run.pruner != "none":
        whole = count(replace(run, pruner="none"))["l_decoder"]
        tokens = f"{left} of the {whole} of {groups} groups, chosen by {run.pruner}"
    rows = [
        ("compressor", f"{run.compressor}, k = {run.k}, {method_of(run.compressor).stage} the encoder"),
        ("frames", f"{run.n_input} at {run.size} px"),
        ("decoder tokens", f"{tokens}, and boi and eoi of each group"),
        ("attention", attention(run, device)),
        ("parameters", f"{cost['params']:,}"),
        ("  encoder", f"{cost['encoder_params']:,}, of which the compressor's module {cost['compressor_params']:,}"),
        ("memory", f"{megabytes(4 * cost['params'])} of weights; training keeps {megabytes(activations(run))} a video"),
        ("FLOPs, one video", scaled(cost["flops"])),
        ("  encoder", f"{scaled(cost['encoder_flops'])}, {ratio(cost, plain, 'encoder_flops')} of the plain encoder's"),
        ("  compressor", f"{scaled(cost['compressor_flops'])}, projector included"),
        ("  prefill", f"{scaled(cost['prefill_flops'])}, with {PROMPT_TOKENS} tokens of text"),
        ("training", f"{spent['trained_steps']:,} steps of {run.batch}, {scaled(spent['training_flops'])}"),
    ]
    return "\n".join(f"{name:18}{value}" for name, value in rows)


def attention(run: Run, device: str | None = None) -> str:
    """The backends that the encoder's attention would run on, and the shapes by which they are picked: of what it
    really calls, blocks and the method's own alike."""
    import torch

    from tefusion.kernels.backends import pick
    from tefusion.video import parse_size
    from tefusion.vision import create_video_encoder

    if not run.n_input:
        return "none: no frames enter"
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    with torch.device("meta"):
        encoder = create_video_encoder(run.encoder, run.compressor, run.k).requires_grad_(False)
        video = torch.empty(1, run.n_input, 3, *parse_size(run.size))
    seen: dict[tuple[int, int, int, bool], None] = {}

    def see(layer: Any, args: tuple[torch.Tensor, ...]) -> None:
        dim = layer.qkv.out_features // 3 // layer.heads
        seen[args[0].shape[1], layer.heads, dim, getattr(layer, "causal", False)] = None

    for module in encoder.modules():
        if hasattr(module, "heads") and hasattr(module, "qkv"):
            module.register_forward_pre_hook(see)
    encoder.encode(video)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(run.precision, torch.float32)
    rows: dict[tuple[str, int, int], list[str]] = {}
    try:
        for length, heads, dim, causal in seen:
            packed = torch.empty(1, length, 3, 1, dim, device=device, dtype=dtype)
            backend = "sdpa" if causal else pick(packed)
            rows.setdefault((backend, heads, dim), []).append(f"{length}{' causal' if causal else ''}")
    except ValueError as refused:
        return str(refused)
    said = [f"{name} on {device}: {' and '.join(n)} tokens a row, {h} heads of {d}" for (name, h, d), n in rows.items()]
    return "; ".join(said) or "timm's own"


def ratio(cost: dict[str, int], plain: dict[str, int], name: str) -> str:
    return f"{cost[name] / plain[name]:.3f}x" if plain[name] else "none"


def megabytes(size: int) -> str:
    return f"{size / 1e6:,.3g} MB" if size < 1e9 else f"{size / 1e9:,.3g} GB"


def scaled(flops: int) -> str:
    for unit, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if flops >= size:
            return f"{flops / size:.3g} {unit}FLOP"
    return f"{flops} FLOP"
