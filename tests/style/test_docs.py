"""Docs cannot lie quietly: links, promises, settings and the two READMEs are checked."""

import re
import subprocess
from pathlib import Path

import pytest

from firebrick.cli.__main__ import settings_page

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")
BANNED_NAMES = {"utils.py", "helpers.py", "common.py", "misc.py", "manager.py", "core.py"}


def tracked(*patterns: str) -> list[Path]:
    """Files of the checkout, tracked or new; outside a checkout, all that match."""
    done = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", *patterns], cwd=ROOT, capture_output=True, text=True
    )
    return [ROOT / line for line in done.stdout.splitlines() if (ROOT / line).is_file()]


@pytest.mark.parametrize("page", tracked("*.md"), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link of a page names a file that is there."""
    missing = [target for target in LINK.findall(page.read_text()) if not (page.parent / target).exists()]
    assert not missing


def test_promises_name_their_tests() -> None:
    """Every promise of the specification names tests that exist, or says that its test is pending."""
    promises = re.findall(r"^\| (\d+\.\d+) \|.*\|(.*)\|$", (ROOT / "SPECIFICATION.md").read_text(), re.MULTILINE)
    assert len(promises) >= 20
    for number, proof in promises:
        if "[test pending]" in proof:
            continue
        names = re.findall(r"`([^`]+)`", proof)
        assert names, f"promise {number} names no test"
        for name in names:
            path, _, function = name.partition("::")
            assert (ROOT / path).exists(), f"promise {number}: {path} is not there"
            if function:
                assert f"def {function}(" in (ROOT / path).read_text(), f"promise {number}: no {function} in {path}"


def test_settings_page_is_generated() -> None:
    """docs/reference/settings.md is what `firebrick config --markdown` prints."""
    assert (ROOT / "docs/reference/settings.md").read_text() == settings_page()


def test_readmes_keep_step() -> None:
    """The Chinese README has the sections, commands and links of the English one."""
    english, chinese = ((ROOT / name).read_text() for name in ("README.md", "README.zh-CN.md"))

    def skeleton(text: str) -> tuple[int, list[str], list[str]]:
        fences = re.findall(r"^```\w*$", text, re.MULTILINE)
        links = sorted(target for target in LINK.findall(text) if not target.startswith("README"))
        return len(re.findall(r"^## ", text, re.MULTILINE)), fences, links

    assert skeleton(english) == skeleton(chinese)


def test_few_root_entries_and_no_vague_file_names() -> None:
    """At most 20 visible entries at the root, and no file named for nothing in particular."""
    files = tracked()
    roots = {path.relative_to(ROOT).parts[0] for path in files if not path.relative_to(ROOT).parts[0].startswith(".")}
    assert len(roots) <= 20, sorted(roots)
    assert not [path for path in files if path.name in BANNED_NAMES]


def test_no_stub_in_the_code() -> None:
    """No unfinished thing is left in what ships."""
    words = re.compile(r"\b(TODO|FIXME|XXX|NotImplemented(Error)?)\b")
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in tracked("src/*.py", "guest/*.py", "dev")
        if "_pb2" not in path.name
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if words.search(line)
    ]
    assert not found
