"""The generated set: true answers, no shortcuts, the same bytes; nothing here needs a model."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise, product

import av
import numpy as np
import pytest
import torch

from tefusion.data import motion, motion_files
from tefusion.data.motion import MotionSettings, load_truth, motion_targets, patch_targets, still_questions, vocabulary
from tefusion.data.motion_augment import (
    SYMMETRIES,
    arrange_options,
    augment,
    turn_frames,
    turn_patches,
    turn_question,
    turn_targets,
    turn_truth,
)
from tefusion.data.motion_files import CATEGORIES, SPLITS, ask, create_clip
from tefusion.data.motion_render import render, texture
from tefusion.data.motion_scene import COLOURS, COUNTS, DIRECTIONS, OPPOSITE, SHAPES, STEMS, STRIDES, Shot, create_scene
from tefusion.data.motion_sets import MOTION_SETS, long_enough, motion_set
from tefusion.data.motion_truth import CHANNELS, WEIGHTS, right_option, weighed
from tefusion.data.motionbench import read_motionbench
from tefusion.data.question import LETTERS

SMALL = MotionSettings(train=192, dev=24, test=24, shuffled=True)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return motion.write_motion(tmp_path_factory.mktemp("set") / "motion", SMALL)


@pytest.fixture(scope="module")
def questions(written):
    return read_motionbench(written / "train")


@pytest.fixture(scope="module")
def truth(written):
    return load_truth(written / "train")


@pytest.fixture(scope="module")
def clips():
    """2,400 clips that never touch the disk: (category, stem, options, answer index, middle frame, truth)."""
    rows = []
    for index in range(2400):
        row, frames, truth = create_clip(SMALL, "test", index)
        stem, *options = row["qa"][0]["question"].split("\n")
        options = [option[3:] for option in options]
        rows.append((CATEGORIES[index % 6], stem, options, int(truth["answer"]), frames[8], truth))
    return rows


def option(question):
    return question.options[LETTERS.index(question.answer)]


def decode(path):
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


# What is written


def test_every_answer_follows_from_the_truth_alone(questions, truth):
    assert [option(question) for question in questions] == [right_option(truth, i) for i in range(len(truth))]


def test_a_drift_ends_where_its_answer_says_and_nowhere_else(truth):
    """Hops of the first and last frame cancel; on the way they are larger than the drift."""
    clips = truth[truth.category == CATEGORIES.index("LM")]
    moved = (clips.positions[:, -1, 0] - clips.positions[:, 0, 0] + 16) % 32 - 16
    along, across = moved.abs().amax(dim=1), moved.abs().amin(dim=1)
    assert (across == 0).all()
    assert ((along >= 7.9) & (along <= 10.7)).all()
    steps = (clips.positions[:, :, 0].diff(dim=1) + 16) % 32 - 16
    assert steps.abs().amax() > 3


def test_categories_letters_and_strides_have_equal_shares(questions, truth):
    shares = Counter((q.category, q.answer) for q in questions)
    assert set(shares) == set(product(CATEGORIES, "ABCD"))
    assert len(set(shares.values())) == 1
    assert Counter(truth.stride.tolist()) == dict.fromkeys(STRIDES, len(truth) // 4)


def test_a_share_of_the_clips_outside_cm_pans(truth):
    pans = truth.background.diff(dim=1).abs().amax(dim=(1, 2))
    camera = truth.category == CATEGORIES.index("CM")
    assert (pans[camera] > 0).all()
    assert abs((pans[~camera] > 0).float().mean() - SMALL.pan) < 0.12
    assert set(pans[~camera].tolist()) == {0, 1}


def test_files_hold_the_pixels_that_were_drawn(written, questions):
    for index in range(12):
        _, frames, _ = create_clip(SMALL, "train", index)
        decoded = decode(questions[index].video)
        assert decoded.shape == frames.shape == (16, 32, 32, 3)
        assert np.abs(decoded.astype(int) - frames).mean() < 2.5


def test_masks_cover_the_coloured_pixels(questions, truth):
    for index in range(24):
        frames = decode(questions[index].video).astype(int)
        steady = ~truth.flash[index].any(dim=-1).numpy()
        colourful = (np.ptp(frames, axis=-1) > 90)[steady]
        mask = (truth.masks[index].numpy() > 0)[steady]
        assert (colourful & mask).sum() >= 0.75 * (colourful | mask).sum()


def test_the_same_settings_give_the_same_bytes_whoever_writes_them(tmp_path, monkeypatch):
    settings = MotionSettings(train=24, dev=6, test=6)
    one = motion.write_motion(tmp_path / "one", settings)
    monkeypatch.setattr(motion, "CHUNK", 5)
    monkeypatch.setattr(motion, "CHUNKS", 1)
    two = motion.write_motion(tmp_path / "two", settings)  # by a pool, where there are cores
    names = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(two) for path in two.rglob("*") if path.is_file())
    assert len(names) == 36 + 3 * 2 + 1
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in names)


def test_splits_and_seeds_share_no_clip():
    made = [
        create_clip(replace(SMALL, seed=seed), split, index)[1].tobytes()
        for seed, split, index in product((0, 1), SPLITS, range(12))
    ]
    assert len(set(made)) == len(made)


def test_a_finished_set_is_left_alone_and_another_one_is_an_error(written, monkeypatch, tmp_path):
    monkeypatch.setattr(motion, "write_splits", lambda *_: pytest.fail("written again"))
    assert motion.write_motion(written, SMALL) == written
    with pytest.raises(ValueError, match="seed=0 instead of 1"):
        motion.write_motion(written, replace(SMALL, seed=1))
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is no motion set"):
        motion.write_motion(tmp_path, SMALL)


def test_an_interrupted_set_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(motion, "write_split", fail)
    with pytest.raises(OSError, match="disk full"):
        motion.write_motion(tmp_path / "motion", MotionSettings(train=6, dev=6, test=6))
    assert [path.name for path in tmp_path.iterdir()] == [".motion.lock"]


def test_what_a_killed_writer_left_goes_with_the_next(tmp_path):
    (tmp_path / ".motion.partial" / "train").mkdir(parents=True)
    (tmp_path / ".motion.partial" / "train" / "half").touch()
    motion.write_motion(tmp_path / "motion", MotionSettings(train=6, dev=6, test=6))
    assert {path.name for path in tmp_path.iterdir()} == {"motion", ".motion.lock"}
    assert not (tmp_path / "motion" / "train" / "half").exists()


def test_progress_counts_every_clip(tmp_path):
    seen = []
    motion.write_motion(tmp_path / "m", MotionSettings(train=6, dev=6, test=6), lambda *counts: seen.append(counts))
    assert seen == [(6, 18), (12, 18), (18, 18)]


@pytest.mark.parametrize("bad", [{"size": 40}, {"frames": 4}, {"dev": 0}, {"pan": 2}, {"noise": -1}, {"seed": -1}])
def test_bad_settings_are_refused(bad):
    with pytest.raises(ValueError, match="motion set needs"):
        MotionSettings(**bad)


@pytest.mark.parametrize(("size", "frames"), [(64, 16), (96, 24), (32, 8), (32, 48)])
def test_other_sizes_show_the_same_world(size, frames):
    settings = MotionSettings(size=size, frames=frames, noise=3)
    for index in range(24):
        row, pixels, truth = create_clip(settings, "dev", index)
        assert pixels.shape == (frames, size, size, 3)
        one = motion.Truth(**{name: torch.as_tensor(values)[None] for name, values in truth.items()})
        options = [line[3:] for line in row["qa"][0]["question"].split("\n")[1:]]
        assert options[int(truth["answer"])] == right_option(one, 0)
        areas = [(truth["masks"][0] == i + 1).mean() for i in range(4) if truth["colours"][i]]
        assert all(0.01 < area < 0.08 for area in areas)  # a disc of 0.3 of the size has 0.07 of the area


def test_a_named_set_differs_from_its_namesake_in_length_alone():
    """The default set is what recorded results were measured on."""
    first = MotionSettings(size=32, frames=16, train=12000, dev=1200, test=1200, seed=0, pan=0.25, sprite=0.3, fps=8)
    assert motion_set("motion") == MotionSettings() == replace(first, contrast=40.0, detail=2.0, noise=0.0)
    for name in MOTION_SETS:
        for frames in (8, 24, 48, 64):
            assert motion_set(f"{name}-{frames}") == replace(MOTION_SETS[name], frames=frames)
        for frames in (0, 7, 65, 10**8):
            with pytest.raises(ValueError, match="8 to 64 frames"):
                motion_set(f"{name}-{frames}")
    assert [motion_set(name) for name in ("elsewhere", "motion-", "motion-24-24", "motion24", "24")] == [None] * 5


@pytest.mark.parametrize("name", MOTION_SETS)
def test_clips_are_never_shorter_than_what_is_asked_of_them(name):
    for n_input in range(65):
        settings = motion_set(long_enough(name, n_input))
        assert settings.frames >= n_input
        assert (settings == MOTION_SETS[name]) == (n_input <= 16)
        assert long_enough("elsewhere", n_input) == "elsewhere"
        assert long_enough(f"{name}-24", n_input) == f"{name}-24"


# No shortcut


@pytest.mark.parametrize("category", ["MR", "CM"])
@pytest.mark.parametrize("stride", STRIDES)
def test_at_its_stride_a_motion_looks_the_same_backwards(category, stride):
    for seed in range(6):
        rng = np.random.default_rng(seed)
        scene = create_scene(category, Shot(rng, 32, 32, stride), pan=0)
        ground = texture(rng, 32, contrast=30, detail=4)
        names = ("positions", "angles", "background")
        moves = {name: getattr(scene, name) for name in names}
        backwards = replace(scene, **{name: x[:1] - (x - x[:1]) for name, x in moves.items()})
        backwards = replace(backwards, positions=backwards.positions % 32, angles=backwards.angles % 360)
        one, two = (render(s, ground, radius=4)[0] for s in (scene, backwards))
        assert (one[::stride] == two[::stride]).all()
        assert (one[:: stride // 2] != two[:: stride // 2]).any(axis=(1, 2, 3))[1]


def chance(hits, margin=0.0):
    """Whether the share of hits is within three standard errors of a quarter (plus a known leak)."""
    return np.mean(hits) < 0.25 + margin + 3 * np.sqrt(0.1875 / len(hits))


def texts(count):
    """(category, stem, options, answer index) of clips that are not drawn."""
    for index in range(count):
        _, scene, options = ask(SMALL, "dev", index)
        yield CATEGORIES[index % 6], scene.stem, options, options.index(scene.right)


def cues(stem, options, i):
    words = [("option", options[i]), ("letter", i), ("stem", stem, options[i]), ("rest", options[i], *sorted(options))]
    words += [("order", i, *options)]
    return words + [("rank", sorted(options).index(options[i]))] + [("word", word) for word in options[i].split()]


def test_the_text_alone_does_not_tell():
    rows, offered, right = list(texts(9600)), Counter(), Counter()
    for _, stem, options, answer in rows[:4800]:
        offered.update(cue for i in range(4) for cue in cues(stem, options, i))
        right.update(cues(stem, options, answer))
    hits = {category: [] for category in CATEGORIES}
    for category, stem, options, answer in rows[4800:]:
        odds = [sum(np.log((right[cue] + 1) / (offered[cue] + 4)) for cue in cues(stem, options, i)) for i in range(4)]
        hits[category].append(int(np.argmax(odds)) == answer)
    assert all(chance(values) for values in hits.values()), {name: np.mean(values) for name, values in hits.items()}


def ridge(x, y, strength=10.0):
    mean, scale = x.mean(axis=0), x.std(axis=0) + 1e-6
    z = (x - mean) / scale
    weights = np.linalg.solve(z.T @ z + strength * np.eye(z.shape[1]), z.T @ (y - y.mean(axis=0)))
    return lambda x: (x - mean) / scale @ weights + y.mean(axis=0)


def frame_features(frame, truth):
    """All that the middle frame shows: coarse pixels, and the object's place, heading, colour, shape and flash."""
    coarse = frame.reshape(8, 4, 8, 4, 3).mean(axis=(1, 3)).ravel() / 50
    phase = 2 * np.pi * truth["positions"][8, 0] / 32
    angle = np.deg2rad(truth["angles"][8, 0])
    place = np.concatenate([np.sin(phase), np.cos(phase), [np.sin(angle), np.cos(angle), truth["flash"][8, 0]]])
    return np.concatenate([coarse, 3 * place, np.eye(7)[truth["colours"][0]], np.eye(5)[truth["shapes"][0]]])


