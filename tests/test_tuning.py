"""Learning rates that are chosen: from what, by what, and what is said of it."""

from dataclasses import asdict, replace

import pytest

from tefusion import cli
from tefusion.cells import Cell, plan
from tefusion.config import LR_SCALES, Run
from tefusion.evaluation import UNASKED
from tefusion.tuning import best_of, chosen, learning_rates, trials

RUN = Run(n_input=8, k=2)


def row(run, accuracy, **fields):
    row = {name: getattr(run, name) for name in ("compressor", "k", "n_input", "size", "seed")}
    row |= {"settings": asdict(run), "accuracy": accuracy, "control": "trial", "questions": 1200, "status": "done"}
    return row | fields


def test_the_grid_is_the_same_for_every_cell():
    grid = plan(["recipe=tuned", "k=2,4", "n_input=8", "compressor=none,te_fusion", "times=1,4"])[1]
    by_setting = {}
    for cell in grid:
        by_setting.setdefault(replace(cell.run, lr_scale=1.0), []).append(cell.run.lr_scale)
    assert all(scales == LR_SCALES for scales in by_setting.values())
    assert {cell.run.lr_scale for cell in plan(["k=2", "n_input=8"])[1]} == {1.0}


def test_trials_are_shared_by_seeds_and_score_nothing_that_counts():
    cells = [Cell(replace(RUN, seed=seed, lr_scale=scale), "fewer_frames") for seed in (0, 1) for scale in (1.0, 2.0)]
    made = trials(replace(cell, evaluation="benchmarks") for cell in cells)
    assert {cell.evaluation for cell in made} == {UNASKED}  # no benchmark is asked
    assert [(cell.run.lr_scale, cell.control) for cell in made] == [(1.0, "trial"), (2.0, "trial")]
    assert {(cell.run.split, cell.run.seed) for cell in made} == {("dev", 1000)}
    assert {replace(cell.run, seed=0, split="test") for cell in made} == {
        cell.run for cell in cells if not cell.run.seed
    }


@pytest.mark.parametrize("name", ["seed", "split"])
def test_what_is_scored_has_neither_the_trials_seed_nor_their_questions(name):
    run = replace(RUN, **{"seed": {"seed": 1000}, "split": {"split": "dev"}}[name])
    with pytest.raises(ValueError, match=f"recipe=tuned.*{name}=|{name} 1000 is that of recipe=tuned"):
        trials([Cell(run)])


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ({0.5: 0.3, 1.0: 0.4, 2.0: 0.6}, 2.0),
        ({0.5: 0.5, 1.0: 0.5, 2.0: 0.5}, 1.0),
        ({0.25: 0.5, 2.0: 0.5}, 2.0),
        ({0.5: 0.5, 2.0: 0.5}, 0.5),
        ({0.5: None, 1.0: 0.1, 2.0: None}, 1.0),
        ({1.0: None}, None),
    ],
)
def test_the_best_is_the_likeliest_right_and_of_equals_the_least_change(scores, best):
    assert best_of(scores) == best
    assert best_of(dict(reversed(scores.items()))) == best


def test_a_choice_is_made_for_its_own_setting_alone():
    other = replace(RUN, times=4)
    cells = [Cell(replace(run, seed=seed, lr_scale=s)) for run in (RUN, other) for s in (0.5, 1.0) for seed in (0, 1)]
    rows = [
        row(trial.run, 0.5 + 0.1 * ((trial.run.lr_scale == 1.0) == (trial.run.times == 4))) for trial in trials(cells)
    ]
    found = {(cell.run.times, cell.run.lr_scale, cell.run.seed) for cell in chosen(cells, rows)}
    assert found == {(times, {1: 0.5, 4: 1.0}[times], seed) for times in (1, 4) for seed in (0, 1)}
    assert not chosen(cells, [line | {"control": ""} for line in rows])  # what is scored never chooses
    older = [line | {"settings": {n: v for n, v in line["settings"].items() if n != "equal"}} for line in rows]
    assert chosen(cells, older) == chosen(cells, rows)


def test_the_report_says_every_score_what_was_chosen_and_where_the_grid_ends():
    scores = {"te_fusion": (0.3, 0.6, 0.5), "pllava": (0.3, 0.4, 0.5), "kangaroo": (None, None, None)}
    rows = []
    for name, values in scores.items():
        for scale, value in zip(LR_SCALES, values, strict=True):
            failed = {"status": "failed"} if value is None else {}
            rows.append(row(replace(RUN, compressor=name, lr_scale=scale, seed=1000, split="dev"), value, **failed))
    text = "\n".join(learning_rates(rows))
    assert "on the 1,200 dev questions at seed 1000" in text
    assert "| method | k | frames | size | x 0.5 | x 1 | x 2 | chosen |" in text
    assert "| te_fusion | 2 | 8 | 32 | 30.0 | 60.0 | 50.0 | 1 |" in text
    assert "| kangaroo | 2 | 8 | 32 | failed | failed | failed | none: all failed |" in text
    assert text.endswith("too narrow (`lr_scale=`): pllava k=2 with 8 frames.")
    assert "times" not in text
    more = [row(replace(RUN, times=4, lr_scale=s, seed=1000, split="dev"), 0.5) for s in LR_SCALES]
    assert "| te_fusion | 2 | 8 | 32 | 4 | 50.0 | 50.0 | 50.0 | 1 |" in "\n".join(learning_rates(rows + more))
    assert learning_rates([line | {"control": ""} for line in rows]) == []


@pytest.mark.parametrize("command", ["train", "describe"])
def test_one_run_has_nothing_to_choose_from(command, capsys):
    assert cli.run(command, ["recipe=tuned"]) == 2
    assert "recipe=tuned is a sweep's" in capsys.readouterr().err
