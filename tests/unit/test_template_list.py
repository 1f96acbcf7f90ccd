"""The list of templates: names that sort as they are meant to be tried, and what names them elsewhere."""
import re

import pytest

from frozen_diffusion.modules.host.boot import PACK
from testhost.templates import CHAPTERS, TEMPLATES, named


def test_names_are_numbered_in_order():
    """No number twice, chapters from tens to tens, and the order of the list is that of the names."""
    numbers = [number for chapter in CHAPTERS.values() for number in chapter]
    assert numbers == sorted(set(numbers)) and list(TEMPLATES) == sorted(TEMPLATES)
    tens = [{number // 10 for number in chapter} for chapter in CHAPTERS.values()]
    assert all(len(ten) == 1 for ten in tens) and len(set.union(*tens)) == len(CHAPTERS)


def test_a_template_is_found_by_its_name_with_or_without_number():
    assert named("text_to_video") == named("02_text_to_video") == "02_text_to_video"
    with pytest.raises(ValueError, match="no template 'video'; there are: 01_text_to_image"):
        named("video")


def test_the_readme_lists_every_template_in_order():
    table = (PACK / "README.md").read_text(encoding="utf-8").partition("## Templates")[2].partition("\n## ")[0]
    assert re.findall(r"^\| (\d\d_\w+)", table, re.MULTILINE) == list(TEMPLATES)


def test_texts_name_templates_that_are_there():
    """Help pages, README and notes call a template *NUMBER_NAME*."""
    texts = [PACK / "README.md", *(PACK / "nodes" / "web" / "docs").glob("*.md"), *(PACK / "weights").rglob("*.md"),
             *(PACK / "workflows").glob("*.json")]
    unknown = {name for path in texts for name in re.findall(r"\*(\d\d_\w+)\*", path.read_text(encoding="utf-8"))
               } - TEMPLATES.keys()
    assert unknown == set()
