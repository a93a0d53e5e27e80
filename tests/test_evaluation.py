"""Benchmarks that a run's model is asked: what its id knows of them, what is said at the door, scores and files."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import benchmark_folders as folders
import pytest
from hostile import one_line
from test_evaluate import Oracle
from test_report import cell, write_rows

from tefusion import cli
from tefusion import sweep as module
from tefusion.cells import PROTOCOL, Cell, plan
from tefusion.config import Run, digest
from tefusion.evaluation import UNASKED, Evaluation
from tefusion.exam import door, examine
from tefusion.paper.benchmarks import asked_lines, lines_by_benchmark, scored
from tefusion.paper.tables import tables
from tefusion.rows import read_results
from tefusion.score import read_answers
from tefusion.score_file import score_file
from tefusion.train import create_vlm, frame_cache

RUN = Run(compressor="te_fusion", k=2, n_input=4, encoder="tiny", batch=3)


@pytest.fixture(scope="module")
def benches(tmp_path_factory):
    """One folder of each benchmark; e.mp4 of MotionBench is missing, f.mp4 is no video."""
    home = tmp_path_factory.mktemp("benches")
    made = {name: getattr(folders, name)(home / name) for name in ("motionbench", "videomme", "lvbench")}
    made["mvbench"] = folders.mvbench(home / "mvbench", each=1)
    (made["motionbench"] / "self-collected" / "e.mp4").unlink()
    (made["motionbench"] / "self-collected" / "f.mp4").write_bytes(b"no video" * 99)
    return made


def asked(benches, *names, **settings):
    return Evaluation(",".join(f"{name}:{benches[name]}" for name in names), **settings)


class Speaker:
    """Says what it is told, one question after another; remembers what it was asked."""

    def __init__(self, *texts):
        self.texts, self.asked = iter(texts), []

    def generate(self, videos, prompts, tokens, seconds, **settings):
        self.asked += zip(videos, prompts, strict=True)
        assert (tokens, settings) == (16, {"do_sample": False, "num_beams": 1})
        return [next(self.texts) for _ in prompts]


# what an id knows


def test_without_benchmarks_an_id_is_what_it_was():
    assert UNASKED.identity == ()
    assert Cell(RUN, evaluation=Evaluation()).id("data") == digest(RUN, "data", PROTOCOL)


def test_an_id_follows_what_is_asked_and_how(benches, tmp_path):
    there = {"motionbench": folders.motionbench(tmp_path / "there"), "mvbench": benches["mvbench"]}
    evaluations = [asked(there, "motionbench"), asked(there, "mvbench"), asked(there, "motionbench", "mvbench")]
    evaluations += [asked(there, "motionbench", **s) for s in ({"limit": 3}, {"subset": 3}, {"prompt": "paper"})]
    evaluations += [asked(there, "motionbench", subset=3, subset_seed=1)]
    ids = [Cell(RUN, evaluation=one).id("data") for one in [UNASKED, *evaluations]]
    assert len(set(ids)) == len(ids)
    moved = there | {"motionbench": Path(shutil.copytree(there["motionbench"], tmp_path / "moved"))}
    assert Cell(RUN, evaluation=asked(moved, "mvbench", "motionbench")).id("data") == ids[3]
    (moved["motionbench"] / "self-collected" / "a.mp4").unlink()
    without = Cell(RUN, evaluation=asked(moved, "motionbench")).id("data")
    rows = (there["motionbench"] / "video_info.meta.jsonl").read_text()
    (there["motionbench"] / "video_info.meta.jsonl").write_text(rows.replace('"answer": "D"', '"answer": "C"'))
    assert len({*ids, without, Cell(RUN, evaluation=asked(there, "motionbench")).id("data")}) == len(ids) + 2


def test_a_version_of_words_or_reader_is_known_to_the_id(benches, monkeypatch):
    from tefusion import evaluation
    from tefusion.data.prompt import PROMPTS

    def identity():
        return json.dumps(asked(benches, "lvbench", prompt="paper").identity)

    first = identity()
    monkeypatch.setitem(PROMPTS["paper"], "lvbench", replace(PROMPTS["paper"]["lvbench"], version=2))
    second = identity()
    monkeypatch.setitem(evaluation.VERSIONS, "paper", 2)
    assert len({first, second, identity()}) == 3


def test_all_cells_of_a_sweep_are_asked_the_same_and_nothing_of_it_is_an_axis(benches):
    words = ["k=2", "compressor=none", f"eval=motionbench:{benches['motionbench']},lvbench:{benches['lvbench']}"]
    _, cells = plan([*words, "subset=2", "prompt=paper"])
    assert len(cells) == len(plan(words[:2])[1])
    assert {one.evaluation for one in cells} == {asked(benches, "motionbench", "lvbench", subset=2, prompt="paper")}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["limit=3"], "limit says how eval= is asked: name a benchmark"),
        (["prompt=paper"], "prompt says how eval= is asked"),
        (["prompt=papper"], "prompt 'papper' is unknown; did you mean 'paper'?"),
        (["eval=motionbensh:{}"], "did you mean 'motionbench'?"),
        (["eval=motionbench:/nowhere"], "'/nowhere' is no folder"),
        (["eval=motionbench"], "not of the form <benchmark>:<folder>"),
        (["eval=motionbench:{0},motionbench:{0}"], "names one benchmark twice"),
        (["eval=motionbench:{}", "limit=1", "subset=1"], "give limit or subset, not both"),
        (["eval=motionbench:{}", "limit=-1"], "limit must not be negative"),
        (["eval=motionbench:{}", "subset_seed=1"], "subset_seed draws the questions of subset="),
        (["eval=motionbench:{}", "limit=1,2"], "limit takes one value here"),
    ],
)
def test_what_cannot_be_asked_is_one_line(words, says, benches, capsys):
    for command in ("sweep", "train"):
        assert cli.run(command, [word.format(benches["motionbench"]) for word in words]) == 2
        assert says in capsys.readouterr().err


# at the door


def test_missing_videos_are_counted_at_the_door(benches, tmp_path):
    (said,) = asked(benches, "motionbench", "mvbench").at_the_door()
    assert said.startswith("motionbench: 1 of 6 videos are missing, 1 question about them will count as wrong")
    assert f"data=motionbench:{benches['motionbench']}" in said
    assert asked(benches, "motionbench", limit=2).at_the_door() == []
    gone = {"mvbench": folders.mvbench(tmp_path / "mv", each=1, videos=False)}
    with one_line("has none of its 20 videos"):
        asked(gone, "mvbench").at_the_door()


def test_a_benchmark_that_cannot_be_read_or_scored_is_refused_before_anything_trains(clips, tmp_path, capsys):
    made = folders.motionbench(tmp_path / "mb")
    text = (made / "video_info.meta.jsonl").read_text()
    (made / "video_info.meta.jsonl").write_text(text.replace('"answer": "D"', '"answer": "E"'))
    words = [f"eval=motionbench:{made}", f"home={tmp_path / 'home'}", "k=1", "compressor=none"]
    words += [f"data={clips}", "init=scratch", "steps=1", "batch=2"]
    for command in ("sweep", "train"):
        assert cli.run(command, words) == 2
        assert "video_info.meta.jsonl, line 4: answer 'E' of uid 'd0'" in capsys.readouterr().err
    (made / "video_info.meta.jsonl").write_text(text.splitlines()[2] + "\n")
    assert cli.run("sweep", words) == 2
    assert "keeps the answers of all that is asked secret" in capsys.readouterr().err
    assert not (tmp_path / "home").exists()


def test_a_question_that_the_context_cannot_hold_is_refused_before_anything_trains(benches, clips, tmp_path, capsys):
    from transformers import LlamaConfig

    from tefusion.tokenizer import byte_level_tokenizer

    tokenizer = byte_level_tokenizer([])
    tokenizer.save_pretrained(tmp_path)
    one = asked(benches, "lvbench", prompt="paper")
    (source,) = one.sources()
    longest = max(len(one.words(source).text(q).encode()) for q in one.questions(source))  # a token a byte
    video = 2 * (4 + 2)  # groups, their tokens, boi and eoi
    run = replace(RUN, decoder=str(tmp_path))
    LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=video + longest + 16).save_pretrained(tmp_path)
    assert door(one, [run, replace(run, seed=1)]) == []
    LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=video + longest + 15).save_pretrained(tmp_path)
    words = [f"eval=lvbench:{benches['lvbench']}", "prompt=paper", "compressor=te_fusion", "k=2", "n_input=4"]
    words += [f"decoder={tmp_path}", "encoder=tiny", f"home={tmp_path / 'home'}", f"data={clips}", "steps=1", "batch=2"]
    assert cli.run("train", words) == 2
    said = capsys.readouterr().err
    assert f"tokens are 1 more than the decoder's context of {video + longest + 15}" in said
    assert f"({video} of video, {longest} of the longest question, 16 of the reply)" in said
    assert not (tmp_path / "home").exists()


# scores and files


def test_scores_are_those_counted_by_hand(benches, tmp_path, home):
    """a0 right, a1 wrong, b0 right by a word's letter, b1 and c0 secret, d0 says nothing, e0 missing, f0 unreadable."""
    speaker = Speaker("A", "a. No", "Could be", "D.", "B", "none at all")
    one = asked(benches, "motionbench", prompt="paper")
    score = examine(speaker, RUN, one, frame_cache(home), tmp_path, lambda said: None)["motionbench"]
    assert (score["accuracy"], score["questions"], score["secret"]) == (pytest.approx(2 / 6), 6, 2)
    assert (score["unanswered"], score["missing"], score["replies"], score["words"]) == (3, 1, 6, 2)
    assert score["by_category"] == {"MR": 0.5, "LM": 1.0, "MO": 0.0, "AO": 0.0, "RC": 0.0}
    assert score["unreadable_videos"] == [str(benches["motionbench"] / "self-collected" / "f.mp4")]
    folder = tmp_path / "motionbench"
    rows = [json.loads(line) for line in (folder / "replies.jsonl").read_text().splitlines()]
    assert [row["uid"] for row in rows] == ["a0", "a1", "b0", "b1", "c0", "d0", "e0", "f0"]
    assert rows[1] == {"uid": "a1", "prediction": "N", "reply": "a. No", "seconds": 1.0}
    assert rows[6] == {"uid": "e0", "prediction": None, "reply": None, "seconds": 1.0}
    assert json.loads((folder / "leaderboard.json").read_text()) == {
        "a0": "A", "a1": "N", "b0": "C", "b1": "D", "c0": "B"
    }  # fmt: skip
    answers = read_answers(folder / "answers.jsonl")
    assert [answer.uid for answer in answers] == ["a0", "a1", "b0", "d0", "e0", "f0"]
    assert {answer.seconds for answer in answers} == {1.0}
    (source,) = one.sources()
    again = score_file(source, folder / "replies.jsonl", "paper")
    assert "| all questions | 33.3" in again
    assert "3 questions unanswered, counted as wrong; 2 secret, not scored" in again
    assert "in 2 the letter is a word's" in again


