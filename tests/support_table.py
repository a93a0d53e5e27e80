"""Prints the support table of docs/integrations.md, and the versions it was printed with."""

from importlib.metadata import version

from tiny_towers import TINY
from tiny_vlms import BEAMS_SINCE, OLDEST, TINY_VLMS

from tefusion.integrations.transformers import HOSTS
from tefusion.integrations.transformers.towers import adapter_of


def table() -> str:
    """Every tower and model that the tests build and run."""
    rows = ["| model | class | group attention | compressors | beams, compressed |", "| --- | --- | --- | --- | --- |"]
    for name, build in TINY.items():
        tower = build().tower
        rows.append(f"| {name} (tower) | `{type(tower).__name__}` | {type(adapter_of(tower)).__name__} | | |")
    for name, build in TINY_VLMS.items():
        owner = type(build().model.model).__name__
        since = BEAMS_SINCE.get(name, OLDEST)
        beams = f"from {since}" if since else "none of its own"
        rows.append(f"| {name} | `{owner}` | its tower's | {HOSTS[owner].__name__} | {beams} |")
    return "\n".join(rows)


def versions() -> str:
    return ", ".join(f"{library} {version(library)}" for library in ("transformers", "timm", "torch"))


if __name__ == "__main__":
    print(f"{table()}\n\nPrinted with {versions()}.")
