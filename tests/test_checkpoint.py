"""Checkpoints: whole or not there, verified before anything is loaded, and the one before where one is damaged."""

import json
import pickle
import sys

import pytest
import torch
from hostile import twice

from tefusion import checkpoint, shards
from tefusion.checkpoint import Checkpoints
from tefusion.shards import CheckpointError, digest, shares, spec, write_manifest, write_shard

SETTINGS = {"k": 4, "lr": 0.1}


def content(step):
    """What a checkpoint of this step holds: shared, own, state."""
    generator = torch.Generator().manual_seed(step)
    shared = {"model/a": torch.randn(3, 5, generator=generator), "model/b": torch.tensor(step)}
    shared["AdamW/a/step"] = torch.tensor(float(step))
    return shared, {"torch": torch.arange(9, dtype=torch.uint8)}, {"step": step, "share": 0.1 + step}


def wanted(names):
    return {name: spec(tensor) for name, tensor in content(0)[0].items()}


def saved(folder, *steps):
    made = Checkpoints(folder, 10, SETTINGS)
    for step in steps:
        made.save(step, *content(step))
    return made


def is_of(found, step):
    shared, own, state = content(step)
    assert found.shared.keys() == shared.keys()
    assert all(torch.equal(found.shared[name], shared[name]) for name in shared)
    assert torch.equal(found.own["torch"], own["torch"])
    return found.state == state


def test_what_was_saved_last_comes_back(tmp_path):
    saved(tmp_path, 10, 20, 30)
    again = Checkpoints(tmp_path, 10, SETTINGS)
    assert is_of(again.load(wanted), 30)
    assert again.resumed == 1
    third = Checkpoints(tmp_path, 10, SETTINGS)
    third.load(wanted)
    assert third.resumed == 2


def test_where_nothing_was_saved_nothing_is_loaded(tmp_path):
    fresh = Checkpoints(tmp_path / "none", 10, SETTINGS)
    assert fresh.load(wanted) is None
    assert fresh.resumed == 0
    assert not (tmp_path / "none").exists()


def test_two_are_kept_and_all_files_are_safetensors_or_json(tmp_path):
    saved(tmp_path, 10, 20, 30)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000020", "step-00000030"]
    assert json.loads((tmp_path / "latest").read_bytes())["checkpoint"] == "step-00000030"
    files = sorted(path.name for path in (tmp_path / "step-00000030").iterdir())
    assert files == ["manifest.json", "shard-00000-of-00001.safetensors"]
    manifest = json.loads((tmp_path / "step-00000030/manifest.json").read_bytes())
    assert manifest["settings"] == SETTINGS
    assert manifest["versions"]["torch"] == torch.__version__.partition("+")[0]
    (record,) = manifest["shards"].values()
    assert record["tensors"]["model/a"] == {"shape": [3, 5], "dtype": "float32"}


SHARD, MANIFEST = "shard-00000-of-00001.safetensors", "manifest.json"


def cut(path):
    path.write_bytes(path.read_bytes()[:-4])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def another_number(path):
    path.write_text(path.read_text().replace('"step": 30', '"step": 31'))


def pickled(path):
    path.write_bytes(pickle.dumps(content(30)[0]))


def gone(path):
    path.unlink()


def text(path):
    path.write_text("[]")


DAMAGE = [(SHARD, cut), (SHARD, flip), (SHARD, pickled), (SHARD, gone), (SHARD, text)]
DAMAGE += [(MANIFEST, cut), (MANIFEST, flip), (MANIFEST, another_number), (MANIFEST, gone), (MANIFEST, text)]


@pytest.mark.parametrize(("file", "damage"), DAMAGE)
def test_a_damaged_one_is_told_of_in_one_line_and_the_one_before_it_is_taken(file, damage, tmp_path, caplog):
    saved(tmp_path, 10, 20, 30)
    damage(tmp_path / "step-00000030" / file)
    again = Checkpoints(tmp_path, 10, SETTINGS)
    assert is_of(again.load(wanted), 20)
    (line,) = caplog.messages
    assert str(tmp_path / "step-00000030" / file) in line
    assert "step-00000020" in line
    assert "\n" not in line
    again.save(30, *content(30))  # the damaged one gives way
    assert is_of(Checkpoints(tmp_path, 10, SETTINGS).load(wanted), 30)


