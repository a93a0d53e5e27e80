"""Generated clips and their reverses: who sees order can learn to tell them apart, who pools a whole clip cannot."""

import pytest
import torch

from tefusion.config import Run
from tefusion.data.motion_files import MotionSettings, create_clip
from tefusion.data.motion_scene import OPPOSITE
from tefusion.data.question import LETTERS
from tefusion.decoder import create_decoder
from tefusion.optim import optimizers
from tefusion.tokenizer import byte_level_tokenizer
from tefusion.vision import create_video_encoder
from tefusion.vlm import VLM

FRAMES, CLIPS, CATEGORIES = 8, 4, 6
BACK = OPPOSITE | {"clockwise": "counter-clockwise", "counter-clockwise": "clockwise"}


@pytest.fixture(scope="module")
def asked():
    """Clips that ask for a direction, each followed by its reverse, with the questions and the right letters."""
    videos, prompts, letters = [], [], []
    for index in range(0, CATEGORIES * CLIPS, CATEGORIES):
        row, frames, _ = create_clip(MotionSettings(frames=FRAMES), "train", index)
        _, *lines = row["qa"][0]["question"].split("\n")
        options = [line.removeprefix(f"{letter}. ") for letter, line in zip(LETTERS, lines, strict=False)]
        right = options[LETTERS.index(row["qa"][0]["answer"])]
        for video, answer in ((frames, right), (frames[::-1], BACK[right])):
            videos.append(torch.from_numpy(video.copy()))
            prompts.append(row["qa"][0]["question"])
            letters.append(LETTERS[options.index(answer)])
    return videos, prompts, letters


def trained(asked, compressor, steps):
    """By heart, all clips a step; a clip is one group. Returns the likelihoods of the letters."""
    videos, prompts, letters = asked
    torch.manual_seed(0)
    options = {"position_std": 0.5} if compressor == "te_fusion" else {}
    encoder = create_video_encoder("micro", compressor, FRAMES, **options)
    vlm = VLM(encoder, create_decoder("tiny"), byte_level_tokenizer(prompts))
    made = optimizers(vlm, vlm, Run(lr=3e-3))
    for _ in range(steps):
        vlm(videos, prompts, letters).loss.backward()
        torch.nn.utils.clip_grad_norm_(vlm.parameters(), 1.0)
        for optimizer in made:
            optimizer.step()
            optimizer.zero_grad()
    with torch.no_grad():
        return vlm.eval().likelihoods(videos, prompts, list(LETTERS[:4]))


def test_who_sees_order_answers_a_clip_and_its_reverse_differently(asked):
    said = [LETTERS[i] for i in trained(asked, "te_fusion", steps=60).argmax(-1)]
    assert said == asked[2]
    assert all(forth != back for forth, back in zip(said[::2], said[1::2], strict=True))


@pytest.mark.parametrize("compressor", ["tpool", "pllava"])
def test_the_mean_of_a_whole_clip_answers_both_alike(asked, compressor):
    likelihoods = trained(asked, compressor, steps=10)
    torch.testing.assert_close(likelihoods[::2], likelihoods[1::2], rtol=1e-4, atol=1e-4)
    right = sum(LETTERS[i] == letter for i, letter in zip(likelihoods.argmax(-1), asked[2], strict=True))
    assert right <= CLIPS
    assert (likelihoods[0] - likelihoods[2]).abs().max() > 1e-3  # other clips are told apart
