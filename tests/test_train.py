"""The loop: it learns, adds up parts of a batch, repeats itself, and stops where the numbers do."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import tracking
from safetensors.torch import load_file

from tefusion import train, training
from tefusion.cell import Log
from tefusion.config import Run
from tefusion.data.examples import Examples, Unread, collate
from tefusion.data.motion_truth import CHANNELS
from tefusion.data.source import load_split
from tefusion.objective import VideoObjective
from tefusion.train import accelerator, create_vlm, frame_cache, reader, train_videos
from tefusion.training import Progress, Training

SMALL = Run(compressor="te_fusion", k=2, n_input=8, size="32", encoder="tiny", decoder="tiny", init="scratch")
SMALL = replace(SMALL, steps=3, batch=8, warmup=1, augment=False)


@pytest.fixture(scope="module")
def split(clips):
    whole = load_split(clips, "train")
    return replace(whole, questions=whole.questions[:8], targets=whole.targets[:8])


def learn(run, split, home, vlm=None):
    """The model after training, and the losses on the way."""
    losses = []
    vlm = vlm or create_vlm(run)
    train_videos(vlm, split, frame_cache(home), Training(run, accelerator(run), lambda at, loss: losses.append(loss)))
    return vlm, losses


def test_a_handful_of_clips_is_learnt_by_heart(split, home):
    run = replace(SMALL, steps=45, lr=3e-3, compressor="none", k=1, n_input=2)
    _, losses = learn(run, split, home)
    assert len(losses) == run.steps
    assert losses[0].answer > 4
    assert losses[-1].answer < 0.4  # the letters alone by chance: 0.69
    assert losses[-1].right == 1


def test_the_auxiliary_loss_is_learnt_too_and_can_be_left_out(split, home):
    _, losses = learn(replace(SMALL, steps=30, lr=3e-3), split, home)
    assert losses[-1].auxiliary < 0.7 * losses[0].auxiliary
    assert losses[0].total == losses[0].answer + losses[0].auxiliary
    _, losses = learn(replace(SMALL, auxiliary=0.0), split, home)
    assert all(loss.auxiliary == 0 and loss.total == loss.answer for loss in losses)


@pytest.mark.parametrize("clip", [1e9, 0.1])
def test_parts_of_a_batch_add_up_to_the_same_update(split, home, monkeypatch, clip):
    """Plain gradient steps: Adam would blow up the rounding of gradients near zero."""
    monkeypatch.setattr(training, "optimizers", lambda model, vlm, run: [torch.optim.SGD(model.parameters(), lr=0.01)])
    run = replace(SMALL, clip=clip)
    whole, parts = (learn(replace(run, accumulate=n), split, home)[0] for n in (1, 4))
    start = dict(create_vlm(run).named_parameters())
    for (name, a), b in zip(whole.named_parameters(), parts.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-5), name
    moved = sum((a - start[name]).square().sum() for name, a in whole.named_parameters()).sqrt()
    assert moved > 1e-3
    assert moved < 3 * 0.1 * clip  # three steps of at most lr * clip


def test_parts_of_any_size_add_up_to_the_whole(split, home):
    """Answers differ in length, parts in size, and one part could not be read at all."""
    vlm = create_vlm(SMALL)
    objective = VideoObjective(vlm, sum(CHANNELS.values()), 1.0)
    examples = Examples(split, reader(SMALL, frame_cache(home), (32, 32), split.length), (32, 32), 0)
    six = [replace(examples[0, i], answer="to the left and back"[: 3 * i + 1]) for i in range(6)]
    parts = [collate(six[:1]), collate(six[1:]), collate([Unread((0, 6), "gone.mp4", "gone")])]
    counts = torch.stack([objective.counts(part) for part in parts])
    replies = [vlm(part.videos, part.prompts, part.answers) for part in parts[:2]]
    assert counts[:, 0].tolist() == [*((reply.labels >= 0).sum() for reply in replies), 0]
    assert counts[1, 0] > 5 * counts[0, 0]
    whole = objective(collate(six), torch.ones(2))
    losses = [objective(part, share) for part, share in zip(parts, counts / counts.sum(0), strict=True)]
    for name in ("total", "answer", "auxiliary", "right"):
        assert sum(getattr(loss, name) for loss in losses) == pytest.approx(getattr(whole, name).item(), rel=1e-5), name


def test_one_seed_gives_one_model_and_the_same_losses(split, home):
    (a, first), (b, again), (_, other) = (learn(replace(SMALL, seed=s, augment=True), split, home) for s in (3, 3, 4))
    assert [loss.total for loss in first] == [loss.total for loss in again]
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert first[0].total != other[0].total


def test_methods_of_one_seed_start_from_the_same_tower_and_decoder():
    methods = {"none": 1, "te_fusion": 2, "qformer": 2}
    models = [create_vlm(replace(SMALL, compressor=name, k=k)) for name, k in methods.items()]
    for part in ("encoder.tower", "decoder"):
        first, *others = (model.get_submodule(part) for model in models)
        for other in others:
            assert all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


def test_a_compressors_own_setting_reaches_it():
    means = [create_vlm(replace(SMALL, position_std=std)).encoder.compressor for std in (0.0, 0.5)]
    spreads = [max(p.std().item() for p in compressor.parameters()) for compressor in means]
    assert spreads[0] == 0
    assert 0.3 < spreads[1] < 0.7


def test_a_loss_that_is_no_number_stops_the_run_and_names_step_and_batch(split, home):
    vlm = create_vlm(SMALL)
    with torch.no_grad():
        vlm.boi.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"the loss is nan at step 1, on epoch 0, examples (\d, ){7}\d$"):
        learn(SMALL, split, home, vlm)


def test_text_alone_can_be_trained(split, home):
    vlm, losses = learn(replace(SMALL, compressor="none", k=1, n_input=0), split, home)
    start = create_vlm(replace(SMALL, compressor="none", k=1, n_input=0))
    assert all(torch.equal(a, b) for a, b in zip(vlm.encoder.parameters(), start.encoder.parameters(), strict=True))
    assert losses[-1].total < losses[0].total


def test_a_batch_without_a_readable_video_changes_nothing_and_training_goes_on(split, home, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "optimizers", lambda model, vlm, run: [torch.optim.SGD(model.parameters(), lr=0.01)])
    monkeypatch.setattr("tefusion.data.examples.BAD_VIDEOS", 0.5)
    questions = [replace(split.questions[0], video=tmp_path / "missing.mp4"), *split.questions[1:]]
    run = replace(SMALL, batch=1, steps=8)
    weights = []
    vlm = create_vlm(run)
    whole = Training(run, accelerator(run), lambda at, loss: weights.append((vlm.boi.clone(), loss.total.item())))
    train_videos(vlm, replace(split, questions=questions), frame_cache(home), whole)
    assert whole.progress.unread == {str(tmp_path / "missing.mp4")}
    (hole,) = [i for i, (_, loss) in enumerate(weights) if loss == 0]
    assert len(weights) == 8
    assert all(torch.equal(weights[i][0], weights[i - 1][0]) == (i == hole) for i in range(1, 8))


def test_bf16_trains(split, home):
    _, losses = learn(replace(SMALL, precision="bf16"), split, home)
    _, plain = learn(SMALL, split, home)
    assert losses[0].total != plain[0].total
    assert losses[0].total.item() == pytest.approx(plain[0].total.item(), rel=0.02)


def test_the_log_holds_a_mean_for_every_ten_steps_and_tells_who_watches(split, home, tmp_path):
    run, sent = replace(SMALL, steps=13), []
    acc = accelerator(run)
    log, losses = Log(tmp_path / "deep" / "log.jsonl", acc, sent.append, run.steps), []

    def seen(progress, loss):
        log(progress, loss)
        losses.append(loss.answer.item())

    whole = Training(run, acc, seen)
    train_videos(create_vlm(run), split, frame_cache(home), whole)
    lines = [json.loads(line) for line in (tmp_path / "deep" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 13]
    assert lines[0]["loss"] == pytest.approx(sum(losses[:10]) / 10)
    assert lines[1]["loss"] == whole.progress.notes["loss"] == pytest.approx(sum(losses[10:]) / 3)
    assert sent == [line | {"steps": 13} for line in lines]


class Tracker(tracking.GeneralTracker):
    name, requires_logging_directory, started = "wandb", False, []

    def __init__(self, project, **settings):
        super().__init__()
        self.lines, self.config = [], None
        Tracker.started.append((project, self))

    tracker = property(lambda self: self)

    def store_init_configuration(self, values):
        self.config = values

    def log(self, values, step=None, **settings):
        self.lines.append((step, values))


def test_a_tracker_gets_the_settings_and_every_line(split, home, tmp_path, monkeypatch):
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "wandb", Tracker)
    monkeypatch.setattr(tracking, "_available_trackers", [tracking.LoggerType.WANDB])
    acc = accelerator(SMALL, "wandb", tmp_path)
    Log(tmp_path / "log.jsonl", acc, lambda line: None, 1)(
        Progress(step=1), learn(replace(SMALL, steps=1), split, home)[1][0]
    )
    ((project, tracker),) = Tracker.started
    assert project == "tefusion"
    assert tracker.config["compressor"] == "te_fusion"
    assert [step for step, _ in tracker.lines] == [1]


def test_a_tracker_that_is_not_installed_is_no_tracker(tmp_path):
    with pytest.raises(ValueError, match="log_with 'wandbb' is unknown"):
        accelerator(SMALL, "wandbb", tmp_path)


@pytest.mark.heavy
def test_two_processes_give_the_model_that_one_gives(clips, tmp_path):
    """Their parts of a batch join to the same one, and rounding is all that differs."""
    small = [f"data={clips}", f"home={tmp_path}", "n_input=4", "k=2", "size=32", "steps=3", "batch=8"]
    small += ["encoder=tiny", "decoder=tiny", "init=scratch", "optimizer=adamw"]
    start = dict(create_vlm(replace(SMALL, seed=0)).state_dict())
    for n in (1, 2):
        script = [str(Path(train.__file__).parents[1] / "train.py"), *small, f"out={tmp_path / str(n)}"]
        command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", f"--num_processes={n}", *script]
        subprocess.run(command, check=True, capture_output=True, timeout=300)
    one, two = (load_file(tmp_path / str(n) / "model.safetensors") for n in (1, 2))
    moved, apart = (sum((one[name] - o[name]).square().sum() for name in one).sqrt() for o in (start, two))
    assert apart < 0.05 * moved