def test_every_changed_byte_and_every_cut_is_found(tmp_path):
    """Of every file of the newest one: it gives way to the one before, or there was nothing to be found."""
    saved(tmp_path, 10, 20)
    latest = (tmp_path / "latest").read_bytes()
    for file in (SHARD, MANIFEST):
        path = tmp_path / "step-00000020" / file
        whole = path.read_bytes()
        for at in range(0, len(whole), 23):
            for damaged in (whole[:at], whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :]):
                path.write_bytes(damaged)
                assert is_of(Checkpoints(tmp_path, 10, SETTINGS).load(wanted), 10), (file, at)
                (tmp_path / "latest").write_bytes(latest)
        path.write_bytes(whole)
    assert is_of(Checkpoints(tmp_path, 10, SETTINGS).load(wanted), 20)


def test_a_folder_that_latest_names_may_be_gone(tmp_path):
    saved(tmp_path, 10, 20)
    checkpoint.discard(tmp_path / "step-00000020")
    assert is_of(Checkpoints(tmp_path, 10, SETTINGS).load(wanted), 10)


@pytest.mark.parametrize("said", ["", "{}", "[]", '{"checkpoint": "../elsewhere", "resumed": 1}', "\0" * 40])
def test_latest_itself_may_be_damaged(said, tmp_path):
    saved(tmp_path, 10, 20)
    (tmp_path / "latest").write_text(said)
    assert is_of(Checkpoints(tmp_path, 10, SETTINGS).load(wanted), 20)


def test_what_latest_never_named_does_not_count(tmp_path):
    saved(tmp_path, 10, 20)
    (tmp_path / "latest").write_text('{"checkpoint": "step-00000010", "resumed": 0}')
    again = Checkpoints(tmp_path, 10, SETTINGS)
    assert is_of(again.load(wanted), 10)
    again.save(15, *content(15))
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-00000010", "step-00000015"]


def test_where_none_is_good_there_is_one_error_and_nothing_is_removed(tmp_path):
    saved(tmp_path, 10, 20)
    for path in tmp_path.glob("step-*"):
        cut(path / SHARD)
    with pytest.raises(ValueError, match=r"no checkpoint can be loaded.*step-00000020.* bytes, not the ") as raised:
        Checkpoints(tmp_path, 10, SETTINGS).load(wanted)
    assert "\n" not in str(raised.value)
    assert len(list(tmp_path.glob("step-*"))) == 2


def write(folder, *parts, settings=SETTINGS):
    """A checkpoint whose hashes are right, whatever it holds: one shard a part."""
    folder.mkdir()
    records = [write_shard(folder / shards.shard_name(i, len(parts)), part) for i, part in enumerate(parts)]
    write_manifest(folder, settings, {}, records)


def without(name):
    return [{key: tensor for key, tensor in content(0)[0].items() if key != name}]


