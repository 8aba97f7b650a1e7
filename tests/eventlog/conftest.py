"""The long kill -9 runs are for `pytest -m crash`."""

from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "crash" in config.getoption("markexpr"):
        return
    for item in items:
        if item.path.is_relative_to(HERE) and item.get_closest_marker("crash"):
            item.add_marker(pytest.mark.skip(reason="long; run with -m crash"))
