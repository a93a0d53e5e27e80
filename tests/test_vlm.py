"""A question in front of any decoder: what is spliced in, at which positions, and that a batch changes nothing."""

import pytest
import torch
import torch.nn.functional as F
from contract import perturb
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from tefusion.decoder import DECODERS, create_decoder, decoder_config
from tefusion.tokenizer import byte_level_tokenizer
from tefusion.vision import create_video_encoder
from tefusion.vlm import IGNORED, VLM, blocks

SENTENCES = ["Which way does the red square move?", "left", "right", "Only reply with the best option."]
MEDIA = ["<pad>", "<eos>", "<|begin_of_image|>", "<|endoftext|>", "<image>", "<|video|>", "<s>"]
PROMPTS = ["Which way?", "Which way does the red square move? Only reply with the best option.", "left or right"]
ANSWERS = ["A", "right", "B."]


def build(decoder, tokenizer, compressor="te_fusion", k=2):
    width = decoder.get_input_embeddings().embedding_dim
    torch.manual_seed(0)
    return perturb(VLM(create_video_encoder("tiny", compressor, k, embed_dim=width), decoder, tokenizer)).eval()


@pytest.fixture(scope="module")
def vlm():
    torch.manual_seed(0)
    return build(create_decoder("tiny"), byte_level_tokenizer(SENTENCES))


@pytest.fixture(scope="module")
def videos():
    """Different lengths, different sizes, two alike, and none."""
    noise = torch.Generator().manual_seed(0)
    shapes = [(4, 32, 32), (2, 40, 48), (4, 32, 32)]
    return [torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, generator=noise) for shape in shapes]


def close(a, b):
    return torch.allclose(a, b, rtol=1e-5, atol=1e-5 * b.abs().max().item())


@torch.no_grad()
def test_a_batch_of_unlike_videos_equals_them_one_by_one(vlm, videos):
    clips, prompts, answers = [*videos, None], [*PROMPTS, "right?"], [*ANSWERS, "left"]
    together = vlm(clips, prompts, answers)
    for row, (clip, prompt, answer) in enumerate(zip(clips, prompts, answers, strict=True)):
        alone = vlm([clip], [prompt], [answer])
        length = alone.labels.shape[1]
        assert close(together.logits[row, -length:], alone.logits[0])
        assert torch.equal(together.labels[row, -length:], alone.labels[0])
        assert (together.labels[row, :-length] == IGNORED).all()
    assert together.embeds[3] is None


def test_videos_of_one_shape_are_encoded_together(vlm, videos):
    seen = []
    hook = vlm.encoder.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    embeds = vlm.encode([videos[0], None, videos[1], videos[2]])
    hook.remove()
    assert seen == [2, 1]
    assert [None if e is None else e.shape[0] for e in embeds] == [2, None, 1, 2]


def test_each_video_is_shown_at_its_own_seconds(vlm, videos):
    seen = []
    hook = vlm.encoder.register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    first, second, third = torch.rand(4), torch.rand(2), torch.rand(4)
    vlm.encode([videos[0], None, videos[1], videos[2]], [first, None, second, third])
    vlm.encode([videos[0]])
    hook.remove()
    assert torch.equal(seen[0], torch.stack([first, third]))
    assert torch.equal(seen[1], second[None])
    assert seen[2] is None
    with pytest.raises(ValueError, match="known of all videos"):
        vlm.encode([videos[0], videos[2]], [first, None])


@torch.no_grad()
def test_the_video_is_seen(vlm, videos):
    here, there = (vlm([clip], ["Which way?"], ["A"]).logits for clip in (videos[0], videos[2]))
    assert not torch.allclose(here, there, atol=1e-2)


def test_every_embed_and_every_word_reaches_the_answer(vlm, videos):
    """Shared positions look like packed sequences to some decoders: without our mask they would cut the video off."""
    with torch.no_grad():
        spliced = vlm.splice(vlm.encode(videos[:1]), [vlm.ids("Which way?")])
    row = spliced.embeds.requires_grad_()
    vlm.decode(spliced, 1).square().sum().backward()
    assert (row.grad.abs().amax(-1) > 0).all()