def test_who_watches_hears_of_every_video(benches, tmp_path, home):
    said = []
    examine(Oracle("ABCD"), RUN, asked(benches, "lvbench"), frame_cache(home), tmp_path, said.append)
    assert [line["answered"] for line in said] == [0, 1, 2, 3, 3, 4]


def test_a_model_of_the_text_alone_is_asked_without_a_video(benches, tmp_path, home):
    oracle, blind = Oracle("ABCDABCD"), replace(RUN, compressor="none", k=1, n_input=0)
    score = examine(oracle, blind, asked(benches, "motionbench"), frame_cache(home), tmp_path, print)["motionbench"]
    assert [video for video, *_ in oracle.seen] == [None] * 8
    assert (score["unanswered"], score["replies"], score["missing"]) == (0, 0, 0)
    rows = [json.loads(line) for line in (tmp_path / "motionbench" / "replies.jsonl").read_text().splitlines()]
    assert [row["prediction"] for row in rows] == [*"ABCDABCD"]
    assert {row["reply"] for row in rows} == {None}


def test_the_bounds_of_a_question_cut_its_video(benches, tmp_path, home):
    oracle = Oracle("A" * 20)
    score = examine(oracle, RUN, asked(benches, "mvbench"), frame_cache(home), tmp_path, print)["mvbench"]
    assert score["accuracy"] == 1.0
    assert not (tmp_path / "mvbench" / "leaderboard.json").exists()
    seconds = {answer.uid: answer.seconds for answer in read_answers(tmp_path / "mvbench" / "answers.jsonl")}
    assert seconds["action_sequence-0"] == pytest.approx(0.5)
    assert seconds["state_change-0"] is None
    shown = dict(zip(seconds, (seen[2].tolist() for seen in oracle.seen), strict=True))
    assert (min(shown["action_sequence-0"]), max(shown["state_change-0"])) == (pytest.approx(0.375), 0.875)


