"""LLaVA-OneVision with a compressor of the zoo, fine-tuned by transformers' Trainer.

    python examples/finetune_llava_onevision.py                     # a tiny random model on clips that are made here
    python examples/finetune_llava_onevision.py --model llava-hf/llava-onevision-qwen2-0.5b-ov-hf --data rows.jsonl

`--data` holds a line {"video": "clip.mp4", "question": "...", "answer": "..."} for each example, paths from its own
folder. Of a real model the compressor alone is trained, unless --trainable all asks for everything; the tiny one knows
nothing, and all of it is. What is saved in --out is read back by `load_compressed`, compressor, k and weights together.
"""

import argparse
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import LlavaOnevisionForConditionalGeneration, LlavaOnevisionProcessor, Trainer, TrainingArguments

from tefusion.data.motion import MotionSettings, write_motion
from tefusion.data.motionbench import read_motionbench
from tefusion.data.prompt import prompt
from tefusion.integrations.transformers import compress_processor_, compress_video_, load_compressed
from tefusion.video import read_video

TEMPLATE = (
    "{% for message in messages %}{% for part in message.content %}"
    "{{ '<video>' if part.type == 'video' else part.text }}{% endfor %}{% endfor %} : "
)


def tiny() -> tuple[Any, Any]:
    """A model and a processor of LLaVA-OneVision's classes, random, of a few thousand weights; a letter is a token."""
    names = {"<unk>": 0, "<pad>": 1, "<end>": 2, "<image>": 3, "<video>": 4}
    letters = Tokenizer(models.WordLevel(names | {chr(i): len(names) + i - 32 for i in range(32, 127)}, "<unk>"))
    letters.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    special = {"image_token": "<image>", "video_token": "<video>"}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=letters, unk_token="<unk>", pad_token="<pad>", eos_token="<end>", extra_special_tokens=special
    )
    size = {"height": 32, "width": 32}
    processor = LlavaOnevisionProcessor(
        transformers.LlavaOnevisionImageProcessor(size=size),
        tokenizer,
        transformers.LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=TEMPLATE,
    )
    layers = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.LlavaOnevisionConfig(
        vision_config={**layers, "image_size": 32, "patch_size": 8, "model_type": "siglip_vision_model"},
        text_config={**layers, "model_type": "qwen2", "num_key_value_heads": 2, "vocab_size": len(tokenizer)}
        | {"pad_token_id": 1, "eos_token_id": 2, "bos_token_id": None},
        image_token_index=3,
        video_token_index=4,
        image_grid_pinpoints=[[32, 32]],
    )
    return LlavaOnevisionForConditionalGeneration(config), processor


def made_rows(folder: Path, clips: int) -> Iterable[dict[str, str]]:
    """Questions on generated clips, in MotionBench's layout."""
    write_motion(folder, MotionSettings(train=clips, dev=1, test=1))
    for question in read_motionbench(folder / "train"):
        yield {"video": str(question.video), "question": prompt(question), "answer": question.answer or ""}


def read_rows(path: Path) -> Iterable[dict[str, str]]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        row = json.loads(line)
        if missing := {"video", "question", "answer"} - set(row):
            raise ValueError(f"{path}:{number} has no {', '.join(sorted(missing))}")
        yield {**row, "video": str(path.parent / row["video"])}


class Collator:
    """Rows -> what the compressed model takes. Only the answer's tokens are learned."""

    def __init__(self, processor: Any, frames: int):
        self.processor, self.frames = processor, frames

    def prompt(self, question: str) -> str:
        content = [{"type": "video"}, {"type": "text", "text": question}]
        return self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)

    def videos(self, rows: list[dict[str, str]]) -> list[torch.Tensor]:
        return [torch.from_numpy(read_video(row["video"], frames=self.frames)).permute(0, 3, 1, 2) for row in rows]

    def __call__(self, rows: list[dict[str, str]]) -> Any:
        end = self.processor.tokenizer.eos_token
        answers = [row["answer"] + end for row in rows]
        batch = self.processor(
            text=[self.prompt(row["question"]) + answer for row, answer in zip(rows, answers, strict=True)],
            videos=self.videos(rows),
            padding=True,
            return_tensors="pt",
        )
        labels = torch.full_like(batch["input_ids"], -100)
        for row, answer in enumerate(answers):
            learned = len(self.processor.tokenizer(answer, add_special_tokens=False)["input_ids"])
            places = batch["attention_mask"][row].nonzero()[-learned:, 0]
            labels[row, places] = batch["input_ids"][row, places]
        batch["labels"] = labels
        return batch


def main(words: list[str] | None = None) -> list[float]:
    """Trains, saves, loads and answers one question. Returns the losses."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a folder or a name of the hub; without one, a tiny random model")
    parser.add_argument("--data", type=Path, help="a file of JSON lines; without one, clips that are made here")
    parser.add_argument("--compressor", default="te_fusion")
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--trainable", choices=("compressor", "all"))
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--out", type=Path, default=Path("runs/llava_onevision"))
    chosen = parser.parse_args(words)
    transformers.set_seed(0)
    if chosen.model is None:
        model, processor = tiny()
    else:
        model = LlavaOnevisionForConditionalGeneration.from_pretrained(chosen.model, dtype="auto")
        processor = LlavaOnevisionProcessor.from_pretrained(chosen.model)
    trainable = chosen.trainable or ("all" if chosen.model is None else "compressor")
    compressed = compress_video_(model, chosen.compressor, chosen.k, trainable=trainable)
    compress_processor_(processor, compressed)
    side = model.config.vision_config.image_size
    print(f"{chosen.frames} frames are {compressed.num_video_tokens(chosen.frames, side, side)} tokens")
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    print(f"{trained:,} of {sum(parameter.numel() for parameter in model.parameters()):,} weights are trained")
    with tempfile.TemporaryDirectory() as made:
        rows = list(read_rows(chosen.data) if chosen.data else made_rows(Path(made), clips=max(24, chosen.batch)))
        collator = Collator(processor, chosen.frames)
        settings = TrainingArguments(
            output_dir=str(chosen.out),
            max_steps=chosen.steps,
            per_device_train_batch_size=chosen.batch,
            learning_rate=chosen.rate,
            lr_scheduler_type="constant",
            logging_steps=max(1, chosen.steps // 5),
            save_strategy="no",
            report_to="none",
            remove_unused_columns=False,  # the collator needs them all
            dataloader_pin_memory=torch.cuda.is_available(),
        )
        trainer = Trainer(model, settings, data_collator=collator, train_dataset=rows)
        trainer.train()
        trainer.save_model(str(chosen.out))
        processor.save_pretrained(chosen.out)
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}; saved in {chosen.out}")

        loaded = load_compressed(chosen.out)
        processor = compress_processor_(LlavaOnevisionProcessor.from_pretrained(chosen.out), loaded)
        asked = processor(
            text=collator.prompt(rows[0]["question"]), videos=collator.videos(rows[:1]), return_tensors="pt"
        )
        reply = loaded.model.eval().generate(**asked, max_new_tokens=8, do_sample=False)
        said = processor.decode(reply[0, asked["input_ids"].shape[1] :], skip_special_tokens=True)
        print(f"asked: {rows[0]['question'].splitlines()[0]}\nsays: {said!r}, right is {rows[0]['answer']!r}")
    return losses


if __name__ == "__main__":
    main()
