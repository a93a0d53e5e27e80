"""Training examples: what epoch and place determine, and what becomes of a video that cannot be read."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from tefusion.config import Run
from tefusion.data.examples import BAD_VIDEOS, Examples, Unread, collate, within_budget
from tefusion.data.order import Order
from tefusion.data.prompt import prompt
from tefusion.data.question import LETTERS
from tefusion.data.source import MOTION_SETS, data_folder, load_split
from tefusion.train import frame_cache, reader


@pytest.fixture(scope="module")
def split(clips):
    return load_split(clips, "train")


@pytest.fixture(scope="module")
def read(home):
    return reader(Run(n_input=16), frame_cache(home), (32, 32))


def same(a, b):
    return torch.equal(a.video, b.video) and (a.prompt, a.answer) == (b.prompt, b.answer)


def test_a_plain_example_is_the_clip_its_question_and_the_truth(split, read):
    example = Examples(split, read, (32, 32), seed=0)[0, 5]
    assert torch.equal(example.video, torch.from_numpy(read(split.questions[5]).frames))
    assert (example.prompt, example.answer) == (prompt(split.questions[5]), split.questions[5].answer)
    assert torch.equal(example.targets, split.targets[5])


def test_fewer_frames_come_with_their_own_targets(split, home):
    read = reader(Run(n_input=4), frame_cache(home), (32, 32))
    examples = Examples(split, read, (32, 32), seed=0)
    for place in range(24):
        assert torch.equal(examples[0, place].targets, split.targets[place, [2, 6, 10, 14]])


def test_seed_epoch_and_place_alone_determine_an_example(split, read):
    examples = Examples(split, read, (32, 32), seed=0, turned=True)
    first = [examples[epoch, place] for epoch in range(4) for place in range(4)]
    np.random.default_rng(0).random(), torch.rand(1)
    again = [examples[epoch, place] for epoch in reversed(range(4)) for place in range(4)]
    assert all(same(a, b) for a, b in zip(first, again[12:] + again[8:12] + again[4:8] + again[:4], strict=True))
    other = Examples(split, read, (32, 32), seed=1, turned=True)
    assert not all(same(a, other[0, place]) for place, a in enumerate(first[:4]))
    assert len({example.video.numpy().tobytes() for example in first[::4]}) > 1  # epochs differ


def test_a_turned_example_keeps_its_answer_true(split, read):
    """The right option's text, not only its letter, follows the pixels: a mirrored 'left' reads 'right'."""
    examples = Examples(split, read, (32, 32), seed=0, turned=True)
    words = set()
    for epoch in range(16):
        example = examples[epoch, 0]
        line = next(line for line in example.prompt.splitlines() if line.startswith(f"{example.answer}. "))
        words.add(line[3:])
        assert example.targets.shape == split.targets[0].shape
        assert example.answer in LETTERS[:4]
    assert len(words) > 1


def test_a_run_at_lower_resolution_turns_square_clips_and_shrinks_them_afterwards(split, read):
    examples = Examples(split, read, (32, 16), seed=0, turned=True)
    assert {tuple(examples[epoch, 0].video.shape) for epoch in range(8)} == {(16, 32, 16, 3)}


def test_an_example_knows_when_its_frames_are_shown(split, read):
    example = Examples(split, read, (32, 32), seed=0, turned=True)[0, 3]
    assert example.seconds.tolist() == pytest.approx(read(split.questions[3]).seconds)
    assert collate([example]).seconds == [example.seconds]


def test_text_alone_reads_no_video(split):
    example = Examples(split, None, (32, 32), seed=0, turned=True)[0, 3]
    assert (example.video, example.targets) == (None, None)
    assert example.prompt == prompt(split.questions[3])


@pytest.fixture
def broken(split, tmp_path):
    """200 examples, of which numbers 0 and 7 have no readable video."""
    questions = list((split.questions * 3)[:200])
    (tmp_path / "noise.mp4").write_bytes(b"no video at all" * 100)
    for place, name in ((0, "noise.mp4"), (7, "missing.mp4")):
        questions[place] = replace(questions[place], video=tmp_path / name)
    return replace(split, questions=questions, truth=None, targets=None)


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_videos_are_left_out_counted_and_named(broken, read, workers, tmp_path, caplog):
    order = Order(len(broken.questions), batch=20, steps=20, seed=0)
    batches = DataLoader(
        Examples(broken, read, (32, 32), seed=0), batch_sampler=order, collate_fn=collate, num_workers=workers
    )
    unread = set()
    with caplog.at_level(logging.WARNING):
        passed = list(within_budget(batches, len(broken.questions), unread))
    assert unread == {str(tmp_path / "noise.mp4"), str(tmp_path / "missing.mp4")}
    assert sum(len(batch.videos) for batch in passed) == 400 - 4  # two epochs
    assert all(len(b.videos) == len(b.prompts) == len(b.answers) == len(b.targets) for b in passed)
    assert len(caplog.records) == 2
    assert "noise.mp4" in caplog.text


def test_more_than_the_budget_is_an_error():
    bad = [Unread((0, i), f"{i}.mp4", f"{i}.mp4: broken") for i in range(3)]
    limit = int(2 / BAD_VIDEOS)
    assert len(list(within_budget([collate(bad[:2]), collate(bad[:2])], limit, set()))) == 2
    with pytest.raises(ValueError, match=f"3 of {limit} training videos cannot be read; the last one: 2.mp4: broken"):
        list(within_budget([collate(bad[:2]), collate(bad[2:])], limit, set()))


def test_a_data_folder_is_a_named_set_or_a_folder(clips, home, monkeypatch):
    assert data_folder(str(clips), home) == clips
    with pytest.raises(ValueError, match="neither a folder nor a generated set; did you mean 'motion'"):
        data_folder("moton", home)
    monkeypatch.setitem(MOTION_SETS, "mine", replace(MOTION_SETS["motion"], train=6, dev=6, test=6))
    assert len(load_split(data_folder("mine", home), "dev").questions) == 6


def test_secret_answers_are_left_out(clips, tmp_path):
    lines = (clips / "test" / "video_info.meta.jsonl").read_text().splitlines()[:3]
    secret = [line.replace(f'"answer": "{letter}"', '"answer": "NA"') for line in lines for letter in "ABCD"]
    secret = [line for line in secret if '"NA"' in line]
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "video_info.meta.jsonl").write_text("\n".join([*lines[:1], *secret[1:]]))
    assert [question.uid for question in load_split(tmp_path, "dev").questions] == ["test-000000"]
    (tmp_path / "dev" / "video_info.meta.jsonl").write_text("\n".join(secret))
    with pytest.raises(ValueError, match="keeps all its answers secret"):
        load_split(tmp_path, "dev")


@pytest.mark.parametrize("policy", ["centres", "linspace", "fps:2"])
@pytest.mark.parametrize("frames", [1, 2, 4, 8])
def test_a_clip_decoded_whole_gives_the_frames_that_decoding_it_would(split, tmp_path, policy, frames):
    run = Run(n_input=frames, policy=policy, compressor="none", k=1)
    question = split.questions[3]
    whole, direct = (reader(run, frame_cache(tmp_path), (32, 32), length)(question) for length in (16, 0))
    assert (whole.indices, whole.seconds, whole.total) == (direct.indices, direct.seconds, direct.total)
    assert (whole.frames == direct.frames).all()