@pytest.mark.parametrize("category", ["MR", "LM", "CM", "AO", "RC"])
def test_one_frame_does_not_tell(clips, category):
    mine = [clip for clip in clips if clip[0] == category]
    names = sorted({name for _, _, options, *_ in mine for name in options})
    x = np.stack([frame_features(frame, truth) for *_, frame, truth in mine])
    y = np.stack([np.eye(len(names))[names.index(options[answer])] for _, _, options, answer, *_ in mine])
    guess = ridge(x[:200], y[:200])(x[200:])
    hits = []
    for (_, _, options, answer, *_), scores in zip(mine[200:], guess, strict=True):
        hits.append(int(np.argmax([scores[names.index(name)] for name in options])) == answer)
    # A flash in the frame hints at many flashes: the best possible guess has 29 %.
    assert chance(hits, margin=0.04 if category == "RC" else 0), np.mean(hits)


def test_one_frame_does_not_tell_who_hops(clips):
    rows, hops = [], []
    for *_, truth in (clip for clip in clips if clip[0] == "MO"):
        positions = truth["positions"]
        apart = (positions[8][:, None] - positions[8][None] + 8) % 16 - 8  # offsets from the others, off the lattice
        colours, shapes = np.eye(7)[truth["colours"]], np.eye(5)[truth["shapes"]]
        pattern = np.concatenate([(apart**2).sum(axis=1), np.abs(apart).sum(axis=1), np.abs(apart).max(axis=1)], axis=1)
        rows.append(np.concatenate([pattern, np.eye(4), colours, shapes], axis=1))
        hops.append((positions != positions[:1]).any(axis=(0, 2)))
    x, y = np.array(rows), np.array(hops, float)
    guess = ridge(x[:250].reshape(1000, -1), y[:250].reshape(-1, 1))(x[250:].reshape(-1, x.shape[-1])).reshape(-1, 4)
    assert (y.sum(axis=1) == 1).all()
    assert chance(guess.argmax(axis=1) == y[250:].argmax(axis=1))


