"""Small folders in each benchmark's true layout, with real videos where a test decodes them."""

import json

import numpy as np
from PIL import Image

from tefusion.data.motion_files import write_video
from tefusion.data.mvbench import CLIPS, SOURCES

LVBENCH_TYPES = ["entity recognition", "event understanding", "key information retrieval"]


def clip(path, seed=0, frames=8, size=32, fps=8):
    """Noise that moves: 8 frames in a second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    still = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    write_video(path, np.stack([np.roll(still, 2 * t, axis=1) for t in range(frames)]), fps=fps)
    return path


def lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def motionbench(folder, videos=True):
    """Six rows, eight questions: the row of a.mp4 holds two known answers, that of b.mp4 a secret one, c's is test."""
    kinds = ["Motion Recognition", "Location-related Motion", "Camera Motion", "Motion-related Objects"]
    kinds += ["Action Order", "Repetition Count"]
    text = "How does it move?\nA. left\nB. right\nC. up\nD. down"
    answers = [["A", "B"], ["C", "NA"], ["NA"], ["D"], ["A"], ["B"]]
    names = ["a.mp4", "b.MP4", "c_58_59.mp4", "d.mp4", "e.mp4", "f.mp4"]
    rows = []
    for kind, name, row in zip(kinds, names, answers, strict=True):
        qa = [{"uid": f"{name[0]}{i}", "question": text, "answer": answer} for i, answer in enumerate(row)]
        rows.append(
            {
                "question_type": kind,
                "video_type": "x",
                "key": name[0],
                "video_path": name,
                "video_info": {"duration": 1.0, "fps": 8.0},
                "qa": qa,
            }
        )
        if videos:
            clip(folder / ("public-dataset" if "_" in name else "self-collected") / name, seed=ord(name[0]))
    lines(folder / "video_info.meta.jsonl", rows)
    return folder


def mvbench(folder, clips=False, each=2, videos=True):
    """20 tasks of `each` questions, all answered by the first candidate; `clips` is the layout of cut clips."""
    (folder / "json").mkdir(parents=True)
    for place, (task, source) in enumerate(SOURCES.items()):
        source = CLIPS.folders.get(source, source) if clips else source
        rows = []
        for i in range(each):
            row = {"video": f"{task}{i}.mp4", "question": "What?", "candidates": ["left", "right", "up"]}
            row["answer"] = "left"
            if source == "tvqa/frames_fps3_hq":
                row["video"] = f"{task}{i}"
            if task in ("action_sequence", "episodic_reasoning", "action_localization"):
                row |= {"start": 0.4, "end": 0.9}
            rows.append(row)
            base = folder if clips else folder / "video"
            if videos and source == "tvqa/frames_fps3_hq":
                pictures(base / source / row["video"])
            elif videos:
                clip(base / source / row["video"], seed=10 * place + i)
        (folder / "json" / f"{task}.json").write_text(json.dumps(rows), encoding="utf-8")
    return folder


def pictures(folder, frames=6):
    folder.mkdir(parents=True)
    for t in range(frames):
        Image.fromarray(np.full((24, 32, 3), 40 * t, np.uint8)).save(folder / f"{t + 1:05d}.jpg")
    return folder


def videomme(folder, videos=True):
    """Nine questions: three videos, one of each duration."""
    import pyarrow
    from pyarrow import parquet

    rows = []
    for place, duration in enumerate(("short", "medium", "long")):
        name = f"vid-{duration}"
        for i in range(3):
            rows.append(
                {
                    "video_id": f"{place:03d}",
                    "duration": duration,
                    "domain": "Knowledge",
                    "sub_category": "Geography",
                    "videoID": name,
                    "question_id": f"{place:03d}-{i}",
                    "task_type": "Counting Problem",
                    "question": "How many?",
                    "options": ["A. one", "B. two", "C. three", "D. four"],
                    "answer": "ABC"[i],
                }
            )
        if videos:
            clip(folder / "data" / f"{name}.mp4", seed=place)
    (folder / "videomme").mkdir(parents=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "videomme" / "test-00000-of-00001.parquet")
    return folder


def lvbench(folder, videos=True):
    """Two videos of two questions; three of the four have more than one category."""
    rows = []
    for place, name in enumerate(("one", "two")):
        qa = [
            {
                "uid": str(2 * place + i),
                "question": "Who?\n(A) he\n(B) she\n(C) they\n(D) it",
                "answer": "AB"[i],
                "question_type": LVBENCH_TYPES[: 1 + i + place],
                "time_reference": "00:15-00:19",
            }
            for i in range(2)
        ]
        info = {"duration_minutes": 1 / 60, "fps": 8.0, "resolution": {"width": 32, "height": 32}}
        rows.append({"key": name, "type": "cartoon", "qa": qa, "video_info": info})
        if videos:
            clip(folder / "videos" / f"{name}.mp4", seed=place)
    lines(folder / "video_info.meta.jsonl", rows)
    return folder
