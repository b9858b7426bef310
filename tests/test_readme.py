"""What the README and the docs say about files is true."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
LINE = re.compile(r"^(?P<indent> *)(?P<name>[\w.\-/]+) +# .+$")


def tree_in_readme() -> set[str]:
    block = README.split("## Files")[1].split("```")[1]
    paths, parents = set(), []
    for line in block.strip().splitlines()[1:]:
        match = LINE.match(line)
        assert match, f"no description: {line!r}"
        depth = len(match["indent"]) // 2
        parents = [*parents[: depth - 1], match["name"].rstrip("/")]
        if not match["name"].endswith("/"):
            paths.add("/".join(parents))
    return paths


def test_the_file_tree_is_the_package_on_disk():
    on_disk = {
        path.relative_to(ROOT / "longwave").as_posix()
        for path in (ROOT / "longwave").rglob("*.py")
        if path.name != "__init__.py"
    }
    assert tree_in_readme() == on_disk


def test_the_six_files_to_read_first_exist():
    section = README.split("## Read these six files first")[1].split("More in")[0]
    files = re.findall(r"^\d\. `([^`]+)`", section, flags=re.MULTILINE)
    assert len(files) == 6
    assert [name for name in files if not (ROOT / name).is_file()] == []


def test_links_of_the_documentation_lead_somewhere():
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


@pytest.mark.parametrize("page", ["README.md", "docs/adding-a-mixer.md"])
def test_python_examples_run(page):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    assert blocks
    subprocess.run([sys.executable, "-c", "\n".join(blocks)], check=True, capture_output=True, text=True)


def test_the_path_to_the_first_projection_is_short_and_real():
    steps = re.findall(r"^\d\. `([\w.]+)` in `([^`]+)`", (ROOT / "docs/reading.md").read_text(), flags=re.MULTILINE)
    assert 0 < len(steps) <= 7
    for function, file in steps:
        assert f"def {function.split('.')[-1]}(" in (ROOT / file).read_text(), f"{function} is not in {file}"