# Pixels and truth agree, turned or not


def word(step):
    axis = int(np.abs(step).argmax())
    return next(w for w, v in DIRECTIONS.items() if v[axis] and v[axis] == np.sign(step[axis]))


def shift(before, after):
    """Displacement (x, y) of a periodic picture, by phase correlation."""
    spectrum = np.fft.fft2(after.mean(axis=-1)) * np.fft.fft2(before.mean(axis=-1)).conj()
    peak = np.fft.ifft2(spectrum / (np.abs(spectrum) + 1e-6)).real
    y, x = np.unravel_index(peak.argmax(), peak.shape)
    return (np.array([x, y]) + 16) % 32 - 16


def centre(weight):
    """Circular mean (x, y) of a weight on the torus."""
    turns = np.exp(2j * np.pi * (np.arange(32) + 0.5) / 32)
    return np.array([np.angle((weight.sum(axis=axis) * turns).sum()) for axis in (0, 1)]) * 32 / (2 * np.pi)


def seen(category, frames, options):
    """The right option from decoded pixels."""
    frames = frames.astype(int)
    if category == "CM":
        return OPPOSITE[word(np.median([shift(a, b) for a, b in pairwise(frames)], axis=0))]
    strength = np.ptp(frames, axis=-1) * (np.ptp(frames, axis=-1) > 60)
    if category == "RC":
        return COUNTS[int((strength.sum(axis=(1, 2)) < 1000).sum()) - 1]
    if category == "MO":
        moves = [colour_moves(frames, COLOURS.index(name.split()[1]) + 1) for name in options]
        return options[int(np.argmax(moves))]
    path = np.stack([centre(s) for s in strength])
    steps = (np.diff(path, axis=0) + 16) % 32 - 16
    if category == "AO":
        return f"{word(steps[:5].sum(axis=0))}, then {word(steps[-5:].sum(axis=0))}"
    if category == "LM":
        return f"further {word(steps.sum(axis=0))}"
    return word(np.median(steps, axis=0))


