"""The snippets of docs/howto/backbone.md, run in their order; prints must say what is noted."""

import re
from pathlib import Path

import pytest
import torch

from search_core.export import safetensors_bytes
from search_core.nn.network import Network
from search_core.nn.ops import BN_EPS_SEARCH
from search_core.randomness import stream
from search_core.space.presets import get_space

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "backbone.md"
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.fixture
def search_files(tmp_path):
    """What a search of the demo's space leaves, as the page names it."""
    space = get_space("micro")
    architecture = "k3e1c24 k5e3c24 k3e6c40 k5e1c40 k3e3c80 k3e6c80"
    graph = space.graph(space.parse(architecture))
    network = Network.initialised(graph, stream(1, "weights"), BN_EPS_SEARCH)
    weights_path = tmp_path / "weights.safetensors"
    weights_path.write_bytes(safetensors_bytes(network))
    names = {"space_name": "micro", "architecture": architecture, "weights_path": weights_path}
    return names, network


def test_the_snippets_run_and_print_what_the_page_says(search_files, capsys):
    names, network = search_files
    torch.manual_seed(1)
    for snippet in SNIPPETS:
        exec(compile(snippet, PAGE.name, "exec"), names)
    noted = re.findall(r"print\(.*\)(?:  # (.*))?", "".join(SNIPPETS))
    printed = capsys.readouterr().out.splitlines()
    assert len(noted) == len(printed) == 5
    assert all(said in ("", line) for said, line in zip(noted, printed, strict=True))
    loaded, true = names["network"].eval(), network.eval()
    images = torch.randn(2, 1, 8, 8, generator=stream(1, "images"))
    with torch.no_grad():
        assert torch.equal(loaded(images), true(images))
