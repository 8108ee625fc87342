"""Which tests of the operators are slow, by measured time: `make check` leaves them out."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent

SLOW = {
    "test_compilation": {"test_compiles_once_with_backward"},
    "test_extension": {"test_import_explains_itself", "test_needs_no_module_of_this_python"},
    "test_hyena_mixer": {"test_large_results_have_all_channels"},
    "test_instruction_sets": {"test_narrower_vectors"},
    "test_legendre_conv": {"test_large_results_have_all_channels"},
    "test_legendre_step": {"test_equals_legendre_conv"},
}


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks them."""
    own = (item for item in items if isinstance(item, pytest.Function) and item.path.parent == HERE)
    for item in own:
        if item.originalname in SLOW.get(item.path.stem, ()):
            item.add_marker(pytest.mark.slow)