def colour_moves(frames, colour):
    from tefusion.data.motion_render import PALETTE

    near = np.abs(frames - PALETTE[colour]).max(axis=-1) < 60
    return (near != near[:1]).mean()


@pytest.mark.parametrize("symmetry", SYMMETRIES)
def test_the_answer_stays_true_when_a_clip_is_turned(questions, truth, symmetry):
    turned = turn_truth(truth, symmetry)
    for index, question in enumerate(questions):
        question = turn_question(question, symmetry)
        assert option(question) == right_option(turned, index)
        if index < 36 and "clockwise" not in option(question):
            frames = turn_frames(decode(question.video), symmetry)
            assert option(question) == seen(question.category, frames, question.options), question
    assert (turned.masks.numpy()[..., None] == turn_frames(truth.masks.numpy()[..., None], symmetry)).all()


@pytest.mark.parametrize("symmetry", SYMMETRIES)
def test_targets_turn_with_the_clip(truth, symmetry):
    turned = turn_truth(truth, symmetry)
    assert torch.allclose(motion_targets(turned), turn_targets(motion_targets(truth), symmetry), atol=1e-4)
    one, two = patch_targets(turned, 8), turn_patches(patch_targets(truth, 8), symmetry)
    assert (one.classes == two.classes).all()
    assert (one.near == two.near).all()
    assert torch.allclose(one.offsets, two.offsets, atol=1e-5)


