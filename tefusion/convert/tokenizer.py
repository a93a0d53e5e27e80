"""GLM-4's tokenizer as a fast one of transformers: its ranks of byte strings (tiktoken's format) -> byte-level BPE."""

import base64
import binascii
from pathlib import Path
from typing import Any

from tefusion.choices import brief, in_short
from tefusion.hub.processing import PLAIN_TEMPLATE, VIDEO
from tefusion.json_files import read_object

# GLM-4's own way to cut a text into pieces, within which pairs merge (tokenization_chatglm.py).
PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
CHAT = ("[gMASK]", "<sop>", "<|user|>", "<|assistant|>")
# GLM-4's words for a dialogue; an image stands where it is shown.
CHAT_TEMPLATE = (
    "[gMASK]<sop>"
    "{%- for message in messages -%}"
    "<|{{ message.role }}|>{{ '\\n' }}"
    "{%- if message.content is string -%}{{ message.content }}"
    "{%- else -%}"
    "{%- for part in message.content -%}"
    "{%- if part.type == 'video' -%}" + VIDEO + "{%- else -%}{{ part.text }}{%- endif -%}"
    "{%- endfor -%}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
)


def read_tokenizer(folder: Path) -> Any:
    """The folder's tokenizer, which knows the place of a video; None where there is none."""
    from tokenizers import Tokenizer
    from transformers import AddedToken, PreTrainedTokenizerFast

    ready, ranks = folder / "tokenizer.json", folder / "tokenizer.model"
    try:
        if ready.is_file():
            backend = Tokenizer.from_file(str(ready))
        elif ranks.is_file():
            backend = byte_pairs(read_ranks(ranks))
        else:
            return None
    except ValueError:
        raise
    except Exception as error:  # the library's own kind
        raise ValueError(f"{ready} cannot be read: {in_short(error)}") from None
    file = folder / "tokenizer_config.json"
    config = read_object(file) if file.is_file() else {}
    special = {name: config[name] for name in ("pad_token", "eos_token") if isinstance(config.get(name), str)}
    added = added_tokens(config, file)
    if backend.get_vocab_size() > min(added, default=1 << 30) and ranks.is_file() and not ready.is_file():
        raise ValueError(f"{file}: the number of {brief(added[min(added)])} is taken by {ranks.name}")
    backend.add_special_tokens([added[i] for i in sorted(added)])
    for i, token in added.items():
        if backend.token_to_id(token) != i:
            raise ValueError(f"{file}: {brief(token)} would be {backend.token_to_id(token)}, not {i}")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    tokenizer.add_tokens([AddedToken(VIDEO, special=True)])
    return tokenizer


def added_tokens(config: dict[str, Any], file: Path) -> dict[int, str]:
    """The tokens beside the ranks, by their numbers."""
    listed = config.get("added_tokens_decoder", {})
    try:
        return {int(i): str(token["content"]) for i, token in listed.items()}
    except (AttributeError, TypeError, KeyError, ValueError):
        raise ValueError(f"{file}: added_tokens_decoder is not a table of tokens by their numbers") from None


def video_template(tokenizer: Any) -> str:
    known = tokenizer.get_vocab()
    return CHAT_TEMPLATE if all(token in known for token in CHAT) else PLAIN_TEMPLATE


def read_ranks(path: Path) -> dict[bytes, int]:
    """Lines of a byte string in base64 and its rank. Raises ValueError naming the line."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise ValueError(f"{path}, line {number}: {brief(line)} is no byte string with its rank") from None
    if sorted(ranks.values()) != list(range(len(ranks))) or any(bytes([b]) not in ranks for b in range(256)):
        raise ValueError(f"{path}: the ranks are not those of all bytes and their merges, each once")
    return ranks


def byte_pairs(ranks: dict[bytes, int]) -> Any:
    """The same tokenizer in `tokenizers`: a pair merges where its union has a rank, the lowest first."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    letters = byte_letters()

    def word(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    merges = []
    for token, rank in ranks.items():
        cuts = [(token[:i], token[i:]) for i in range(1, len(token))]
        halves = [(a, b) for a, b in cuts if a in ranks and b in ranks]
        merges += [(rank, ranks[a], ranks[b], (word(a), word(b))) for a, b in halves]
    vocabulary = {word(token): rank for token, rank in ranks.items()}
    tokenizer = Tokenizer(models.BPE(vocabulary, [pair for *_, pair in sorted(merges)], ignore_merges=True))
    cut = pre_tokenizers.Split(Regex(PIECES), "isolated")
    spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, spell])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def byte_letters() -> dict[int, str]:
    """The letter for which `tokenizers` writes each byte (GPT-2's): itself where it can be seen, else one beyond."""
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in seen]
    return {byte: chr(byte) for byte in seen} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}
