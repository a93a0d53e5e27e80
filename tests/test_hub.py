"""Our models among transformers' own: the same numbers as the sweep's, through everything that transformers offers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from contract import perturb
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, LlamaConfig, LlamaForCausalLM
from transformers.generation.streamers import BaseStreamer

from tefusion.compressors import COMPRESSORS
from tefusion.config import Run
from tefusion.data.motion_files import create_clip, write_video
from tefusion.data.source import MOTION_SETS
from tefusion.hub import TEFusionConfig, TEFusionForConditionalGeneration, TEFusionProcessor, TEFusionVisionConfig
from tefusion.hub.export import export
from tefusion.hub.processing import VIDEO
from tefusion.tokenizer import byte_level_tokenizer
from tefusion.train import create_vlm
from tefusion.vision import tower_of

RUN = Run(compressor="te_fusion", k=2, n_input=4, encoder="tiny")
GREEDY = {"max_new_tokens": 6, "do_sample": False}
TEXTS = [f"{VIDEO}Which way?\n", f"{VIDEO}Which way does the red square move?\n"]


def trained(run=RUN):
    """As far from its initial values as training would bring it."""
    torch.manual_seed(1)
    return perturb(create_vlm(run)).eval()


def close(logits, expected):
    """Equal but for the last bits: on some CPUs BLAS adds in another order where weights lie elsewhere in memory, as
    those of a file do."""
    return torch.allclose(logits, expected, atol=1e-5)


def assert_same_weights(loaded, made):
    """Bit by bit."""
    torch.testing.assert_close(dict(loaded.state_dict()), dict(made.state_dict()), rtol=0, atol=0)


@pytest.fixture(scope="module")
def vlm():
    return trained()


@pytest.fixture(scope="module")
def folder(vlm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    for part in export(RUN, vlm):
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return AutoModelForImageTextToText.from_pretrained(folder)


@pytest.fixture(scope="module")
def processor(folder):
    return AutoProcessor.from_pretrained(folder)


@pytest.fixture(scope="module")
def videos():
    noise = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (t, 32, 32, 3), dtype=torch.uint8, generator=noise) for t in (4, 2, 4)]


def test_a_folder_becomes_what_was_saved(folder, model, processor):
    assert type(model) is TEFusionForConditionalGeneration
    assert type(processor) is TEFusionProcessor
    assert not model.training
    config = AutoConfig.from_pretrained(folder)
    assert (type(config), config.compressor, config.k) == (TEFusionConfig, "te_fusion", 2)
    assert config.vision_config.sizes == model.config.vision_config.sizes
    assert processor.request() == TEFusionProcessor(processor.tokenizer, frames=4, k=2).request()
    assert {path.suffix for path in folder.iterdir()} == {".json", ".jinja", ".md", ".safetensors"}


@torch.no_grad()
@pytest.mark.parametrize("name", COMPRESSORS)
def test_the_sweeps_models_are_these_models(name, videos, tmp_path):
    """Weights bit by bit, after saving and loading."""
    run = replace(RUN, compressor=name, k=max(k for k in (1, 2) if k in COMPRESSORS[name].valid_k))
    vlm = trained(run)
    made, processor = export(run, vlm)
    made.save_pretrained(tmp_path)
    loaded = TEFusionForConditionalGeneration.from_pretrained(tmp_path)
    inputs = processor(TEXTS[0], videos=videos[:1])
    expected = vlm.decode(vlm.splice(vlm.encode(videos[:1]), [vlm.ids("Which way?\n")]), 1)
    assert close(loaded(**inputs, logits_to_keep=1, use_cache=False).logits, expected)
    assert_same_weights(loaded, vlm)


@torch.no_grad()
def test_a_timm_tower_comes_back(videos, tmp_path):
    run = replace(RUN, encoder="timm:vit_tiny_patch16_224", compressor="kangaroo")
    vlm = trained(run)
    made, processor = export(run, vlm)
    made.save_pretrained(tmp_path)
    loaded = TEFusionForConditionalGeneration.from_pretrained(tmp_path)
    inputs = processor(TEXTS[0], videos=videos[:1])
    assert close(loaded(**inputs).logits, made(**inputs).logits)
    assert_same_weights(loaded, made)


@pytest.mark.parametrize("sides", [(32, 32), (24, 56), (17, 33)])
@pytest.mark.parametrize("k", range(1, 9))
def test_places_features_and_positions_agree(k, sides):
    """Frames as an array, of an odd number where k is odd."""
    shape = (3 * k, *sides)
    run = replace(RUN, compressor="te_fusion", k=k, n_input=shape[0], size=f"{shape[1]}x{shape[2]}")
    vlm = trained(run)
    model, processor = export(run, vlm)
    clip = torch.zeros(*shape, 3, dtype=torch.uint8)
    inputs = processor([f"a{VIDEO}b{VIDEO}c"], videos=[clip, clip])
    places = int((inputs["input_ids"] == model.config.video_token_id).sum())
    assert places == 2 * processor.num_video_tokens(*shape) == 2 * vlm.tokens_out(*shape)
    _, positions = model.splice(inputs["input_ids"], inputs["pixel_values_videos"], inputs["attention_mask"])
    m = vlm.encoder.tokens_out(*shape) // (shape[0] // k)
    block = [3 * g + p for g in range(shape[0] // k) for p in (0, *[1] * m, 2)]
    text = len(vlm.ids("a"))
    second = text + block[-1] + 1 + len(vlm.ids("b"))
    assert positions[0, text : text + len(block)].tolist() == [text + p for p in block]
    assert positions[0, -len(block) - len(vlm.ids("c")) : -len(vlm.ids("c"))].tolist() == [second + p for p in block]
    assert positions[0, -1] == second + block[-1] + len(vlm.ids("c"))


@torch.no_grad()
@pytest.mark.parametrize("k", range(1, 9))
def test_two_files_of_odd_length_agree(k, tmp_path):
    """Files of five and of seven frames in one prompt: places, features and position ids, up to k = 8."""
    run = replace(RUN, k=k, n_input=-(-7 // k) * k)
    vlm = trained(run)
    model, processor = export(run, vlm)
    files = [tmp_path / f"{frames}.mp4" for frames in (5, 7)]
    noise = np.random.default_rng(0)
    for path, frames in zip(files, (5, 7), strict=True):
        write_video(path, noise.integers(0, 256, (frames, 32, 32, 3), dtype=np.uint8), fps=8)
    inputs = processor([f"a{VIDEO}b{VIDEO}c"], videos=[files])
    taken = [len(video) for video in inputs["pixel_values_videos"]]
    assert taken == [run.n_input] * 2  # as many as it was trained on
    promised = [processor.num_video_tokens(frames, 32, 32) for frames in taken]
    assert int((inputs["input_ids"] == model.config.video_token_id).sum()) == sum(promised)
    found = model.encode(inputs["pixel_values_videos"], inputs["video_seconds"])
    assert [embeds.shape[0] * (embeds.shape[1] + 2) for embeds in found] == promised
    _, positions = model.splice(inputs["input_ids"], inputs["pixel_values_videos"], inputs["attention_mask"])
    assert int(positions[0, -1]) == sum(3 * frames // k for frames in taken) + 3 * len(vlm.ids("a")) - 1
    assert torch.isfinite(model(**inputs).logits).all()


@torch.no_grad()
def test_generate_with_cache_batches_beams_and_streaming(vlm, model, processor, videos):
    clips = [videos[0], videos[1]]
    inputs = processor(TEXTS, videos=clips)
    assert isinstance(inputs["pixel_values_videos"], list)  # they differ in length

    def said(**settings):
        return processor.batch_decode(new(model.generate(**inputs, **GREEDY, **settings)), skip_special_tokens=True)

    def new(ids):
        return ids[:, inputs["input_ids"].shape[1] :]

    prompts = [text.removeprefix(VIDEO) for text in TEXTS]
    quiet = {"suppress_tokens": [model.config.video_token_id]}
    expected = vlm.generate(clips, prompts, **GREEDY, **quiet)
    assert len({*expected, *vlm.generate([videos[2]], prompts[:1], **GREEDY, **quiet)}) == 3  # the video is seen
    assert said() == said(use_cache=False) == expected
    assert (
        said(num_beams=3)
        == said(num_beams=3, use_cache=False)
        == vlm.generate(clips, prompts, **GREEDY, **quiet, num_beams=3)
    )
    for text, clip, alone in zip(TEXTS, clips, expected, strict=True):
        one = processor(text, videos=clip)
        heard = Heard()
        ids = model.generate(**one, **GREEDY, streamer=heard)
        assert processor.batch_decode(ids[:, one["input_ids"].shape[1] :], skip_special_tokens=True) == [alone]
        assert heard.ids == ids[0].tolist()


class Heard(BaseStreamer):
    def __init__(self):
        self.ids = []

    def put(self, value):
        self.ids += value.flatten().tolist()

    def end(self):
        self.ended = True


@torch.no_grad()
def test_beams_keep_two_videos_of_a_row_in_order(model, processor, videos):
    text = f"first {VIDEO} second {VIDEO} Which way?\n"
    inputs = processor([text, TEXTS[0]], videos=[videos[0], videos[2], videos[1]])
    together = model.generate(**inputs, **GREEDY, num_beams=2)
    alone = processor(text, videos=[videos[0], videos[2]])
    one = model.generate(**alone, **GREEDY, num_beams=2)[0, alone["input_ids"].shape[1] :]
    assert together[0, inputs["input_ids"].shape[1] :].tolist()[: len(one)] == one.tolist()
    swapped = processor(text, videos=[videos[2], videos[0]])
    assert not torch.allclose(model(**alone).logits[:, -1], model(**swapped).logits[:, -1], atol=1e-3)


def test_the_loss_is_that_of_training(vlm, model, processor, videos):
    prompt, answer = "Which way?\n", "left"
    end = [*vlm.ids(answer), vlm.tokenizer.eos_token_id]
    inputs = processor(TEXTS[0], videos=videos[:1])
    ids = torch.cat([inputs["input_ids"], torch.tensor([end])], dim=1)
    labels = ids.clone()
    labels[:, : -len(end)] = -100
    loss = model(input_ids=ids, pixel_values_videos=inputs["pixel_values_videos"], labels=labels).loss
    assert loss.item() == pytest.approx(vlm(videos[:1], [prompt], [answer]).loss.item(), rel=1e-5)


@torch.no_grad()
def test_shards_are_safetensors(vlm, model, processor, videos, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size="300KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".md", ".safetensors"}
    again = TEFusionForConditionalGeneration.from_pretrained(tmp_path)
    inputs = processor(TEXTS[0], videos=videos[:1])
    assert close(again(**inputs).logits, model(**inputs).logits)
    assert_same_weights(again, model)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: s.pop("encoder.compressor.position"), "encoder.compressor.position is missing"),
        (lambda s: s.update(extra=torch.zeros(1)), "extra is unexpected"),
        (lambda s: s.update(boi=torch.zeros(1, 65)), r"boi is \(1, 65\) instead of \(1, 64\)"),
    ],
)
def test_weights_that_do_not_fit_are_refused(model, change, says, tmp_path):
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    change(state)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"do not fit their configuration: {says}"):
        AutoModelForImageTextToText.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"k": "four"}, "k"),
        ({"k": 0}, "k must be one of"),
        ({"compressor": "te_fusio"}, "did you mean 'te_fusion'"),
        ({"compressor": "none", "k": 2}, "k must be one of"),
        ({"compressor_options": {"colour": "red"}}, "no option 'colour'"),
        ({"vision_config": {"depth": "4"}}, "depth"),
        ({"vision_config": {"depth": 1 << 20}}, "depth must be from 1 to"),
        ({"vision_config": {"tower": "clip"}}, "tower 'clip' is unknown"),
        ({"vision_config": {"image_size": 8, "patch_size": 8}}, "smaller than 2x2 patches"),
    ],
)
def test_the_configuration_is_strict(change, says):
    with pytest.raises(Exception, match=says):
        TEFusionConfig(**({"compressor": "te_fusion", "k": 2} | change))


def test_configurations_survive_their_json(tmp_path):
    vision = TEFusionVisionConfig(depth=3, tower="timm:vit_tiny_patch16_224")
    config = TEFusionConfig(vision_config=vision, compressor="pllava", k=4, video_token_id=7)
    config.save_pretrained(tmp_path)
    loaded = TEFusionConfig.from_pretrained(tmp_path)
    assert loaded.vision_config.sizes == vision.sizes
    for preset in ("tiny", "timm:vit_tiny_patch16_224"):
        sizes, _ = tower_of(preset)
        assert TEFusionVisionConfig.of(sizes, preset if ":" in preset else "glm4v").sizes == sizes
    assert loaded.to_dict() == config.to_dict() | {"transformers_version": loaded.transformers_version}


@torch.no_grad()
def test_attention_is_chosen_as_in_transformers(folder, model, processor, videos):
    eager = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="eager")
    assert (eager.decoder.config._attn_implementation, model.decoder.config._attn_implementation) == ("eager", "sdpa")
    inputs = processor(TEXTS, videos=videos[:2])
    assert torch.allclose(eager(**inputs).logits[:, -1], model(**inputs).logits[:, -1], rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("where", ["auto", "disk"])
def test_devices_are_mapped(folder, model, processor, videos, tmp_path, where):
    layers = {f"decoder.model.layers.{i}": "disk" for i in range(2)} | {"decoder.model.embed_tokens": "cpu"}
    rest = ("decoder.model.norm", "decoder.model.rotary_emb", "decoder.lm_head", "encoder", "boi", "eoi")
    places = "auto" if where == "auto" else layers | dict.fromkeys(rest, "cpu")
    mapped = AutoModelForImageTextToText.from_pretrained(folder, device_map=places, offload_folder=tmp_path)
    inputs = processor(TEXTS, videos=videos[:2])
    assert close(mapped(**inputs).logits, model(**inputs).logits)
    assert torch.equal(mapped.generate(**inputs, **GREEDY), model.generate(**inputs, **GREEDY))


def test_lora_trains_the_decoder_alone(folder, processor, videos, tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model

    base = AutoModelForImageTextToText.from_pretrained(folder)
    lora = get_peft_model(base, LoraConfig(r=4, target_modules=r"decoder\..*\.(q_proj|v_proj)", task_type="CAUSAL_LM"))
    learning = {name for name, p in lora.named_parameters() if p.requires_grad}
    assert learning
    assert all("decoder" in name and "lora_" in name for name in learning)
    inputs = processor([f"{text}left" for text in TEXTS], videos=videos[:2])
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    labels = labels.masked_fill(labels == base.config.video_token_id, -100)
    optimizer = torch.optim.AdamW([p for p in lora.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(5):
        loss = lora(**inputs, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    lora.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(folder), tmp_path)
    with torch.no_grad():
        assert close(again.eval()(**inputs).logits, lora.eval()(**inputs).logits)
    assert_same_weights(again, lora)
    assert again.generate(**inputs, **GREEDY).shape[0] == 2


def test_videos_and_their_places_have_to_fit(model, processor, videos):
    with pytest.raises(ValueError, match=r"has 0 times .* for 1 videos"):
        processor("Which way?", videos=videos[:1])
    with pytest.raises(ValueError, match=r"has 2 times .* for 1 videos"):
        processor(f"{VIDEO} and {VIDEO}", videos=videos[:1])
    with pytest.raises(ValueError, match="3 frames do not divide into groups of k = 2"):
        processor(TEXTS[0], videos=torch.zeros(3, 32, 32, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"uint8 frames \(t, h, w, 3\), got torch.float32 \(4, 3, 32, 32\)"):
        processor(TEXTS[0], videos=torch.zeros(4, 3, 32, 32))
    inputs = processor(TEXTS, videos=videos[:2])
    with pytest.raises(ValueError, match="row 0 has 12 places for videos of"):
        model(input_ids=inputs["input_ids"])
    with pytest.raises(ValueError, match="row 0 has 12 places for videos of"):
        model(input_ids=inputs["input_ids"], pixel_values_videos=inputs["pixel_values_videos"][::-1])
    more = [*inputs["pixel_values_videos"], inputs["pixel_values_videos"][0]]
    with pytest.raises(ValueError, match="1 of 3 videos have no place"):
        model(input_ids=inputs["input_ids"], pixel_values_videos=more)


def test_a_text_that_is_too_long_says_by_how_much(model, processor, videos, monkeypatch):
    inputs = processor(TEXTS[0], videos=videos[:1])
    length = inputs["input_ids"].shape[1]
    monkeypatch.setattr(model.decoder.config, "max_position_embeddings", length - 3)
    with pytest.raises(ValueError, match=f"{length} tokens are 3 more than the decoder's context of {length - 3}"):
        model(**inputs)


@torch.no_grad()
def test_a_chat_of_a_video_file(model, processor, tmp_path):
    write_video(tmp_path / "clip.mp4", create_clip(MOTION_SETS["motion-smoke"], "test", 0)[1], fps=8)
    parts = [{"type": "video", "path": str(tmp_path / "clip.mp4")}, {"type": "text", "text": "Which way?"}]
    chat = [{"role": "user", "content": parts}]
    inputs = processor.apply_chat_template(chat, tokenize=True, return_dict=True, return_tensors="pt")
    assert inputs["pixel_values_videos"].shape == (1, 4, 3, 32, 32)
    plain = processor(TEXTS[0], videos=str(tmp_path / "clip.mp4"))
    assert inputs["video_seconds"].tolist() == [[0.25, 0.75, 1.25, 1.75]]  # the centres of two seconds' quarters
    assert {name: value.tolist() for name, value in inputs.items()} == {n: v.tolist() for n, v in plain.items()}
    shown = []
    hook = model.encoder.register_forward_pre_hook(lambda _, args: shown.append(args[1].tolist()))
    model(**inputs)
    model.generate(**inputs, **GREEDY)
    hook.remove()
    assert shown == [inputs["video_seconds"].tolist()] * 2


def test_names_of_tokens_are_text_where_asked(processor, vlm):
    text = "<eos> <pad> left"
    assert processor(text, split_special_tokens=True)["input_ids"][0].tolist() == vlm.ids(text)
    assert processor(text)["input_ids"][0, 0] == vlm.tokenizer.eos_token_id


@torch.no_grad()
@pytest.mark.parametrize("tied", [False, True])
def test_another_decoder_whose_vocabulary_is_full(videos, tmp_path, tied):
    tokenizer = byte_level_tokenizer(["Which way?", "left", "right"])
    tokenizer.save_pretrained(tmp_path / "llama")
    sizes = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=tied, **sizes)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    run = replace(RUN, decoder=str(tmp_path / "llama"))
    vlm = trained(run)
    before = vlm.decode(vlm.splice(vlm.encode(videos[:1]), [vlm.ids("Which way?\n")]), 1)
    model, processor = export(run, vlm)
    for part in (model, processor):
        part.save_pretrained(tmp_path / "ours")
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "ours")
    assert loaded.config.text_config.vocab_size == len(tokenizer) + 1
    inputs = AutoProcessor.from_pretrained(tmp_path / "ours")(TEXTS[0], videos=videos[:1])
    logits = loaded(**inputs, logits_to_keep=1).logits
    assert torch.allclose(logits[..., :-1], before, atol=1e-5)
    assert close(logits, model(**inputs, logits_to_keep=1).logits)
    assert_same_weights(loaded, model)
    assert (loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight) == tied
