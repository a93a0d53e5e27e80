"""How much a run trains: equal samples or equal FLOPs, a multiple of its budget, at scaled learning rates."""

from dataclasses import replace

from tefusion.config import Run

SAMPLES = "samples"


def reference_of(run: Run) -> Run:
    """The run whose training FLOPs `run` spends; itself where samples are equal."""
    if run.equal == SAMPLES:
        return run
    method, k, n_input, size = run.equal.removeprefix("flops:").rsplit(":", 3)
    return replace(run, compressor=method, k=int(k), n_input=int(n_input), size=size, equal=SAMPLES)


def trained(run: Run) -> Run:
    """The same training without multiples: its `steps`, `lr` and `muon_lr` are what the loop takes.

    Equal FLOPs are counted, never measured, and rounded to a step.
    """
    steps = run.times * run.steps
    if run.equal != SAMPLES:
        from tefusion.cost import training_flops

        steps = max(1, round(steps * training_flops(reference_of(run)) / training_flops(run)))
    lr, muon_lr = run.lr_scale * run.lr, run.lr_scale * run.muon_lr
    return replace(run, steps=steps, lr=lr, muon_lr=muon_lr, times=1, equal=SAMPLES, lr_scale=1.0)


def effort(run: Run) -> dict[str, int]:
    """What a row says of it: steps and FLOPs of the video stage."""
    from tefusion.cost import training_flops

    steps = trained(run).steps
    return {"trained_steps": steps, "training_flops": steps * run.batch * training_flops(run)}
