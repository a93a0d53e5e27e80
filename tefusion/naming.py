"""What the lines of a table are called."""

from collections.abc import Mapping, Sequence

from tefusion.results import parts

TITLES = {"text_only": "text only", "one_frame": "one frame", "fewer_frames": "fewer frames (N/k)"}
TITLES["lower_resolution"] = "lower resolution"


def method_name(line: Mapping, lines: Sequence[Mapping]) -> str:
    """The compressor, and whatever else sets it apart among the lines of the same compressor and k."""
    settings = {**line["settings"], "size": line["size"], **{name: line[name] for name in ("data", "encoder", "steps")}}
    others = [{**other["settings"], **other} for other in lines if other["compressor"] == line["compressor"]]
    others = [other for other in others if not parts(other)]
    # A tuned learning rate is another at each ratio: it sets lines apart where two of a ratio have different ones.
    same = [other for other in others if all(other[name] == line[name] for name in ("k", "n_input"))]
    rivals = {name: same if name == "lr_scale" else others for name in settings}
    apart = [name for name, value in settings.items() if any(o.get(name, value) != value for o in rivals[name])]
    return " ".join([line["compressor"], *(f"{name}={settings[name]}" for name in apart)])


def line_name(line: Mapping, lines: Sequence[Mapping]) -> str:
    """A control goes by the parts it plays."""
    played = [title for part, title in TITLES.items() if part in parts(line)]
    return ", ".join(played) if played else method_name(line, lines)
