"""What training minimises: the right token, the group's mean trajectory, the light that features keep."""

import pytest
import torch
from einops import reduce

from tefusion.objective import VideoObjective, brightness, first_tokens_right
from tefusion.vision import create_video_encoder
from tefusion.vlm import VLM, Reply


class Stub(VLM):
    """As much of a VLM as the heads look at."""

    def __init__(self, compressor, k):
        torch.nn.Module.__init__(self)
        self.encoder = create_video_encoder("micro", compressor, k)
        self.boi = torch.nn.Parameter(torch.zeros(1, 64))


def test_the_first_token_of_an_answer_counts_whatever_its_length():
    labels = torch.tensor([[-100, 3, 1], [2, 4, 1]])
    logits = torch.zeros(2, 3, 6)
    logits[0, 1, 3] = logits[1, 0, 2] = 9.0  # both first tokens right, the later ones wrong
    assert first_tokens_right(Reply(logits, labels, [None, None])) == 1
    logits[1, 0, 5] = 10.0
    assert first_tokens_right(Reply(logits, labels, [None, None])) == 0.5


@pytest.mark.parametrize("size", [32, 36, 45])
def test_brightness_is_the_mean_of_each_sixteenth(size):
    video = torch.rand(2, 3, 3, size, size)
    light = brightness(video, 2, 2)
    assert light.shape == (2, 3, 2, 2, 16)
    if size % 8 == 0:
        corner = video[:, :, :, : size // 8, size // 4 - size // 8 : size // 4]
        assert torch.allclose(light[:, :, 0, 0, 1], reduce(corner, "b t c y x -> b t", "mean"))
    assert torch.allclose(brightness(torch.full_like(video, 0.25), 2, 2), torch.tensor(0.25))


@pytest.mark.parametrize(("compressor", "k"), [("none", 1), ("qwen2_vl", 4), ("te_fusion", 4), ("pllava", 2)])
def test_light_is_compared_with_the_frames_that_a_feature_holds(compressor, k):
    objective = VideoObjective(Stub(compressor, k), channels=3, weight=1.0)
    video = torch.rand(2, 8, 3, 32, 32)
    features = objective.vlm.encoder.encode(video)
    held = 8 // (features.shape[1] * features.shape[2])  # frames in a feature: k where they were merged before
    assert held == (k if compressor == "qwen2_vl" else 1)
    light = reduce(brightness(video, 2, 2), "b (s k) h w n -> b s h w n", "mean", k=held)
    objective.light.forward = lambda x: light.reshape(*x.shape[:-1], 16)
    assert objective.kept(features, video) == 0
    objective.light.forward = lambda x: light.flip(1).reshape(*x.shape[:-1], 16)
    assert objective.kept(features, video) > 1e-4


def test_trajectories_are_those_of_the_group():
    objective = VideoObjective(Stub("te_fusion", 4), channels=3, weight=1.0)
    targets = torch.randn(2, 8, 3)
    groups = torch.stack([targets[:, :4].mean(1), targets[:, 4:].mean(1)], dim=1)
    objective.head.forward = lambda x: groups
    assert objective.trajectories(torch.randn(2, 2, 1, 64), targets) < 1e-12
    objective.head.forward = lambda x: groups + 1
    assert torch.isclose(objective.trajectories(torch.randn(2, 2, 1, 64), targets), torch.tensor(3.0))
