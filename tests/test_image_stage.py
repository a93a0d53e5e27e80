"""The image model: trained on stills, once, the same whoever trains it, and every run starts from it."""

import json
from dataclasses import replace

import pytest
import torch
from contract import perturb
from safetensors.torch import load_file

from tefusion import cell, image_stage
from tefusion.cells import Cell
from tefusion.checkpoint import save_whole
from tefusion.config import Run
from tefusion.data.motion_truth import patch_targets
from tefusion.data.source import load_split
from tefusion.image_stage import image_model, image_run, image_weights
from tefusion.objective import StillObjective
from tefusion.train import create_vlm, frame_cache, reader


@pytest.fixture(scope="module")
def run(clips):
    small = Run(compressor="te_fusion", k=2, n_input=4, size="32", encoder="tiny", decoder="tiny", data=str(clips))
    return replace(small, steps=2, image_steps=3, batch=8)


@pytest.fixture
def trained(monkeypatch):
    """How many times an image model was trained."""
    calls, train_images = [], image_stage.train_images
    monkeypatch.setattr(image_stage, "train_images", lambda *args: calls.append(1) or train_images(*args))
    return calls


def test_runs_that_differ_after_the_image_stage_share_it(run):
    others = {"compressor": "pllava", "n_input": 8, "steps": 9, "freeze": "decoder", "augment": False}
    others |= {"position_std": 0.5, "accumulate": 2, "policy": "linspace", "split": "dev", "workers": 1, "size": "16"}
    for name, value in others.items():
        assert image_run(replace(run, **{name: value})) == image_run(run), name
    for name, value in {"seed": 1, "image_steps": 4, "batch": 16, "optimizer": "adamw", "data": "motion"}.items():
        assert image_run(replace(run, **{name: value})) != image_run(run), name


def test_it_is_trained_once_and_reused(run, tmp_path, trained):
    first = image_weights(run, tmp_path, 0)
    written = first.stat().st_mtime_ns
    assert image_weights(replace(run, compressor="pllava", n_input=8), tmp_path, 0) == first
    assert (len(trained), first.stat().st_mtime_ns) == (1, written)
    assert image_weights(replace(run, seed=1), tmp_path, 0) != first
    assert len(trained) == 2
    assert load_file(first).keys() == create_vlm(image_run(run)).state_dict().keys()


def test_a_run_from_scratch_needs_none(run, tmp_path, trained):
    assert image_weights(replace(run, init="scratch"), tmp_path, 0) is None
    assert not trained


def test_it_learns_what_a_still_shows(run, tmp_path):
    still = image_run(replace(run, image_steps=40, batch=32))
    losses = []
    image_model(still, tmp_path, 0, lambda at, loss: losses.append(loss))
    assert len(losses) == 40
    assert losses[-1].auxiliary < 0.6 * losses[0].auxiliary
    assert losses[-1].answer < 0.5 * losses[0].answer


def test_it_is_the_same_whoever_trains_it(run, tmp_path):
    """A run that adds up parts of a batch, or had its model trained by another, changes nothing in it."""
    states = [load_file(image_weights(replace(run, accumulate=n), tmp_path / str(n), 0)) for n in (1, 4)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_cell_is_the_same_whether_its_image_model_was_there_or_not(run, tmp_path, trained):
    losses = []
    for out in ("first", "again"):
        cell.train_cell(Cell(run), "cell", tmp_path / out, tmp_path / "home", "", lambda line: None)
        losses.append(json.loads((tmp_path / out / "cells/cell/log.jsonl").read_text().splitlines()[-1]))
    assert len(trained) == 1
    assert losses[0] == losses[1]


def test_a_cell_starts_from_the_image_models_weights(run, tmp_path, monkeypatch):
    image = perturb(create_vlm(image_run(run)))
    save_whole(image.state_dict(), tmp_path / "image.safetensors")
    monkeypatch.setattr(cell, "image_weights", lambda run, home, save_every: tmp_path / "image.safetensors")
    still = replace(run, steps=1, lr=1e-12, muon_lr=1e-12, position_std=0.0)  # trained as good as not at all
    vlm, _ = cell.train_cell(Cell(still), "cell", tmp_path, tmp_path, "", lambda line: None)
    frame = torch.randint(0, 256, (1, 32, 32, 3), dtype=torch.uint8)
    (still_video,), (one_frame,) = vlm.encode([frame.repeat(2, 1, 1, 1)]), image.eval().encode([frame])
    assert torch.allclose(still_video, one_frame, atol=1e-5)
    words = zip(vlm.decoder.parameters(), image.decoder.parameters(), strict=True)
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in words)


def test_data_without_truth_needs_another_start(run, clips, tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train/video_info.meta.jsonl").write_text((clips / "train/video_info.meta.jsonl").read_text())
    with pytest.raises(ValueError, match=r"no truth\.safetensors to train an image model on; use init=scratch"):
        image_weights(replace(run, data=str(tmp_path)), tmp_path / "home", 0)


def test_a_still_is_determined_by_epoch_and_place_and_its_patches_turn_with_it(clips, home):
    split = load_split(clips, "train")
    stills = image_stage.still_questions(split.truth, split.questions, 0, split.shuffled)
    read = reader(Run(n_input=16, k=1), frame_cache(home), (32, 32))
    examples = image_stage.StillExamples(stills, read, 0, split.shuffled)
    shown = [image_stage.collate(split.truth, 8, [examples[epoch, 1]]) for epoch in (*range(8), *range(8))]
    for first, again in zip(shown[:8], shown[8:], strict=True):
        assert (first.prompts, first.answers) == (again.prompts, again.answers)
        assert torch.equal(first.frames, again.frames)
        assert torch.equal(first.patches.offsets, again.patches.offsets)
    plain = patch_targets(split.truth[[stills[1].clip]], 8)
    looks = {(one.frames.numpy().tobytes(), one.patches.classes.numpy().tobytes()) for one in shown}
    assert len(looks) == len({frames for frames, _ in looks}) > 2  # the same turn, the same patches
    assert all(one.patches.classes.sum() == plain.classes.sum() for one in shown)
    assert {int(one.asked) for one in shown} == {stills[1].frame}


def test_parts_of_a_batch_add_up_whatever_their_patches_show(run, clips, home):
    split, vlm = load_split(clips, "train"), create_vlm(image_run(run))
    stills = image_stage.still_questions(split.truth, split.questions, 0, split.shuffled)
    examples = image_stage.StillExamples(stills, reader(Run(k=1), frame_cache(home), (32, 32)), 0, split.shuffled)
    whole, *parts = (
        image_stage.collate(split.truth, vlm.encoder.tower.patch_size, [examples[0, i] for i in places])
        for places in (range(6), range(2), range(2, 6))
    )
    objective = StillObjective(vlm, image_stage.CLASSES, 1.0)
    counts = torch.stack([objective.counts(part) for part in parts])
    assert 2 * counts[0, 2] != counts[1, 2]  # near an object there are not twice as many
    losses = [objective(part, share) for part, share in zip(parts, counts / counts.sum(0), strict=True)]
    for name in ("total", "answer", "auxiliary", "right"):
        one = getattr(objective(whole, torch.ones(3)), name).item()
        assert sum(getattr(loss, name) for loss in losses) == pytest.approx(one, rel=1e-5), name
