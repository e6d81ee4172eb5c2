import pytest

# Before it is imported: a golden file that differs is shown with its differences.
pytest.register_assert_rewrite("tests.golden.store")
