"""docs/integrations.md: its snippets run, its table is what the tests print."""

import re
from pathlib import Path

import pytest
from support_table import table, versions

GUIDE = (Path(__file__).parents[1] / "docs" / "integrations.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_snippets_run(snippet):
    exec(compile(snippet, "docs/integrations.md", "exec"), {})


def test_the_table_is_what_the_tests_print():
    (written,) = re.findall(r"<!-- support -->\n(.*?)\n<!-- /support -->", GUIDE, re.DOTALL)
    print(f"{table()}\n{versions()}")
    assert written == table()
