"""A compressor inside every supported video model: what it says it costs, what it computes, and that it comes back."""

import copy
import functools
import itertools
import json
import re

import pytest
import torch
import transformers
from packaging.version import Version
from tiny_processors import TINY_PROCESSORS
from tiny_towers import PATCH
from tiny_vlms import BEAMS_SINCE, IMAGE, OLDEST, TINY_VLMS, VIDEO, TinyVLM
from torch import nn

from tefusion.compressors import COMPRESSORS
from tefusion.integrations.transformers import (
    HOSTS,
    CompressedVideo,
    compress_processor_,
    compress_video_,
    group_attention_,
    load_compressed,
)
from tefusion.integrations.transformers.hosts import host_of

ORDINARY = {"te_fusion", "qwen2_vl", "kangaroo", "pllava", "qformer"}  # the paper's


WITH_PROCESSOR = list(TINY_PROCESSORS)


@pytest.fixture(params=TINY_VLMS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def compressed(name: str, method: str = "te_fusion", k: int = 2, **options) -> tuple[TinyVLM, CompressedVideo]:
    tiny = TINY_VLMS[name]()
    torch.manual_seed(0)
    return tiny, compress_video_(tiny.model, method, k, **options)


def perturbed(module: nn.Module) -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


def shorten(made: CompressedVideo, batch: dict) -> dict:
    return made.shorten(batch, visuals=batch.visuals)


def video_places(batch: dict) -> torch.Tensor:
    types = batch.get("mm_token_type_ids")
    video = (batch["input_ids"] == VIDEO) | (batch["input_ids"] == IMAGE if "pixel_values" in batch else False)
    return video if types is None else types == 2


def encoded(made: CompressedVideo, batch: dict):
    """What the model makes of a batch's videos, which are all that is to be seen in it."""
    if isinstance(batch.get("pixel_values"), list):
        return made.owner.get_image_features(batch["pixel_values"])
    grid = batch.get("video_grid_thw")
    return made.owner.get_video_features(batch["pixel_values_videos"], *([] if grid is None else [grid]))


def features(made: CompressedVideo, batch: dict) -> int:
    """How many video features the model makes of a batch."""
    output = encoded(made, batch).pooler_output
    width = made.owner.config.text_config.hidden_size
    late = getattr(host_of(made.owner), "ends_videos", True)  # else the caller ends each row with a newline
    return sum(part.numel() for part in output) // width + (0 if late else len(output))


def test_none_is_the_untouched_model(name):
    tiny = TINY_VLMS[name]()
    batch = tiny.batch([[3]], image=not tiny.one_token)  # such a model takes no images beside videos
    before = tiny.model(**batch).logits
    before.square().sum().backward()
    gradients = {key: p.grad.clone() for key, p in tiny.model.named_parameters() if p.grad is not None}
    tiny.model.zero_grad()
    made = compress_video_(tiny.model, "none", 1)
    after = tiny.model(**shorten(made, batch)).logits
    after.square().sum().backward()
    assert torch.equal(before, after)
    assert gradients.keys() == {key for key, p in tiny.model.named_parameters() if p.grad is not None}
    assert all(torch.equal(p.grad, gradients[key]) for key, p in tiny.model.named_parameters() if key in gradients)


@pytest.mark.parametrize("method", ["te_fusion", "qwen2_vl", "pllava", "kangaroo"])
def test_k_of_one_is_the_untouched_model(name, method):
    tiny = TINY_VLMS[name]()
    batch = tiny.batch([[3]])
    with torch.no_grad():
        before = tiny.model.double()(**doubled(batch)).logits
        made = compress_video_(tiny.model, method, 1)
        after = tiny.model(**doubled(shorten(made, batch))).logits
    assert (before - after).abs().max() <= 1e-5 * before.abs().max()  # towers turn their queries in fp32


def doubled(batch: dict) -> dict:
    return {key: double(value) for key, value in batch.items()}


def double(value):
    if isinstance(value, list):
        return [double(part) for part in value]
    return value.double() if value.is_floating_point() else value


def test_images_keep_their_path(name):
    tiny = TINY_VLMS[name]()
    batch = tiny.batch([], image=True)
    with torch.no_grad():
        before = tiny.model(**batch).logits
        made = compress_video_(tiny.model, "te_fusion", 4)
        perturbed(made.module)
        assert torch.equal(before, tiny.model(**batch).logits)


@pytest.mark.parametrize("method", ["te_fusion", "pllava", "kangaroo", "qwen2_vl"])
def test_a_still_video_is_an_image(name, method):
    """Copies of a step cost as many tokens as one step, and say the same."""
    tiny = TINY_VLMS[name]()
    still = tiny.batch([[1]])
    with torch.no_grad():
        one = tiny.model(**still).logits
        made = compress_video_(tiny.model, method, 4)
        batch, pixels = tiny.batch([[4]]), still[tiny.pixels_name]
        batch[tiny.pixels_name] = pixels.repeat(
            *((1, 4, 1, 1, 1) if pixels.ndim == 5 else (4, *[1] * (pixels.ndim - 1)))
        )
        four = tiny.model(**shorten(made, batch)).logits
    assert four.shape == one.shape
    assert (four - one).abs().max() <= 1e-3 * one.abs().max()


def test_te_fusion_is_group_attention_in_the_tower(name):
    """The corridor's encoder against the tower's own forward with grouped attention."""
    tiny, made = compressed(name, "te_fusion", 2)
    untouched = TINY_VLMS[name]()
    seen = {}
    layers = [made.owner, untouched.model.model]
    for key, owner in zip(("corridor", "grouped"), layers, strict=True):
        last = last_layer(owner)
        last.register_forward_hook(lambda module, args, out, key=key: seen.__setitem__(key, out))
    batch = tiny.batch([[4]])
    with torch.no_grad(), group_attention_(untouched.model, 2):
        tiny.model(**shorten(made, batch))
        untouched.model(**batch)
    a, b = (x[0] if isinstance(x, tuple) else x for x in (seen["corridor"], seen["grouped"]))
    a, b = a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1])
    if name == "Qwen2.5-VL":  # the tower's own order is that of its windows
        a, b = a.sort(0).values, b.sort(0).values
    assert (a - b).abs().max() <= 1e-4 * b.abs().max()