def test_an_arrow_turns_with_its_picture():
    scene = create_scene("MR", Shot(np.random.default_rng(2), 32, 8, 16), pan=0)
    truth = {name: torch.as_tensor(x)[None] for name, x in motion_files.trajectories(scene).items()}
    frames, masks = render(scene, np.full((32, 32), 110.0), radius=4)
    one = motion.Truth(
        **truth,
        masks=torch.as_tensor(masks)[None],
        **dict.fromkeys(("category", "answer", "stride"), torch.zeros(1, dtype=int)),
    )
    for symmetry in SYMMETRIES:
        turned = turn_truth(one, symmetry)
        again = replace(scene, positions=turned.positions[0, :, :1].numpy(), angles=turned.angles[0, :, :1].numpy())
        drawn, _ = render(again, np.full((32, 32), 110.0), radius=4)
        assert np.abs(drawn.astype(int) - turn_frames(frames, symmetry)).max() <= 2


def test_the_turns_are_eight_and_all_are_drawn(questions, truth):
    words = {turn_question(replace(questions[0], options=(*DIRECTIONS, "clockwise")), s).options for s in SYMMETRIES}
    assert len(words) == 8
    rng = np.random.default_rng(0)
    frames = np.random.default_rng(1).integers(0, 255, (2, 8, 8, 3), dtype=np.uint8)
    targets = motion_targets(truth)[0]
    drawn = [augment(frames, questions[0], targets, rng, shuffled=True) for _ in range(200)]
    assert len({turned.tobytes() for turned, _, _ in drawn}) == 8
    assert len({question.answer for _, question, _ in drawn}) == 4
    assert all(turned.shape == frames.shape and t.shape == targets.shape for turned, _, t in drawn)


