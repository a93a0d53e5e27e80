"""MVBench: `json/<task>.json`, 20 tasks, the answer given as its text. Two layouts are in use, told apart by their
folders: whole videos with the bounds of what is asked about, or clips that are cut already.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from tefusion.choices import brief, nearest
from tefusion.data.annotation import AnnotationError, field, find, span, texts
from tefusion.data.question import LETTERS, Question
from tefusion.json_files import read_list


@dataclass(frozen=True)
class Layout:
    """The folders that only this layout has, in place of the plain ones of SOURCES."""

    name: str
    folders: dict[str, str]
    bounded: bool  # whether `start` and `end` say which part of the video is asked about


WHOLE = Layout("whole videos with bounds", {}, bounded=True)
CLIPS = Layout(
    "clips cut in advance",
    {
        "star/Charades_v1_480": "star/Charades_segment",
        "sta/sta_video": "sta/sta_video_segment",
        "tvqa/frames_fps3_hq": "tvqa/video_fps3_hq_segment",
        "nturgbd": "nturgbd_convert",
        "ssv2_video": "ssv2_video_mp4",
    },
    bounded=False,
)
BASES = ("video", "", "data0613", "video/data0613")  # where the folders of the videos are unpacked to
# What a task's videos come from; its bounds count only in the first five.
BOUNDED = {
    "action_sequence": "star/Charades_v1_480",
    "action_prediction": "star/Charades_v1_480",
    "object_interaction": "star/Charades_v1_480",
    "action_localization": "sta/sta_video",
    "episodic_reasoning": "tvqa/frames_fps3_hq",
}
SOURCES = BOUNDED | {
    "action_antonym": "ssv2_video",
    "fine_grained_pose": "nturgbd",
    "fine_grained_action": "Moments_in_Time_Raw/videos",
    "unexpected_action": "FunQA_test/test",
    "moving_count": "clevrer/video_validation",
    "moving_direction": "clevrer/video_validation",
    "moving_attribute": "clevrer/video_validation",
    "object_existence": "clevrer/video_validation",
    "counterfactual_inference": "clevrer/video_validation",
    "object_shuffle": "perception/videos",
    "state_change": "perception/videos",
    "action_count": "perception/videos",
    "character_order": "perception/videos",
    "scene_transition": "scene_qa/video",
    "egocentric_navigation": "vlnqa",
}


def read_mvbench(folder: str | Path, problems: list[str] | None = None) -> list[Question]:
    """Task after task, alphabetically; a question's uid is its task and its place in the task's file. Raises
    AnnotationError naming file and row, or collects these lines in `problems`."""
    folder = Path(folder)
    files = sorted((folder / "json").glob("*.json"))
    if not files:
        raise AnnotationError(f"{folder} is no MVBench folder: it has no json/<task>.json")
    found, questions = layout(folder), []
    for file in files:
        if file.stem not in SOURCES:
            raise AnnotationError(f"{file} is no task of MVBench{nearest(file.stem, SOURCES)}")
        parse = partial(parse_row, task=file.stem, place=count(), folder=folder, layout=found)
        questions += read_list(file, parse, AnnotationError, problems)
    if not questions and not problems:
        raise AnnotationError(f"{folder / 'json'} holds no question")
    return questions


def layout(folder: Path) -> Layout:
    """Which of the two the folder has; whole videos where it has no videos at all."""
    whole, clips = (
        sorted({name for name in names if any((folder / base / name).is_dir() for base in BASES)})
        for names in (CLIPS.folders.keys(), CLIPS.folders.values())
    )
    if whole and clips:
        raise AnnotationError(f"{folder} mixes MVBench's two layouts: {whole[0]} and {clips[0]}; keep one")
    return CLIPS if clips else WHOLE


def parse_row(row: Any, task: str, place: Iterator[int], folder: Path, layout: Layout) -> Question:
    uid = f"{task}-{next(place)}"
    name, text, answer = (field(row, key, str) for key in ("video", "question", "answer"))
    options = texts(row, "candidates")
    if len(options) > len(LETTERS):
        raise ValueError(f"'candidates' should be at most {len(LETTERS)}, found {len(options)}")
    if options.count(answer) != 1:
        said = "none" if answer not in options else "more than one"
        raise ValueError(f"answer {brief(answer)} is {said} of its candidates {brief(options)}")
    source = layout.folders.get(SOURCES[task], SOURCES[task])
    video = find("video", name, [folder / base / source for base in BASES], [""], folder)
    bounds = span(row, uid) if layout.bounded and task in BOUNDED else (None, None)
    letter = LETTERS[options.index(answer)]
    return Question(uid, video, text, tuple(options), letter, task, f"{source}/{name}", *bounds)
