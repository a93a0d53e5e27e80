"""What the tests of hostile input share."""

import json
import resource
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import pytest
from safetensors.torch import save_file

from tefusion.train import create_vlm


@contextmanager
def one_line(says, error=ValueError):
    with pytest.raises(error) as raised:
        yield
    assert says in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1
    assert len(str(raised.value)) < 2000


class Executed:
    """A pickle that leaves a file behind when it is loaded."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@contextmanager
def full_disk(size):
    """No file may grow beyond `size` bytes: the same error at the same place as where a disk is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def twice(data, name):
    """A safetensors file whose header names a tensor a second time, which the format forbids."""
    size = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + size].rstrip()
    again = json.dumps({name: json.loads(header)[name]}).encode()
    header = header[:-1] + b"," + again[1:]
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


def write_model(folder, run):
    """What `tefusion train` keeps, untrained."""
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps(asdict(run)))
    state = create_vlm(run).state_dict()
    save_file({name: tensor.clone() for name, tensor in state.items()}, folder / "model.safetensors")
    return folder