@pytest.mark.parametrize("prompt", ["likelihood", "paper", "lmms-eval"])
def test_a_small_vocabulary_reads_any_benchmarks_text(prompt, benches, tmp_path, home):
    vlm = create_vlm(RUN).eval()
    text = "Où va le pingouin 🐧 <eos> <|video|>, 向左?"
    assert vlm.tokenizer.decode(vlm.ids(text)) == text
    scores = examine(vlm, RUN, asked(benches, *benches, prompt=prompt), frame_cache(home), tmp_path, lambda said: None)
    assert list(scores) == list(benches)
    assert all(0 <= score["accuracy"] <= 1 for score in scores.values())
    assert scores["lvbench"]["unanswered"] == (0 if prompt == "likelihood" else pytest.approx(2, abs=2))
    assert scores["lvbench"]["replies"] == (0 if prompt == "likelihood" else 4)


@pytest.mark.parametrize("prompt", ["likelihood", "lmms-eval"])
def test_a_decoder_of_transformers_is_asked_as_well(prompt, benches, tmp_path, home):
    from transformers import LlamaConfig, LlamaForCausalLM

    from tefusion.tokenizer import byte_level_tokenizer

    tokenizer = byte_level_tokenizer(["It moves left."])
    tokenizer.save_pretrained(tmp_path / "llama")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(tmp_path / "llama")
    run = replace(RUN, decoder=str(tmp_path / "llama"))
    one = asked(benches, "lvbench", prompt=prompt)
    score = examine(create_vlm(run).eval(), run, one, frame_cache(home), tmp_path, lambda said: None)["lvbench"]
    assert score["questions"] == 4