WHOLE = content(0)[0]
WRONG = {
    "missing": (without("model/b"), "lacks model/b"),
    "extra": ([WHOLE | {"model/c": torch.zeros(1)}], "holds model/c, which belongs to nothing"),
    "mis-shaped": ([WHOLE | {"model/a": torch.zeros(5, 3)}], r"model/a is float32 \[5, 3\], not float32 \[3, 5\]"),
    "dtype": ([WHOLE | {"model/a": torch.zeros(3, 5).double()}], r"model/a is float64 \[3, 5\], not float32"),
    "infinite": ([WHOLE | {"model/a": torch.full((3, 5), float("inf"))}], "model/a is not finite"),
    "nan": ([WHOLE | {"model/a": torch.full((3, 5), float("nan"))}], "model/a is not finite"),
    "twice": ([WHOLE, {"model/b": torch.tensor(0)}], "holds model/b a second time"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_hashes_alone_do_not_make_it_good(kind, tmp_path):
    parts, says = WRONG[kind]
    write(tmp_path / "step-00000010", *parts)
    with pytest.raises(CheckpointError, match=says):
        Checkpoints(tmp_path, 10, SETTINGS).load(wanted)
    write(tmp_path / "step-00000020", WHOLE)
    assert Checkpoints(tmp_path, 10, SETTINGS).load(wanted)


class Bomb:
    def __reduce__(self):
        return exec, ("raise SystemExit('executed')",)


def named_twice(data):
    return twice(data, "model/a")


@pytest.mark.parametrize("change", [lambda data: pickle.dumps(Bomb()), named_twice], ids=["pickle", "twice"])
def test_a_shard_that_the_manifest_vouches_for_is_no_better_for_it(change, tmp_path):
    folder = tmp_path / "step-00000010"
    write(folder, WHOLE)
    data = change((folder / SHARD).read_bytes())
    (folder / SHARD).write_bytes(data)
    manifest = json.loads((folder / MANIFEST).read_bytes())
    manifest.pop("blake2b")
    manifest["shards"][SHARD] |= {"bytes": len(data), "blake2b": digest(data)}
    text = json.dumps(manifest, sort_keys=True)
    (folder / MANIFEST).write_text(json.dumps({"blake2b": digest(text.encode())} | manifest))
    with pytest.raises(CheckpointError, match="holds no tensors"):
        Checkpoints(tmp_path, 10, SETTINGS).load(wanted)


def test_another_runs_checkpoint_is_not_taken(tmp_path):
    saved(tmp_path, 10)
    with pytest.raises(CheckpointError, match="made with other settings"):
        Checkpoints(tmp_path, 10, SETTINGS | {"k": 2}).load(wanted)


def test_none_is_made_of_numbers_that_are_none(tmp_path):
    made = saved(tmp_path, 10)
    shared, *rest = content(20)
    shared["model/a"][0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="model/a is not finite after step 20"):
        made.save(20, shared, *rest)
    assert is_of(Checkpoints(tmp_path, 10, SETTINGS).load(wanted), 10)


def test_none_is_removed_before_its_successor_was_read_back(tmp_path, monkeypatch):
    made = saved(tmp_path, 10, 20)
    write_flushed = shards.write_flushed
    monkeypatch.setattr(shards, "write_flushed", lambda path, data: write_flushed(path, data[:-1] + b"?"))
    with pytest.raises(CheckpointError, match="is damaged"):
        made.save(30, *content(30))
    monkeypatch.undo()
    assert {path.name for path in tmp_path.glob("step-*")} >= {"step-00000010", "step-00000020"}
    assert is_of(Checkpoints(tmp_path, 10, SETTINGS).load(wanted), 20)


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    made = saved(tmp_path, 10)

    def full(path, data):
        path.write_bytes(data[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shards, "write_flushed", full)
    with pytest.raises(OSError, match="No space left"):
        made.save(20, *content(20))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000010"]


class Death(BaseException):
    """Nothing that a process does after it reaches the disk."""


class Doom:
    """Lets a number of changes reach the disk, and none after."""

    CHANGES = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir")

    def __init__(self):
        self.left = None
        sys.addaudithook(self.hook)

    def hook(self, event, args):
        if self.left is None or event not in self.CHANGES or (event == "open" and args[1] in ("r", "rb", None)):
            return
        if self.left == 0:
            raise Death
        self.left -= 1


doom = Doom()


def test_a_process_may_die_between_any_two_changes_of_the_disk(tmp_path):
    """Whatever came first of it: what is there afterwards is the old checkpoint or the new one, and goes on."""
    seen = []
    for changes in range(200):
        folder = tmp_path / str(changes)
        made = saved(folder, 10, 20)
        doom.left = changes
        try:
            made.save(30, *content(30))
            doom.left = None
            break
        except Death:
            doom.left = None
        again = Checkpoints(folder, 10, SETTINGS)
        found = again.load(wanted)
        seen.append(found.state["step"])
        assert is_of(found, seen[-1])
        assert not list(folder.glob(".*"))
        again.save(40, *content(40))
        assert is_of(Checkpoints(folder, 10, SETTINGS).load(wanted), 40)
    assert len(seen) > 8
    assert set(seen) == {20, 30}
    assert seen == sorted(seen)


def test_shares_are_balanced_and_the_same_whatever_the_order():
    tensors = {f"t{i}": torch.zeros(i) for i in range(40)}
    parts = shares(tensors, 3)
    assert sorted(name for part in parts for name in part) == sorted(tensors)
    sizes = [sum(t.nbytes for t in part.values()) for part in parts]
    assert max(sizes) - min(sizes) <= 160
    assert [part.keys() for part in shares(dict(reversed(tensors.items())), 3)] == [part.keys() for part in parts]


def test_clearing_leaves_nothing(tmp_path):
    saved(tmp_path / "checkpoints", 10, 20)
    checkpoint.clear(tmp_path / "checkpoints")
    assert not list(tmp_path.iterdir())
    checkpoint.clear(tmp_path / "checkpoints")
