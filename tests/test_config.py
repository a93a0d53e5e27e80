"""Words -> typed values, and the one line that says what is wrong with them."""

from dataclasses import dataclass, replace

import pytest

from tefusion.cells import PROTOCOL, Sweep
from tefusion.config import CHOICES, RECIPES, Run, choose, digest, fields, one_each, parse


def test_values_have_the_types_of_the_defaults_and_lists_are_axes():
    parsed = parse(["k=2,4", "lr=1e-3,2", "augment=False,true", "compressor=te_fusion", "jobs=2"], Run, Sweep)
    assert parsed.pop("compressor") == ["te_fusion"]
    assert parsed == {"k": [2, 4], "lr": [0.001, 2.0], "augment": [False, True], "jobs": [2]}
    assert [type(value) for value in parsed["lr"]] == [float, float]


def test_equal_values_are_one():
    assert parse(["k=4,2,4"], Run) == {"k": [4, 2]}


def test_a_value_may_hold_an_equals_sign_and_a_whole_one_its_commas():
    assert parse(["data=a=b"], Run) == {"data": ["a=b"]}
    assert parse(["data=a,b", "k=1,2"], Run, whole=["data"]) == {"data": ["a,b"], "k": [1, 2]}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["k"], "'k' is not of the form key=value"),
        (["--k=4"], "unknown key '--k'; known: accumulate, augment"),
        (["compresor=none"], "unknown key 'compresor'; did you mean 'compressor'?"),
        (["zzz=1"], "unknown key 'zzz'; known: accumulate, augment"),
        (["k=2", "k=4"], "'k' is given twice"),
        (["k=four"], "k must be a whole number, got 'four'"),
        (["k=2.5"], "k must be a whole number, got '2.5'"),
        (["k="], "k must be a whole number, got ''"),
        (["k=2,,4"], "k must be a whole number, got ''"),
        (["lr=fast"], "lr must be a number, got 'fast'"),
        (["augment=1"], "augment must be true or false, got '1'"),
    ],
)
def test_wrong_words_get_one_line(words, says):
    with pytest.raises(ValueError, match=r"\w") as raised:
        parse(words, Run)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


BAD = [("k", 0), ("k", -1), ("k", 3), ("steps", 0), ("batch", 0), ("batch", -64), ("accumulate", 0), ("accumulate", 3)]
BAD += [("times", 0), ("lr_scale", 0.0), ("lr_scale", float("nan")), ("equal", "flop")]
BAD += [("n_input", -16), ("seed", -1), ("image_steps", -1), ("warmup", -1), ("workers", -1), ("lr", 0.0)]
BAD += [("lr", -1.0), ("lr", float("nan")), ("lr", float("inf")), ("muon_lr", 0.0), ("clip", 0.0), ("final_lr", -0.1)]
BAD += [("weight_decay", -1.0), ("muon_decay", -1.0), ("auxiliary", float("nan")), ("position_std", -1.0)]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_run_refuses_what_cannot_be(name, value):
    with pytest.raises(ValueError, match=name):
        replace(Run(n_input=16), **{name: value})


def test_k_must_divide_the_frames_and_the_line_names_both():
    with pytest.raises(ValueError, match=r"16 frames .* k = 5"):
        Run(k=5, n_input=16)
    assert Run(k=6, n_input=24).n_input == 24


@pytest.mark.parametrize("name", CHOICES)
def test_a_choice_names_the_nearest(name):
    valid = CHOICES[name][-1]
    with pytest.raises(ValueError, match=f"{name} '{valid}x' is unknown; did you mean '{valid}'"):
        replace(Run(), **{name: valid + "x"})


def test_choose_lists_what_is_known_where_nothing_is_near():
    with pytest.raises(ValueError, match="known: none, te_fusion"):
        choose("compressor", "zzzz", ["te_fusion", "none"])


def test_one_each_refuses_a_list():
    assert one_each({"k": [2], "lr": [1, 2]}, ["k", "seed"]) == {"k": 2}
    with pytest.raises(ValueError, match="lr takes one value here, got 2"):
        one_each({"lr": [1, 2]}, ["lr"])


def test_recipes_are_runs_and_the_papers_has_its_table_5():
    for settings in RECIPES.values():
        Run(**settings)
    paper = Run(**RECIPES["paper"])
    assert (paper.steps, paper.warmup, paper.batch, paper.lr) == (10_000, 1_000, 768, 8e-6)
    assert paper.optimizer == "adamw"
    assert paper.lr * paper.final_lr == pytest.approx(1e-6)


def test_a_digest_is_equal_for_equal_settings_only():
    settings = [(Run(), "data", 1), (Run(seed=1), "data", 1), (Run(), "other", 1), (Run(), "data", 2)]
    assert len({digest(*parts) for parts in settings}) == 4
    assert digest(Run(k=4), "data", 1) == digest(replace(Run(k=2), k=4), "data", 1)


def test_every_setting_changes_the_digest():
    for name in fields(Run):
        other = Run()
        object.__setattr__(other, name, "another")
        assert digest(other) != digest(Run()), name


def test_a_setting_that_comes_later_renames_no_run():
    @dataclass(frozen=True)
    class Later(Run):
        another: float = 0.5

    assert digest(Later(k=2, seed=1), "data") == digest(Run(k=2, seed=1), "data")
    assert digest(Later(another=0.6), "data") != digest(Run(), "data")


DEFAULTS = {
    "compressor": "te_fusion",
    "k": 4,
    "n_input": 16,
    "size": "32",
    "policy": "centres",
    "seed": 0,
    "encoder": "micro",
    "decoder": "tiny",
    "init": "image",
    "position_std": 0.5,
    "freeze": "none",
    "data": "motion",
    "split": "test",
    "augment": True,
    "steps": 300,
    "times": 1,
    "equal": "samples",
    "lr_scale": 1.0,
    "image_steps": 400,
    "batch": 64,
    "accumulate": 1,
    "optimizer": "muon",
    "muon_lr": 0.02,
    "lr": 1.5e-3,
    "final_lr": 0.05,
    "warmup": 50,
    "weight_decay": 0.0,
    "muon_decay": 1.0,
    "clip": 1.0,
    "auxiliary": 1.0,
    "precision": "no",
    "workers": 0,
}


def test_a_default_that_changes_raises_the_protocol():
    """Equal names would stand for other runs: raise PROTOCOL, and write the new defaults here."""
    known = {name: getattr(Run, name) for name in DEFAULTS}
    assert (PROTOCOL, known) == (4, DEFAULTS)