@torch.no_grad()
def test_without_a_video_it_is_the_decoder_alone(vlm):
    ids, answer = vlm.ids("Which way?"), vlm.ids("A")
    said = vlm([None], ["Which way?"], ["A"]).logits[0]
    alone = vlm.decoder(torch.tensor([ids + answer])).logits[0, len(ids) - 1 :]
    assert close(said, alone)


@torch.no_grad()
def test_padding_on_the_left_changes_nothing(vlm, videos):
    alone = vlm.likelihoods(videos[:1], ["Which way?"], ["A", "B"])
    for other in (PROMPTS[1], PROMPTS[1] * 5):
        padded = vlm.likelihoods([videos[0], None], ["Which way?", other], ["A", "B"])
        assert close(padded[:1], alone)


def test_positions_are_those_of_glm4v(vlm, videos):
    """boi p, its embeds share p + 1, eoi p + 2; one block a group; text goes on."""
    text = vlm.ids("Which way?")
    spliced = vlm.splice(vlm.encode([videos[0], None]), [text, text])
    m = 4
    blocks = [0, *[1] * m, 2, 3, *[4] * m, 5]
    assert spliced.positions[0].tolist() == blocks + list(range(6, 6 + len(text)))
    assert spliced.positions[1, -len(text) :].tolist() == list(range(len(text)))
    assert spliced.mask.sum(1).tolist() == [len(blocks) + len(text), len(text)]


def test_a_block_is_boi_embeds_eoi(vlm, videos):
    (embeds,) = vlm.encode(videos[:1])
    block, _ = blocks(embeds, vlm.boi, vlm.eoi)
    first, second = block.unflatten(0, (2, 6))
    for group, part in zip(embeds, (first, second), strict=True):
        assert torch.equal(part[:1], vlm.boi)
        assert torch.equal(part[1:-1], group)
        assert torch.equal(part[-1:], vlm.eoi)


@pytest.mark.parametrize("shape", [(2, 32, 32), (8, 40, 56), (4, 24, 56)])
def test_tokens_out_is_the_number_of_positions(vlm, shape):
    clip = torch.zeros(*shape, 3, dtype=torch.uint8)
    spliced = vlm.splice(vlm.encode([clip]), [[5]])
    assert spliced.mask.shape[1] == vlm.tokens_out(*shape) + 1


@torch.no_grad()
@pytest.mark.parametrize("name", MEDIA)
def test_a_token_named_in_a_question_is_text(vlm, videos, name):
    question = f"What does {name} mean?{name}"
    ids = vlm.ids(question)
    assert not set(ids) & set(vlm.tokenizer.all_special_ids)
    assert vlm.tokenizer.decode(ids) == question
    spliced = vlm.splice(vlm.encode(videos[:1]), [ids])
    assert spliced.mask.sum() == vlm.tokens_out(4, 32, 32) + len(ids)


@torch.no_grad()
def test_likelihoods_are_those_of_forward(vlm, videos):
    likelihoods = vlm.likelihoods(videos, PROMPTS, ["A", "B", "C"])
    reply = vlm(videos, PROMPTS, ["A", "B", "C"])
    firsts = [vlm.ids(letter)[0] for letter in "ABC"]
    assert close(likelihoods, reply.logits[:, 0].log_softmax(-1)[:, firsts])
    with pytest.raises(ValueError, match="same token"):
        vlm.likelihoods(videos, PROMPTS, ["A", "B", "A"])


