"""Damaged copies of good files: bytes anywhere, and what each format holds in its place. A generator decides all."""

import json
import struct
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

NUMBERS = [0, 1, 2, 3, 7, 8, 127, 255, 256, 32767, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1]
TEXTS = [
    "",
    " ",
    "four",
    "４",
    "1_6",
    "nan",
    "1e99",
    "-1",
    "0",
    "NA",
    "Z",
    "../x",
    "/etc/passwd",
    "a\0b",
    "\ud800",
    "\n",
]
TEXTS += [
    "<|begin_of_image|>",
    "!!python/object/apply:os.system ['touch x']",
    "\u2028",
    "x" * 5000,
    "ü",
    "%s%n",
    "[[[[",
]
CONTAINERS = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"dinf", b"udta")
PICKLE = b"\x80\x04\x95\x1e\0\0\0\0\0\0\0\x8c\x05posix\x94\x8c\x06system\x94\x93\x94\x8c\x06touch x\x94\x85\x94R\x94."


def odd(rng: Random) -> Any:
    """A value that has no business where it lands."""
    number = rng.choice(NUMBERS) * rng.choice([1, -1])
    plain = [
        None,
        True,
        False,
        number,
        number / 2,
        4.0,
        1e308,
        float("inf"),
        float("nan"),
        10**30,
        [],
        {},
        [[]],
        {"a": 1},
    ]
    return rng.choice([rng.choice(TEXTS), rng.choice(plain), number])


def mangle(rng: Random, data: bytes, head: int = 256) -> bytes:
    """One to four edits, every other one near the beginning, where formats keep what they promise."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        at = rng.randrange(min(len(changed), rng.choice([head, len(changed)])) + 1)
        rng.choice(EDITS)(rng, changed, at)
    return bytes(changed)


def flip(rng: Random, data: bytearray, at: int) -> None:
    data[at : at + 1] = bytes(byte ^ 1 << rng.randrange(8) for byte in data[at : at + 1])


def cut(rng: Random, data: bytearray, at: int) -> None:
    del data[rng.choice([at, max(0, len(data) - rng.choice([1, 4, 64]))]) :]


def remove(rng: Random, data: bytearray, at: int) -> None:
    del data[at : at + rng.choice([1, 4, 16, 256])]


def insert(rng: Random, data: bytearray, at: int) -> None:
    data[at:at] = rng.choice(
        [rng.randbytes(rng.choice([1, 4, 16, 256])), b"\0" * 64, b"\r\n", b"\xff\xfe", b"[" * 5000]
    )


def repeat(rng: Random, data: bytearray, at: int) -> None:
    data[at:at] = data[at : at + rng.choice([4, 64, 1024])]


def swap(rng: Random, data: bytearray, at: int) -> None:
    size, other = rng.choice([4, 16, 64]), rng.randrange(len(data) + 1)
    one, two = sorted((at, other))
    if one + size <= two and two + size <= len(data):
        data[one : one + size], data[two : two + size] = data[two : two + size], data[one : one + size]


def number(rng: Random, data: bytearray, at: int) -> None:
    size = rng.choice([1, 2, 4, 8])
    data[at : at + size] = (rng.choice(NUMBERS) % 256**size).to_bytes(size, rng.choice(["big", "little"]))


EDITS: list[Callable[[Random, bytearray, int], None]] = [flip, flip, cut, remove, insert, repeat, swap, number, number]


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) of a JSON value."""
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from places(value[key])


def change_json(rng: Random, value: Any) -> Any:
    """One to three of its values replaced, dropped or moved under another key. `value` itself is changed."""
    for _ in range(rng.choice([1, 1, 2, 3])):
        found = list(places(value))
        if not found:
            return odd(rng)
        holder, key = rng.choice(found)
        other, its = rng.choice(found)
        match rng.randrange(6):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[rng.choice([*TEXTS, its if isinstance(its, str) else "x"])] = holder[key]
            case 2:
                holder[key] = json.loads(json.dumps(other[its]))
            case 3 if isinstance(holder, list):
                holder.append(holder[key])
            case _:
                holder[key] = odd(rng)
    return value


def write_json(rng: Random, value: Any) -> bytes:
    """As text, now and then in another encoding, with a mark, or mangled."""
    text = json.dumps(value, ensure_ascii=rng.random() < 0.8)
    match rng.randrange(24):
        case 0:
            return b"\xef\xbb\xbf" + text.encode(errors="surrogatepass")
        case 1:
            return text.encode("utf-16", errors="surrogatepass")
        case 2 | 3 | 4 | 5:
            return mangle(rng, text.encode(errors="surrogatepass"), head=len(text))
        case 6:
            return text.replace("{", '{"twice": 1, "twice": 2, ', 1).encode(errors="surrogatepass")
        case 7:
            return b"[" * 100_000 + text.encode(errors="surrogatepass")
    return text.encode(errors="surrogatepass")


