"""`tefusion compare`: files, cells and methods, single and over seeds."""

import numpy as np
import pytest
from test_report import cell, write_rows

from tefusion import cli
from tefusion.compare import compare
from tefusion.permutation import sign_flip
from tefusion.results import read_marks
from tefusion.score import Answer, write_answers
from tefusion.wording import p_value


@pytest.fixture
def swept(tmp_path):
    rows = [cell(tmp_path, "te_fusion", 4, seed=seed, rate=0.8) for seed in range(5)]
    rows += [cell(tmp_path, n_input=4, control="fewer_frames", seed=seed, rate=0.5) for seed in range(5)]
    rows += [cell(tmp_path, "pllava", 4, seed=seed, rate=0.6) for seed in (3, 4)]
    write_rows(tmp_path, rows)
    return tmp_path, rows


def said(text, name):
    return next(line.split(maxsplit=1)[1] for line in text.splitlines() if line.startswith(name))


def test_methods_are_paired_by_seed(swept):
    out, rows = swept
    text = compare("te_fusion:4", "none:1:4", out)
    each = [100 * (a["accuracy"] - b["accuracy"]) for a, b in zip(rows[:5], rows[5:10], strict=True)]
    assert text.count("seed 4") == 3  # both sides and the difference show every seed
    assert f"seed 2 {each[2]:+.1f}" in text
    assert f"a - b      {np.mean(each):+.1f} [" in text
    assert said(text, "asked") == "240 questions about 120 videos"
    assert said(text, "claim").startswith("exploratory")
    assert "standard errors: training" in text
    assert "none: 2 paired seeds of the 5" in compare("pllava:4", "te_fusion:4:16", out)


def test_files_and_cells_are_single_checkpoints(swept):
    out, rows = swept
    files = [out / "cells" / rows[place]["id"] / "answers.jsonl" for place in (0, 6)]
    text = compare(str(files[0]), rows[6]["id"], out)
    a, b = (read_marks(path) for path in files)
    assert (
        said(text, "sign")
        == f"flips p {p_value(sign_flip(a.correct, b.correct, a.clusters))}, exchanged video by video"
    )
    assert "not applicable" in said(text, "McNemar")
    assert "another seed may order" in said(text, "claim")


def test_mcnemar_where_each_video_has_one_question(tmp_path):
    for name, right in (("a", "AAAAAAAAAB"), ("b", "AABBBBBBBA")):
        write_answers(tmp_path / name, [Answer(f"q{i}", f"v{i}", "AO", 4, p, "A") for i, p in enumerate(right)])
    text = compare(str(tmp_path / "a"), str(tmp_path / "b"), tmp_path)
    assert said(text, "McNemar") == "p 0.0703, exact"  # 7 against 1: 2 * 9 / 256


@pytest.mark.parametrize(
    ("a", "b", "says"),
    [
        ("te_fuson:4", "none:1:4", "did you mean 'te_fusion:4:16'?"),
        ("none:1", "te_fusion:4", "'none:1' is no file, and no cell or method"),
        ("", "te_fusion:4", "compare needs a=..."),
        ("te_fusion:4", "{other}", "answer 240 and 1 questions, 0 of them the same"),
    ],
)
def test_what_cannot_be_compared_gets_one_line(swept, a, b, says, capsys):
    out, rows = swept
    write_answers(out / "other", [Answer("q", "v", "AO", 4, "A", "A")])
    if "{other}" in b:
        a, b = rows[0]["id"], str(out / "other")
    assert cli.run("compare", [f"a={a}", f"b={b}", f"out={out}"]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1


def test_a_method_with_two_settings_has_to_be_told_apart(swept):
    out, rows = swept
    write_rows(out, [*rows, cell(out, "te_fusion", 4, seed=0, id="other", rate=0.7)])
    with pytest.raises(ValueError, match=r"several cells of seed 0: name one of .*other"):
        compare("te_fusion:4", "none:1:4", out)


def test_seeds_that_nobody_shares_are_no_pairs(swept):
    out, rows = swept
    write_rows(out, [*rows[:2], *rows[7:10]])
    with pytest.raises(ValueError, match=r"a has the seeds \[0, 1\], b has \[2, 3, 4\]: none is shared"):
        compare("te_fusion:4", "none:1:4", out)
