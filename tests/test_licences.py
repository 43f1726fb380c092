"""The check of licences: what it lets through and what not."""

from __future__ import annotations

import pytest

from tests.licences import is_fine


@pytest.mark.parametrize(
    ("expression", "fine"),
    [
        ("MIT", True),
        ("Apache-2.0 OR GPL-3.0-only", True),
        ("MPL-2.0 AND (Apache-2.0 OR MIT)", True),
        ("ISC License (ISCL)", True),
        ("GPL-3.0-only", False),
        ("MIT AND AGPL-3.0-only", False),
        ("MIT AND (AGPL-3.0-only OR SSPL-1.0)", False),
        ("", False),
    ],
)
def test_an_expression_is_fine_if_all_that_binds_us_is_on_the_list(expression, fine):
    assert is_fine(expression) is fine