def damage_json(rng: Random, data: bytes) -> bytes:
    return write_json(rng, change_json(rng, json.loads(data)))


def damage_rows(rng: Random, data: bytes) -> bytes:
    """One row of a JSON Lines file, or the lines' own order and ends."""
    lines = data.splitlines()
    at = rng.randrange(len(lines))
    match rng.randrange(8):
        case 0:
            lines.insert(at, rng.choice([lines[at], b"", b"\0" * 10, b"null", b'"' + b"x" * (2 << 20) + b'"']))
        case 1:
            return rng.choice([b"\xef\xbb\xbf", b""]) + b"\r\n".join(lines)
        case 2:
            return mangle(rng, data, head=len(data))
        case _:
            lines[at] = damage_json(rng, lines[at])
    return b"\n".join(lines) + b"\n"


def boxes(data: bytes, start: int, end: int) -> Iterator[tuple[int, int]]:
    """(begin, end) of every box of an mp4 file, inner ones too."""
    while start + 8 <= end:
        size = int.from_bytes(data[start : start + 4], "big")
        if size < 8 or start + size > end:
            return
        yield start, start + size
        if data[start + 4 : start + 8] in CONTAINERS:
            yield from boxes(data, start + 8, start + size)
        start += size


def damage_mp4(rng: Random, data: bytes) -> bytes:
    """A box's size, type, contents or place; every fourth time any bytes."""
    found = list(boxes(data, 0, len(data)))
    (begin, end), (other, last) = rng.choice(found), rng.choice(found)
    changed = bytearray(data)
    match rng.randrange(8):
        case 0 | 1:
            return mangle(rng, data)
        case 2:
            changed[begin : begin + 4] = struct.pack(">I", rng.choice([*NUMBERS, end - begin + 1]) % 2**32)
        case 3:
            changed[begin + 4 : begin + 8] = rng.choice(
                [data[other + 4 : other + 8], b"free", b"moov", rng.randbytes(4)]
            )
        case 4:
            changed[begin:end] = rng.choice([b"", data[other:last], data[begin:end] * 2])
        case _:
            small = [box for box in found if data[box[0] + 4 : box[0] + 8] not in (*CONTAINERS, b"mdat")]
            begin, end = rng.choice(small)
            for _ in range(rng.choice([1, 1, 3])):
                at = rng.randrange(begin + 8, max(begin + 9, end - 3))
                changed[at : at + 4] = struct.pack(
                    ">I", rng.choice([rng.choice(NUMBERS), rng.randrange(2**32)]) % 2**32
                )
    return bytes(changed)


def damage_safetensors(rng: Random, data: bytes) -> bytes:
    """The header as JSON, its length, the numbers behind it; or another kind of file altogether."""
    size = int.from_bytes(data[:8], "little")
    header, body = data[8 : 8 + size], bytearray(data[8 + size :])
    match rng.randrange(8):
        case 0:
            return mangle(rng, data, head=8 + size)
        case 1:
            return data[: -rng.choice([1, 4, 8])] if rng.random() < 0.5 else data + b"\0" * rng.choice([1, 4, 8])
        case 2:
            at = 4 * rng.randrange(max(1, len(body) // 4))
            body[at : at + 4] = struct.pack("<f", rng.choice([float("nan"), float("inf"), -float("inf"), 1e38]))
        case 3:
            return rng.choice([PICKLE, b"PK\x03\x04" + data, b"", data[:8], b"\xff" * 8 + data[8:], b"{}", header])
        case _:
            header = damage_json(rng, header)
    size = len(header) + rng.choice([0] * 8 + [1, -1, 8])
    return max(0, size).to_bytes(8, "little") + header + bytes(body)


def damage_words(rng: Random, words: list[str]) -> list[str]:
    """key=value words with a wrong key, value, list or shape."""
    words = list(words)
    for _ in range(rng.choice([1, 1, 2, 3])):
        at = rng.randrange(len(words))
        key, _, value = words[at].partition("=")
        wrong = str(odd(rng))
        match rng.randrange(9):
            case 0:
                words[at] = rng.choice([key, f"{key}==", f"--{words[at]}", f" {words[at]}", wrong])
            case 1:
                words.append(rng.choice(words))
            case 2:
                words[at] = f"{key[: rng.randrange(len(key) + 1)]}{rng.choice(TEXTS)}={value}"
            case 3:
                words[at] = f"{key}={value},{wrong}"
            case 4:
                words[at] = f"{key}={rng.choice([value + '0', '-' + value, value + '.0', value + 'e2', '1_6', '４'])}"
            case 5:
                words[at] = f"{key}={rng.choice(words).partition('=')[2]}"
            case 6:
                words[at] = f"{key}={wrong}"
            case _:  # may be right
                words[at] = f"{key}={rng.choice([value, value, '1', '2', '4', '16', '0.5', 'true', f'{value},8'])}"
    return words
