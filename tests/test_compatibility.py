"""The compatibility page says what the tests run over."""

from pathlib import Path

from compatibility import page
from families import FAMILIES

from hilotoken.adapters import ADAPTERS

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "compatibility.md"


def test_the_page_is_that_of_the_tables():
    assert PAGE.read_text(encoding="utf-8") == page(), "run python tests/compatibility.py"


def test_every_supported_pipeline_is_in_the_table():
    assert {name for name, _ in ADAPTERS} == {family.name.split(",")[0] for family in FAMILIES}
