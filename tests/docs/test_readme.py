"""The README's library example, run as it stands."""

import re
from pathlib import Path

from search_core.space.presets import get_space

README = Path(__file__).parents[2] / "README.md"


def test_the_library_example_finds_a_network_within_its_budget(capsys):
    (snippet,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    names = {}
    exec(compile(snippet, README.name, "exec"), names)
    *tokens, macs = capsys.readouterr().out.split()
    space = get_space("micro")
    assert space.macs(space.parse(" ".join(tokens))) == int(macs) <= 1_000_000