def last_layer(owner: nn.Module) -> nn.Module:
    host = host_of(owner)
    return host.layers[-1] if hasattr(host, "layers") else host.blocks((4, 4))[-1].layer


@pytest.mark.parametrize("method", ["te_fusion", "kangaroo", "qwen2_vl"])
def test_a_frame_changes_its_own_group_only(name, method):
    """Of what the decoder gets, DeepStack's features included; the last group is filled with the last frame."""
    tiny, made = compressed(name, method, 2)
    perturbed(made.module)
    batch = tiny.batch([[5]])
    pixels = batch[tiny.pixels_name]
    changed = pixels.clone()
    part = changed[0] if pixels.ndim == 5 else changed
    step = len(part) // 5
    part[2 * step : 3 * step] += 1  # the first step of the second group
    outputs = []
    for batch[tiny.pixels_name] in (pixels, changed):
        with torch.no_grad():
            outputs.append(encoded(made, shorten(made, batch)))
    for a, b in zip(*map(tensors, outputs), strict=True):
        tokens = 3 * (a.shape[0] // 3)  # without a newline
        differs = (a != b)[:tokens].unflatten(0, (3, -1)).flatten(1).any(1)
        assert differs.tolist() == [False, True, False]


def tensors(output) -> list[torch.Tensor]:
    """(tokens, numbers) of the features, and of those of early blocks where there are some"""
    pictures = output.pooler_output  # of a model that knows only pictures: a row a group
    found = [pictures[0] if len(pictures) == 1 else pictures.flatten(0, 1)]
    for early in getattr(output, "deepstack_features", None) or []:
        found.append(early[0] if isinstance(early, tuple) else early)
    return found


def test_counts_agree(name):
    check_counts(name, [3, 5], [1, 2, 3])


@pytest.mark.heavy
def test_counts_agree_everywhere(name):
    check_counts(name, [1, 3, 5, 7, 8, 9], range(1, 9))


def check_counts(name, steps, ks):
    for k in ks:
        tiny, made = compressed(name, "te_fusion", k)
        for a, b in itertools.pairwise(steps):
            batch = tiny.batch([[a, b]])  # two videos in one prompt
            short = shorten(made, batch)
            promised = sum(made.num_video_tokens(t * tiny.frames_per_step, tiny.side, tiny.side) for t in (a, b))
            assert video_places(short).sum() == promised
            with torch.no_grad():
                assert features(made, short) == promised
                assert tiny.model(**short).logits.shape[1] == short["input_ids"].shape[1]
            if hasattr(made.owner, "get_rope_index"):
                check_positions(made, short, [-(-t // k) for t in (a, b)])


def check_positions(made, short, groups):
    """A video's ids are those of a video that has one time step a group; Qwen2.5-VL's count in its seconds."""
    ids, grid = short["input_ids"], short["video_grid_thw"]
    plain = torch.tensor([[g, h, w] for g, (_, h, w) in zip(groups, grid.tolist(), strict=True)])
    own, more = type(made.owner).get_rope_index, {"mm_token_type_ids": short["mm_token_type_ids"]}
    timed = "Qwen2_5" in type(made.owner).__name__
    for seconds in (None, torch.tensor([0.5, 1.5])) if timed else (None,):
        longer = {"second_per_grid_ts": (torch.ones(2) if seconds is None else seconds) * made.k} if timed else {}
        expected = own(made.owner, ids, video_grid_thw=plain, **more, **longer)
        given = {} if seconds is None else {"second_per_grid_ts": seconds}
        found = made.owner.get_rope_index(ids, video_grid_thw=grid, **more, **given)
        assert all(map(torch.equal, found, expected))
    assert torch.equal(grid[:, 1:], plain[:, 1:])  # the batch itself is left as it was


def test_generates_in_a_batch_what_it_generates_alone(name):
    tiny, made = compressed(name)
    perturbed(made.module)
    batch = shorten(made, tiny.batch([[3], [6]], image=not tiny.one_token))
    together = tiny.model.generate(**batch, max_new_tokens=4, do_sample=False)[:, batch["input_ids"].shape[1] :]
    alone = [shorten(made, tiny.batch([[3]])), None, tiny.batch([], image=True)]
    second = tiny.batch([[6]], seed=1)
    second["input_ids"][0, 0] += 1  # the second row's first word
    alone[1] = shorten(made, second)
    for row, one in zip(together, alone, strict=not tiny.one_token):
        found = tiny.model.generate(**one, max_new_tokens=4, do_sample=False)[0, one["input_ids"].shape[1] :]
        assert row.tolist() == found.tolist()


def test_beams(name):
    """Each video goes with its own beams: one beam among several is what one beam alone is."""
    since = BEAMS_SINCE.get(name, OLDEST)
    if since is None or Version(transformers.__version__) < Version(since):
        pytest.skip("the library tells the rows' videos apart by the placeholders of the uncompressed ones")
    tiny, made = compressed(name)
    settings = {"max_new_tokens": 3, "num_beams": 2, "num_return_sequences": 2, "do_sample": False}

    def beams(batch):
        return [row[batch["input_ids"].shape[1] :].tolist() for row in tiny.model.generate(**batch, **settings)]

    second = tiny.batch([[4]], seed=1)
    second["input_ids"][0, 0] += 1  # the second row's first word
    alone = [beams(shorten(made, batch)) for batch in (tiny.batch([[4]]), second)]
    assert beams(shorten(made, tiny.batch([[4], [4]]))) == [*alone[0], *alone[1]]


def test_saved_and_loaded(name, tmp_path):
    tiny, made = compressed(name, "te_fusion", 2, position_std=0.5)
    perturbed(made.module)
    batch = shorten(made, tiny.batch([[3, 4]]))
    with torch.no_grad():
        before = tiny.model(**batch).logits
    tiny.model.save_pretrained(tmp_path)
    loaded = load_compressed(tmp_path)
    assert loaded.k == 2
    with torch.no_grad():
        assert torch.allclose(before, loaded.model.eval()(**batch).logits, atol=1e-5)
    torch.testing.assert_close(dict(loaded.model.state_dict()), dict(tiny.model.state_dict()), rtol=0, atol=0)


def test_a_folder_that_does_not_fit_is_refused(tmp_path):
    tiny, _ = compressed("Qwen2-VL")
    tiny.model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["video_compressor"]["k"] = 4
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"the compressor's weights do not fit: compressor\.position is"):
        load_compressed(tmp_path)
    del config["video_compressor"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="holds no compressed model"):
        load_compressed(tmp_path)


@pytest.mark.parametrize("reentrant", [False, True])
def test_trains_with_checkpointing(name, reentrant):
    """The compressor alone learns, and both kinds of checkpointing give its gradients."""
    tiny, made = compressed(name, trainable="compressor")
    perturbed(made.module)
    made.module.float()
    tiny.model.train()
    batch = shorten(made, tiny.batch([[4], [6]]))
    found = []
    for checkpointing in (False, True):
        if checkpointing:
            tiny.model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            tiny.model.enable_input_require_grads()
        tiny.model.zero_grad()
        tiny.model(**batch, labels=batch["input_ids"]).loss.backward()
        found.append({key: p.grad.clone() for key, p in tiny.model.named_parameters() if p.requires_grad})
        assert all(".video_compressor." in key for key in found[-1])
    for key, gradient in found[0].items():
        assert gradient.norm() > 0
        assert (gradient - found[1][key]).norm() <= 1e-4 * gradient.norm(), key


def test_inside_ddp(name, tmp_path):
    """One step of a wrapped model gives the gradients of the model alone, of all that is trained."""
    tiny, made = compressed(name, trainable="compressor")
    perturbed(made.module)
    batch = shorten(made, tiny.batch([[4], [6]], image=not tiny.one_token))
    tiny.model(**batch, labels=batch["input_ids"]).loss.backward()
    expected = {key: p.grad.clone() for key, p in tiny.model.named_parameters() if p.requires_grad}
    tiny.model.zero_grad()
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(tiny.model)
        wrapped(**batch, labels=batch["input_ids"]).loss.backward()
    finally:
        torch.distributed.destroy_process_group()
    for key, p in tiny.model.named_parameters():
        assert not p.requires_grad or torch.equal(p.grad, expected[key]), key


@pytest.mark.heavy
def test_compiled(name):
    tiny, made = compressed(name)
    perturbed(made.module)
    batch = shorten(made, tiny.batch([[4], [6]], image=not tiny.one_token))
    with torch.no_grad():
        expected = tiny.model(**batch).logits
        found = torch.compile(tiny.model, backend="eager")(**batch).logits
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("name", [name for name in TINY_VLMS if not TINY_VLMS[name]().packed])
def test_frames_of_another_size_are_refused(name):
    tiny, made = compressed(name)
    batch = tiny.batch([[4]])
    batch[tiny.pixels_name] = batch[tiny.pixels_name].repeat_interleave(2, -1)
    with pytest.raises(ValueError, match="this model's frames are 24x24 pixels, got 24x48"):
        tiny.model(**shorten(made, batch))


@pytest.mark.parametrize("method", sorted(ORDINARY))
def test_every_method_of_the_paper(name, method):
    check_method(name, method)


@pytest.mark.heavy
@pytest.mark.parametrize("method", sorted(set(COMPRESSORS) - ORDINARY - {"none"}))
def test_every_other_method(name, method):
    """A method either works or says at the first video why it cannot."""
    words = refusal(name, method)
    assert words == "" or any(reason in words for reason in ("merges space by itself", "needs whole", "is a control"))


def refusal(name, method):
    try:
        check_method(name, method)
    except ValueError as error:
        return str(error)
    return ""


def check_method(name, method):
    k = 2
    tiny = TINY_VLMS[name]()
    grid = {"grid": (4, 4)} if tiny.packed else {}
    made = compress_video_(tiny.model, method, k, **grid)
    perturbed(made.module)
    batch = shorten(made, tiny.batch([[4], [3]]))
    tiny.model(**batch).logits.square().sum().backward()
    assert all(p.grad is not None for p in made.module.parameters())


def test_bad_input(name):
    tiny = TINY_VLMS[name]()
    for arguments, words in [
        (("te_fusio", 2), "compressor 'te_fusio' is unknown; did you mean 'te_fusion'"),
        (("te_fusion", 0), "k must be one of"),
        (("none", 2), "k must be one of 1"),
    ]:
        with pytest.raises(ValueError, match=words):
            compress_video_(tiny.model, *arguments)
    with pytest.raises(ValueError, match="width is 32 in this model, got 64"):
        compress_video_(tiny.model, "te_fusion", 2, width=64)
    with pytest.raises(ValueError, match="has no option 'nonsense'"):
        compress_video_(tiny.model, "te_fusion", 2, nonsense=1)
    with pytest.raises(ValueError, match="trainable must be all or compressor"):
        compress_video_(tiny.model, "te_fusion", 2, trainable="compresor")
    made = compress_video_(tiny.model, "te_fusion", 2)
    with pytest.raises(ValueError, match="already has a compressor, TEFusion with k = 2"):
        compress_video_(tiny.model, "te_fusion", 4)
    with pytest.raises(ValueError, match="this model's frames are"):
        made.num_video_tokens(4, tiny.side + PATCH - 1, tiny.side)
    with pytest.raises(ValueError, match="at least one frame"):
        made.num_video_tokens(0, tiny.side, tiny.side)
    batch = tiny.batch([[4]])
    batch |= {name: shorten(made, batch)[name] for name in ("input_ids", "attention_mask")}
    if "mm_token_type_ids" in batch:
        batch["mm_token_type_ids"] = shorten(made, tiny.batch([[4]]))["mm_token_type_ids"]
    with pytest.raises(ValueError, match="was it shortened already"):
        shorten(made, batch)


def test_a_video_longer_than_the_context(name):
    """The k that is named fits and the one before it does not; so says whoever wrote the prompt."""
    tiny, made = compressed(name)
    raw = tiny.batch([[14, 5]])
    long = shorten(made, raw)
    tokens = int(long["attention_mask"].sum())
    longest = tokens - 9
    made.owner.config.text_config.max_position_embeddings = longest
    words = rf"prompt is 9 tokens longer than .* context of {longest}; k = (\d+) would fit"
    with pytest.raises(ValueError, match=words) as caught:
        shorten(made, raw)
    for run in (tiny.model, functools.partial(tiny.model.generate, max_new_tokens=1)):
        with pytest.raises(ValueError, match=words):
            run(**long)
    k = int(re.search(words, str(caught.value))[1])
    for other, fits in ((k, True), (k - 1, False)):
        tiny, made = compressed(name, k=other)
        assert (int(shorten(made, raw)["attention_mask"].sum()) <= longest) == fits
    made.owner.config.text_config.max_position_embeddings = 5
    with pytest.raises(ValueError, match="no k would make it fit"):
        shorten(made, raw)


PICTURES = [name for name in TINY_VLMS if TINY_VLMS[name]().pictures]


@pytest.mark.parametrize("name", PICTURES)
def test_images_between_videos(name):
    """Of a model to which both are pictures: each in its place, each as it is alone."""
    tiny, made = compressed(name)
    perturbed(made.module)
    videos = [shorten(made, tiny.batch([[steps]], seed=steps))["pixel_values"][0] for steps in (3, 4)]
    image = tiny.batch([], image=True)["pixel_values"]
    image = image[0] if image.ndim == 5 else image
    with torch.no_grad():
        together = made.owner.get_image_features([videos[0], image, videos[1]]).pooler_output
        alone = [made.owner.get_image_features([visual]).pooler_output for visual in (videos[0], image, videos[1])]
        untouched = TINY_VLMS[name]().model.model.get_image_features(tiny.batch([], image=True)["pixel_values"])
    assert torch.equal(together, torch.cat(alone))
    assert torch.equal(alone[1].flatten(), torch.cat(list(untouched.pooler_output)).flatten())


@pytest.mark.parametrize("name", PICTURES)
def test_what_is_a_video_has_to_be_said(name):
    tiny, made = compressed(name)
    batch = tiny.batch([[4]])
    with pytest.raises(ValueError, match="say in visuals what each image and video"):
        made.shorten(batch)
    with pytest.raises(ValueError, match=r"the prompt has 36 .*make 45"):
        made.shorten(batch, visuals=[("video", 5)])
    batch["pixel_values"] = batch["pixel_values"][..., :3, :, :, :]
    with pytest.raises(ValueError, match="pixel_values holds 3 pictures, and the visuals are 4"):
        made.shorten(batch, visuals=[("video", 4)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_smolvlm_places_its_patches_as_its_own_embeddings_do(dtype):
    """With 25 a side rounding puts some patches where the one before them lies."""
    config = transformers.SmolVLMConfig(
        vision_config={"hidden_size": 8, "num_attention_heads": 2, "image_size": 50, "patch_size": 2},
        text_config={"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 10},
    )
    owner = transformers.SmolVLMModel(config).to(dtype)
    frames = torch.randn(1, 2, 3, 50, 50, dtype=dtype)
    own = owner.vision_model.embeddings(frames[0], torch.ones(2, 25, 25, dtype=torch.bool))
    assert torch.equal(host_of(owner).embed(frames, None, (25, 25))[0], own)


@pytest.mark.parametrize("name", WITH_PROCESSOR)
def test_the_models_own_processor_writes_the_shorter_prompt(name):
    tiny, made = compressed(name, "te_fusion", 2)
    processor = compress_processor_(TINY_PROCESSORS[name](), made)
    video = torch.randint(0, 255, (10, 3, tiny.side, tiny.side), dtype=torch.uint8)
    marker = "<vs><video><ve>" if "Qwen" in name else "<video>"
    said = {"video_metadata": [[{"fps": 2, "total_num_frames": 10, "frames_indices": list(range(10))}]] * 2}
    said = said if name == "Qwen3-VL" else {}
    text = [f"a {marker} b", f"a b c {marker} b"]
    batch = processor(
        text=text, videos=[[video], [video]], return_tensors="pt", padding=True, do_sample_frames=False, **said
    )
    assert video_places(batch).sum() == 2 * made.num_video_tokens(10, tiny.side, tiny.side)
    assert batch["attention_mask"].shape == batch["input_ids"].shape
    with torch.no_grad():
        tiny.model(**batch)
    with pytest.raises(ValueError, match="already"):
        compress_processor_(processor, made)


def test_the_processor_says_which_pictures_are_videos():
    tiny, made = compressed("InternVL3", "te_fusion", 2)
    processor = compress_processor_(TINY_PROCESSORS["InternVL3"](), made)
    video, image = (torch.randint(0, 255, shape, dtype=torch.uint8) for shape in ((5, 3, 24, 24), (3, 24, 48)))
    text = ["a <video> b <image> c <video>", "a <image>"]
    batch = processor(text=text, images=[image] * 2, videos=[video] * 2, return_tensors="pt", padding=True)
    assert [tuple(x.shape[:-3]) for x in batch["pixel_values"]] == [(1, 5), (3,), (1, 5), (3,)]  # two tiles and a whole
    assert (batch["input_ids"] == IMAGE).sum(1).tolist() == [2 * made.num_video_tokens(5, 24, 24) + 3 * 9, 3 * 9]
    with torch.no_grad():
        tiny.model(**batch)
    assert "visuals" not in processor.to_dict()


def test_an_unknown_model_is_told_what_was_looked_for():
    with pytest.raises(ValueError, match=r"Linear is no video model .*looked for .*Qwen2_5_VLModel"):
        compress_video_(nn.Linear(2, 2), "te_fusion", 2)


def test_every_host_is_tested():
    assert {type(build().model.model).__name__ for build in TINY_VLMS.values()} == set(HOSTS)


def test_a_copy_compresses_by_itself(name):
    tiny, made = compressed(name)
    batch = shorten(made, tiny.batch([[4]]))
    twin = copy.deepcopy(tiny.model)
    with torch.no_grad():
        expected = tiny.model(**batch).logits
        for parameter in tiny.model.parameters():
            parameter.zero_()
        assert torch.equal(twin(**batch).logits, expected)