def test_the_letter_follows_its_option(questions):
    rng = np.random.default_rng(0)
    for question in questions[:24]:
        shuffled = arrange_options(question, rng, shuffled=True)
        assert option(shuffled) == option(question)
        assert sorted(shuffled.options) == sorted(question.options)
    assert arrange_options(replace(questions[0], answer=None), rng, shuffled=True).answer is None


def test_only_whole_words_turn(questions):
    mirror = next(s for s in SYMMETRIES if s.mirror_x and not s.mirror_y and not s.transpose)
    question = replace(
        questions[0], text="Is the upright left or counter-clockwise?", options=("leftover", "clockwise")
    )
    turned = turn_question(question, mirror)
    assert turned.text == "Is the upright right or clockwise?"
    assert turned.options == ("leftover", "counter-clockwise")


def test_frames_that_are_not_square_are_refused():
    with pytest.raises(ValueError, match="not square"):
        turn_frames(np.zeros((2, 8, 16, 3), np.uint8), SYMMETRIES[0])


# Targets and stills


def channel(targets, name):
    first = sum(width for key, width in list(CHANNELS.items())[: list(CHANNELS).index(name)])
    return targets[..., first : first + CHANNELS[name]]


def test_each_kind_of_target_counts_what_its_weight_says(truth):
    targets = motion_targets(truth)
    targets[..., -1] *= 100  # other units, and one channel of a kind louder than the rest of it
    for name in CHANNELS:
        power = channel(weighed(targets), name).square().sum(-1).mean()
        assert power.item() == pytest.approx(WEIGHTS.get(name, 1.0), rel=1e-4), name
    assert set(WEIGHTS) < set(CHANNELS)


def test_a_kind_that_never_occurs_asks_for_nothing(truth):
    still = motion_targets(truth) * 0
    assert not weighed(still).any()


@pytest.mark.parametrize("symmetry", SYMMETRIES)
def test_weighed_targets_turn_with_the_clips(truth, symmetry):
    turned = turn_targets(motion_targets(truth), symmetry)
    assert torch.allclose(weighed(turned), turn_targets(weighed(motion_targets(truth)), symmetry), atol=1e-5)


def test_motion_targets_say_what_moves(truth):
    targets = motion_targets(truth)
    assert targets.shape == (*truth.angles.shape[:2], sum(CHANNELS.values()))
    assert targets.abs().max() <= 2
    for index, category in enumerate(truth.category.tolist()):
        kind, one, answer = CATEGORIES[category], targets[index], right_option(truth, index)
        if kind == "MR" and answer in DIRECTIONS:
            assert (channel(one, "velocity").sign().int() == torch.tensor(DIRECTIONS[answer])).all()
        elif kind == "MR":
            assert (channel(one, "spin") > 0).all() == (answer == "counter-clockwise")
        elif kind == "CM":
            assert (channel(one, "pan").sign().int() == -torch.tensor(DIRECTIONS[answer])).all()
        elif kind == "RC":
            assert COUNTS[int(channel(one, "flash").sum()) - 1] == answer
        elif kind == "MO":
            assert COLOURS[int(channel(one, "hopper")[0].argmax())] == answer.split()[1]
        assert bool(channel(one, "hopper").any()) == (kind == "MO")
        if kind in ("MO", "CM"):
            assert not any(channel(one, name).any() for name in ("velocity", "spin", "sine", "cosine", "flash"))