# in a sweep, and in its reports


@pytest.fixture(scope="module")
def swept(benches, clips, home, tmp_path_factory):
    out = tmp_path_factory.mktemp("swept")
    words = [f"data={clips}", f"home={home}", f"out={out}", "steps=1", "batch=8", "n_input=2", "k=2"]
    words += ["init=scratch", "compressor=none,pllava", "limit=6"]
    words += ["eval=" + ",".join(f"{name}:{benches[name]}" for name in ("motionbench", "videomme"))]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "jobs_at_once", lambda asked: 0)
        assert cli.run("sweep", words) == 0
    return out, words


def test_a_sweeps_rows_carry_the_scores_beside_their_own(swept, benches):
    out, words = swept
    rows = read_results(out)
    assert {row["id"] for row in rows}.isdisjoint(one.id("x") for one in plan(words)[1])
    assert len(rows) == 4
    for row in rows:
        assert (row["status"], row["questions"], row["generated"]) == ("done", 24, True)
        assert row["evaluation"] == {"limit": 6, "subset": 0, "subset_seed": 0, "prompt": "likelihood"}
        assert {name: score["questions"] for name, score in row["scores"].items()} == {"motionbench": 4, "videomme": 6}
        kept = out / "cells" / row["id"] / "motionbench"
        assert {path.name for path in kept.iterdir()} == {"replies.jsonl", "answers.jsonl", "leaderboard.json"}
    again = [row["id"] for row in rows]
    assert cli.run("sweep", words) == 0
    assert [row["id"] for row in read_results(out)] == again


def test_the_reports_show_every_benchmark(swept):
    out, _ = swept
    assert "only the first 6 are asked" in (out / "report.md").read_text()
    (line,) = [x for x in asked_lines(read_results(out))["motionbench_dev"] if x["compressor"] == "pllava"]
    (row,) = [row for row in read_results(out) if row["compressor"] == "pllava"]
    assert line["accuracy"] == row["scores"]["motionbench"]["accuracy"]
    assert line["marks"][0].uids == ("a0", "a1", "b0", "d0")  # six of eight are asked, two of these are secret
    assert line["over_baseline"] is not None
    text = (out / "report.md").read_text()
    assert "## MotionBench dev, 2 input frames" in text
    assert "## Controls, MotionBench dev" in text
    assert f"| pllava | 2 | 2 | **{100 * line['accuracy']:.1f}** |" in text.split("## MotionBench dev, 2")[1]
    assert "2 more are secret, their answers in leaderboard.json" in text
    assert "| pllava | MotionBench dev | 2 | 2 |" in text
    assert "accuracy on motionbench" in (out / "results.csv").read_text().splitlines()[0]
    eight = tables(lines_by_benchmark(read_results(out)))[3]
    (numbers,) = [row.numbers for row in eight.rows if row.place == ("2", "pllava", "2")]
    assert numbers["motionbench_dev"].ours == 100 * line["accuracy"]
    assert numbers["generated"].ours == 100 * row["accuracy"]
    assert numbers["videomme_short"].ours is not None


