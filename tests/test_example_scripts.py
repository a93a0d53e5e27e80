"""examples/: each runs, learns or writes what it says, and refuses bad input in a sentence."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tefusion.compressors import COMPRESSORS
from tefusion.data.motion_files import create_clip, write_video
from tefusion.data.source import MOTION_SETS
from tefusion.integrations.transformers import load_compressed

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples"))
import finetune_llava_onevision  # noqa: E402
import plain_vlm  # noqa: E402
import siglip_features  # noqa: E402

GUIDE = (ROOT / "docs" / "integrations.md").read_text(encoding="utf-8")
COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", GUIDE, re.DOTALL)
    for line in block.splitlines()
    if line.startswith("python examples/")
]


@pytest.fixture
def clip(tmp_path):
    path = tmp_path / "clip.mp4"
    write_video(path, create_clip(MOTION_SETS["motion-smoke"], "test", 0)[1], fps=8)
    return path


def said(capsys, run, *words):
    """What an example says on bad input, where it ends."""
    with pytest.raises(SystemExit):
        run([str(word) for word in words])
    return capsys.readouterr().err.splitlines()[-1]


def test_the_plain_model_learns_where_the_square_goes():
    assert plain_vlm.main(["te_fusion", "--k", "4", "--steps", "30"]) > 0.9


@pytest.mark.parametrize("name", COMPRESSORS)
def test_the_plain_model_takes_every_compressor(name):
    k = 1 if COMPRESSORS[name].valid_k == (1,) else 2
    model = plain_vlm.VideoLanguageModel(name, k)
    video, _ = plain_vlm.clips(2, 8, torch.Generator().manual_seed(0))
    if name == "lower_resolution":
        with pytest.raises(ValueError, match="shows frames of another size"):
            model.embeds(video)
        return
    assert model.embeds(video).shape == (2, 8 // k * 4, plain_vlm.EMBED)
    model(video, torch.zeros(2, 1, dtype=torch.long)).logsumexp(-1).sum().backward()
    assert all(p.grad is not None for p in model.compressor.parameters())


def test_the_plain_models_bad_input(capsys):
    assert "8 frames do not divide into groups of k = 3" in said(capsys, plain_vlm.main, "te_fusion", "--k", "3")
    assert "did you mean 'te_fusion'" in said(capsys, plain_vlm.main, "te_fusio")


def test_llava_onevision_is_fine_tuned_saved_and_read_back(tmp_path, capsys):
    losses = finetune_llava_onevision.main(["--out", str(tmp_path / "out")])
    assert losses[-1] < 0.7 * losses[0]
    loaded = load_compressed(tmp_path / "out")
    printed = capsys.readouterr().out
    assert f"16 frames are {loaded.num_video_tokens(16, 32, 32)} tokens" in printed
    assert re.search(r"says: '.*', right is '[ABCD]'", printed)


def test_llava_onevision_from_a_checkpoint_and_rows_of_its_own(tmp_path, clip, capsys):
    """Only the compressor is trained then, and only the answers are learned."""
    model, processor = finetune_llava_onevision.tiny()
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    row = {"video": clip.name, "question": "What moves?", "answer": "a star"}
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(row)}\n" * 2)
    where = ["--model", tmp_path / "model", "--data", tmp_path / "rows.jsonl", "--out", tmp_path / "out"]
    finetune_llava_onevision.main([*map(str, where), "--steps", "2", "--batch", "2", "--compressor", "kangaroo"])
    loaded = load_compressed(tmp_path / "out")
    before = model.state_dict()
    same = {
        name: torch.equal(value, before[name]) for name, value in loaded.model.state_dict().items() if name in before
    }
    assert same
    assert all(same.values())
    assert "right is 'a star'" in capsys.readouterr().out
    batch = finetune_llava_onevision.Collator(processor, 4)([{**row, "video": str(clip)}] * 2)
    for labels in batch["labels"]:
        assert labels[labels != -100].tolist() == processor.tokenizer("a star<end>")["input_ids"]
    (tmp_path / "rows.jsonl").write_text('{"video": "clip.mp4"}\n')
    with pytest.raises(ValueError, match=r"rows\.jsonl:1 has no answer, question"):
        finetune_llava_onevision.main([*map(str, where), "--steps", "1"])


def test_siglip_features_are_written_whole_with_what_they_are(tmp_path, clip):
    twin = tmp_path / "twin.mp4"
    twin.write_bytes(clip.read_bytes())
    out = siglip_features.main([str(clip), str(twin), "--k", "4", "--out", str(tmp_path / "features.safetensors")])
    with safe_open(out, "pt") as file:
        assert file.metadata() == {
            "compressor": "te_fusion:readout=mean",
            "k": "4",
            "frames": "16",
            "tower": "tiny, random",
        }
        assert set(file.keys()) == {"clip.mp4", "twin.mp4"}
        features = file.get_tensor("clip.mp4")
        assert torch.equal(features, file.get_tensor("twin.mp4"))
    assert features.shape == (4, 2, 2, 32)
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


def test_siglip_features_of_one_frame_are_the_towers_own():
    tower = siglip_features.SiglipVisionModel(
        siglip_features.SiglipVisionConfig(**siglip_features.TINY, image_size=32, patch_size=8)
    )
    extractor = siglip_features.FeatureExtractor(tower, "te_fusion:readout=mean", 1)
    frames = torch.randint(0, 256, (3, 32, 32, 3))
    found = extractor(frames, torch.arange(3.0))
    own = tower(frames.permute(0, 3, 1, 2) / 127.5 - 1).last_hidden_state.unflatten(1, (2, 2, 2, 2)).mean((2, 4))
    assert torch.allclose(found, own, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in extractor.tower.parameters())


def test_siglip_features_bad_input(tmp_path, clip, capsys):
    def of(*words):
        return said(capsys, siglip_features.main, *words, "--out", tmp_path / "features.safetensors")

    assert "kangaroo has to be trained first" in of(clip, "--compressor", "kangaroo")
    assert "lower_resolution has to be trained first" in of(clip, "--compressor", "lower_resolution")
    assert "16 frames do not divide into groups of k = 3" in of(clip, "--k", "3")
    assert "two videos have one name" in of(clip, clip)
    assert "missing.mp4" in of(tmp_path / "missing.mp4")
    assert not (tmp_path / "features.safetensors").exists()


def test_the_guide_names_every_example():
    named = {shlex.split(command)[1] for command in COMMANDS}
    assert named == {str(path.relative_to(ROOT)) for path in (ROOT / "examples").glob("*.py")}


@pytest.mark.heavy
@pytest.mark.parametrize("command", COMMANDS)
def test_the_guides_commands_run(command, clip):
    _, script, *words = shlex.split(command)
    subprocess.run([sys.executable, str(ROOT / script), *words], cwd=clip.parent, check=True)