@pytest.mark.parametrize("patch", [4, 8, 16])
def test_patch_targets_say_what_each_patch_shows(truth, patch):
    clip = int((truth.category == CATEGORIES.index("RC")).nonzero()[0])
    targets = patch_targets(truth[[clip]], patch)
    colour, flash = int(truth.colours[clip, 0]), truth.flash[clip, :, 0]
    shown = targets.classes[0].flatten(1)
    assert [set(frame.tolist()) - {0} for frame in shown] == [{7} if f else {colour} for f in flash]
    x, y = (truth.positions[clip, 0, 0] // patch).int().tolist()
    assert bool(targets.near[0, 0, y, x])
    centre = torch.tensor([x + 0.5, y + 0.5]) * patch
    assert torch.allclose(centre + targets.offsets[0, 0, y, x] * patch, truth.positions[clip, 0, 0])
    assert not targets.offsets[~targets.near].any()


def test_a_patch_that_does_not_divide_the_frame_is_refused(truth):
    with pytest.raises(ValueError, match="patch=5 does not divide the frame size 32"):
        patch_targets(truth, 5)


def test_stills_are_answered_by_their_frame(questions, truth):
    stills = [still for seed in range(8) for still in still_questions(truth, questions, seed)]
    assert stills == [still for seed in range(8) for still in still_questions(truth, questions, seed)]
    assert set(Counter(s.question.answer for s in stills)) == set("ABCD")
    assert not any(truth.flash[still.clip, still.frame].any() for still in stills)
    for still in stills:
        question, right = still.question, option(still.question)
        present = (truth.colours[still.clip] > 0).nonzero()[:, 0]
        names = [COLOURS[truth.colours[still.clip, i] - 1] for i in present]
        assert question.category in motion.STILL_STEMS
        assert len(question.options) == len(set(question.options)) == 4
        if question.category == "number":
            assert {"none": 0, "one": 1, "two": 2, "four": 4}[right] == len(present)
            continue
        words = question.text.rstrip("?").split()
        i = present[next((j for j, name in enumerate(names) if name in words), 0)]
        offset = truth.positions[still.clip, still.frame, i] - 16
        angle = torch.deg2rad(truth.angles[still.clip, still.frame, i])
        heading = torch.stack([angle.cos(), -angle.sin()])
        vector = torch.tensor(DIRECTIONS.get(right, (0, 0)), dtype=torch.float)
        assert {
            "colour": right == names[0],
            "shape": right == SHAPES[truth.shapes[still.clip, i] - 1],
            "points": bool(heading @ vector > 0.86),
            "place": bool(offset @ vector >= 4),
        }[question.category], still


def test_stills_are_balanced(questions, clips):
    rows = [truth for *_, truth in clips]
    truth = motion.Truth(**{name: torch.as_tensor(np.stack([row[name] for row in rows])) for name in rows[0]})
    rights = Counter()
    for seed in range(4):
        stills = still_questions(truth, [questions[0]] * len(truth), seed)
        rights.update((still.question.category, option(still.question)) for still in stills)
    for kind in motion.STILL_STEMS:
        counts = [count for (category, _), count in rights.items() if category == kind]
        assert sum(counts) > 600
        assert max(counts) < 1.4 * min(counts), (kind, rights)


def test_no_stem_turns_with_the_picture(questions):
    for stem in (*STEMS.values(), *motion.STILL_STEMS.values()):
        assert all(turn_question(replace(questions[0], text=stem), s).text == stem for s in SYMMETRIES)


def test_stills_and_clips_must_belong_together(questions, truth):
    with pytest.raises(ValueError, match="191 questions do not belong to 192 clips"):
        still_questions(truth, questions[1:], 0)


def test_the_vocabulary_holds_every_text(questions, truth):
    asked = [*questions, *(still.question for still in still_questions(truth, questions, 0))]
    turned = [turn_question(question, symmetry) for question in asked for symmetry in SYMMETRIES]
    assert {text for q in turned for text in (q.text, *q.options)} <= set(vocabulary())


def test_a_folder_without_truth_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"holds no truth\.safetensors"):
        load_truth(tmp_path)