def made(folder, evaluation=None, **scores):
    """A row with scores at hand, and its answers beside it."""
    row = cell(folder, "pllava", 4, generated=True, evaluation=evaluation or {"prompt": "likelihood"}, id=f"p{scores}")
    blank = {"stderr": 0.1, "by_category": {}, "asked": {}, "questions": 4, "unanswered": 0, "secret": 0, "missing": 0}
    blank |= {"replies": 0, "words": 0, "unreadable_videos": [], "repeated": 0}
    return {**row, "scores": {name: {**blank, **score} for name, score in scores.items()}}


def test_each_score_stands_in_its_own_column(tmp_path):
    by_duration = {"by_category": {"short": 0.5, "long": 0.25}, "asked": {"short": 8, "long": 4}}
    names = {"motionbench": 0.1, "mvbench": 0.2, "lvbench": 0.3, "videomme": 0.4}
    scores = {name: {"accuracy": value} for name, value in names.items()}
    scores["videomme"] |= by_duration
    write_rows(tmp_path, [made(tmp_path, **scores)])
    found = lines_by_benchmark(read_results(tmp_path))
    expected = {"motionbench_dev": 0.1, "mvbench": 0.2, "lvbench": 0.3, "videomme_short": 0.5, "videomme_long": 0.25}
    assert list(found) == ["generated", *expected]
    assert {name: line["accuracy"] for name, (line,) in found.items() if name in expected} == expected
    assert found["videomme_long"][0]["questions"] == 4


@pytest.mark.parametrize(
    ("scores", "says"),
    [
        (3, "scores must be an object of objects"),
        ({"mvbench": 0.5}, "scores must be an object of objects"),
        ({"mvbench": {"accuracy": 0.5}}, "has scores and lacks the prompt of its evaluation"),
        ({"mvbench": {"accuracy": 0.5}}, "lacks stderr, by_category, asked"),
        ({"mvbench": {"accuracy": 1.5}}, "accuracy on mvbench must lie between 0 and 1, got 1.5"),
    ],
)
def test_a_score_that_cannot_be_reported_is_one_line(scores, says, tmp_path, capsys):
    row = made(tmp_path, mvbench={"accuracy": 0.5})
    if says.startswith("accuracy"):
        scores = {"mvbench": row["scores"]["mvbench"] | scores["mvbench"]}
    write_rows(tmp_path, [{**row, "scores": scores} | ({"evaluation": {}} if "prompt" in says else {})])
    assert cli.run("report", [f"out={tmp_path}"]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"limit": 3}, "only the first 3 are asked"),
        ({"subset": 2, "subset_seed": 7}, "only 2 are asked, drawn by seed 7"),
    ],
)
def test_a_part_of_a_benchmark_says_so(settings, says, tmp_path):
    (said,) = scored([made(tmp_path, {"prompt": "likelihood"} | settings, mvbench={"accuracy": 0.5})])
    assert says in said


def test_a_trial_is_asked_no_benchmark(benches):
    one = Cell(RUN, evaluation=asked(benches, "lvbench"))
    assert replace(one, control="trial").id("data") == Cell(RUN).id("data") != one.id("data")


def test_scores_in_other_words_are_other_lines(tmp_path):
    rows = [made(tmp_path, {"prompt": name}, mvbench={"accuracy": share, "replies": n, "words": n // 3})
            for name, share, n in (("likelihood", 0.5, 0), ("paper", 0.25, 6))]  # fmt: skip
    write_rows(tmp_path, rows)
    lines = asked_lines(read_results(tmp_path))["mvbench"]
    assert sorted((line["settings"]["prompt"], line["accuracy"]) for line in lines) == [
        ("likelihood", 0.5),
        ("paper", 0.25),
    ]
    (said,) = scored(rows)
    assert said.startswith("MVBench: 25.0 to 50.0 % of 4 questions; the likeliest of the options' letters")
    assert said.endswith("6 replies read by paper, version 1, 2 of them at a letter of a word")


def test_a_kept_run_prints_its_scores_before_its_folder(benches, clips, home, tmp_path, capsys):
    words = [f"data={clips}", f"home={home}", f"out={tmp_path}", "steps=1", "batch=8", "n_input=4", "k=2"]
    words += ["encoder=tiny", "init=scratch", f"eval=motionbench:{benches['motionbench']}", "limit=4"]
    assert cli.run("train", words) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-2].startswith("MotionBench: ")
    assert said[-1] == str(tmp_path)