def test_the_loss_is_the_answers_and_reaches_everything(vlm, videos):
    reply = vlm(videos, PROMPTS, ANSWERS)
    losses = []
    for logits, labels, answer in zip(reply.logits, reply.labels, ANSWERS, strict=True):
        target = torch.tensor([*vlm.ids(answer), vlm.tokenizer.eos_token_id])
        assert torch.equal(labels[labels != IGNORED], target)
        losses.append(F.cross_entropy(logits[-len(target) :], target, reduction="none"))
    assert torch.allclose(reply.loss, torch.cat(losses).mean(), rtol=1e-5)
    vlm.zero_grad()
    reply.loss.backward()
    idle = [name for name, p in vlm.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert idle == []
    vlm.zero_grad()


@torch.no_grad()
def test_a_video_needs_no_words(vlm, videos):
    assert vlm.likelihoods(videos[:1], [""], ["A", "B"]).isfinite().all()


def greedy(vlm, clip, prompt, count):
    """Without a cache: the whole row again for every token."""
    ids, embeds, end = vlm.ids(prompt), vlm.encode([clip]), vlm.tokenizer.eos_token_id
    said: list[int] = []
    while len(said) < count and end not in said:
        said.append(int(vlm.decode(vlm.splice(embeds, [ids + said]), 1)[0, -1].argmax()))
    return vlm.tokenizer.decode(said, skip_special_tokens=True)


@torch.no_grad()
def test_generate_is_an_argmax_loop(vlm, videos):
    clips, prompts = [*videos, None], [*PROMPTS, "right?"]
    expected = [greedy(vlm, clip, prompt, 8) for clip, prompt in zip(clips, prompts, strict=True)]
    assert len(set(expected)) > 1
    settings = {"max_new_tokens": 8, "do_sample": False}
    assert vlm.generate(clips, prompts, **settings) == expected
    for row, (clip, prompt) in enumerate(zip(clips, prompts, strict=True)):  # without padding decoders take other paths
        assert vlm.generate([clip], [prompt], **settings) == [expected[row]]
        assert vlm.generate([clip], [prompt], use_cache=False, **settings) == [expected[row]]


@torch.no_grad()
def test_what_the_context_cannot_hold_is_refused(vlm, videos, monkeypatch):
    length = vlm.tokens_out(4, 32, 32) + len(vlm.ids("Which way?"))
    monkeypatch.setattr(vlm.decoder.config, "max_position_embeddings", length)
    vlm.likelihoods(videos[:1], ["Which way?"], ["A"])
    with pytest.raises(ValueError, match=f"^{length + 2} tokens are 2 more than the decoder's context of {length}$"):
        vlm(videos[:1], ["Which way?"], ["A"])
    with pytest.raises(ValueError, match="3 more than the decoder's context"):
        vlm.generate(videos[:1], ["Which way?"], max_new_tokens=3)


@torch.no_grad()
def test_the_whole_model_runs_in_bf16(videos):
    torch.manual_seed(0)
    vlm = VLM(create_video_encoder("tiny", "pllava", 2), create_decoder("tiny"), byte_level_tokenizer(SENTENCES))
    exact = vlm(videos, PROMPTS, ANSWERS).loss
    assert torch.allclose(vlm.bfloat16()(videos, PROMPTS, ANSWERS).loss.float(), exact, rtol=0.02)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A folder as a user would have one: another family's decoder, its tokenizer with media tokens of its own."""
    folder = tmp_path_factory.mktemp("llama")
    tokenizer = byte_level_tokenizer(SENTENCES)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|begin_of_image|>", "<|video|>"]})
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)
    return folder


@torch.no_grad()
def test_another_decoder_from_a_folder(llama, videos):
    vlm = build(create_decoder(str(llama)), AutoTokenizer.from_pretrained(llama), "kangaroo")
    assert type(vlm.decoder) is LlamaForCausalLM
    test_a_batch_of_unlike_videos_equals_them_one_by_one(vlm, videos)
    test_generate_is_an_argmax_loop(vlm, videos)
    for name in MEDIA:
        test_a_token_named_in_a_question_is_text(vlm, videos, name)


def test_an_unknown_decoder_is_refused():
    with pytest.raises(ValueError, match="'smal' is neither a folder nor a preset; did you mean 'small'"):
        create_decoder("smal")


@pytest.mark.parametrize("name", DECODERS)
def test_presets_are_consistent(name):
    config = decoder_config(name)
    assert config.head_dim * config.num_attention_heads == config.hidden_size
    assert (config.pad_token_id, config.eos_token_id) == (0, 1)
