"""What a setting may be, and what is said of what it may not be."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from worldmodel.training.trainer_config import TrainerConfig
from worldmodel.utils.errors import UserError
from worldmodel.utils.settings import (
    AboveZero,
    Count,
    Fraction,
    FractionBelow1,
    NonEmpty,
    NotNegative,
    Pixels,
    Positive,
    Seed,
    Settings,
    check_value,
)

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("kind", "value", "sentence"),
    [
        (NotNegative, NAN, "x must be a finite number of at least 0, not nan"),
        (NotNegative, INF, "x must be a finite number of at least 0, not inf"),
        (NotNegative, -1, "x must be a finite number of at least 0, not -1"),
        (NotNegative, 1e300, "x must be at most 3.4e+38, not 1e+300"),
        (AboveZero, 0, "x must be a finite number above 0, not 0"),
        (float, -INF, "x must be a finite number, not -inf"),
        (float, "1", "x should be of type float, not '1'"),
        (Fraction, NAN, "x must be a fraction from 0 to 1, not nan"),
        (FractionBelow1, 1, "x must be a fraction from 0 to below 1, not 1"),
        (Positive, 0, "x must be at least 1, not 0"),
        (Positive, 10**23, "x must be at most 2147483647, not 100000000000000000000000"),
        pytest.param(Positive, 10**5000, "x must be at most 2147483647, not a very long int", id="5,001 digits"),
        (Count | None, -1, "x must be at least 0, not -1"),
        (int, -(10**23), "x must be at least -2147483647, not -100000000000000000000000"),
        (int, 2.5, "x should be of type int, not 2.5"),
        (int, NAN, "x should be of type int, not nan"),
        (int, True, "x should be of type int, not True"),
        (bool, "no", "x should be of type bool, not 'no'"),
        (bool, 1, "x should be of type bool, not 1"),
        (Pixels, 4097, "x must be from 1 to 4096, not 4097"),
        (Seed, -1, "x must be from 0 to 2147483647, not -1"),
        (Path, 5, "x should be of type str, not 5"),
        (str, None, "x should be of type str, not None"),
        (Literal["paper", "stream"], "strem", "x cannot be 'strem'; did you mean 'stream'?"),
        (Literal[18, 34], 18.0, "x cannot be 18.0; did you mean '18'?"),
        (tuple[Positive, Positive], [1], "x should be a list of 2, not [1]"),
        (tuple[Positive, Positive], [1, 0], "x must be at least 1, not 0"),
        (tuple[tuple[str, Fraction], ...], [["a", NAN]], "x must be a fraction from 0 to 1, not nan"),
        (tuple[float, ...], 1.0, "x should be a list, not 1.0"),
        (NonEmpty[Positive], (), "x should have one value or more"),
    ],
)
def test_what_a_setting_may_not_be_is_told_in_a_sentence(kind: Any, value: Any, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        check_value(kind, value, "x")
    assert str(error.value) == sentence


@pytest.mark.parametrize(
    ("kind", "value", "becomes"),
    [
        (Positive, np.int64(3), 3),
        (float, 2, 2.0),
        (float, np.float32(0.5), 0.5),
        (bool, np.bool_(True), True),
        (Path, "a/b", Path("a/b")),
        (Count | None, None, None),
        (tuple[tuple[float, ...], ...], [[1, 2], []], ((1.0, 2.0), ())),
        (Literal["paper", "stream"], "stream", "stream"),
    ],
)
def test_a_setting_has_the_type_that_it_declares(kind: Any, value: Any, becomes: Any) -> None:
    result = check_value(kind, value, "x")
    assert result == becomes and type(result) is type(becomes)


@dataclass(frozen=True, kw_only=True)
class Both(Settings):
    """A rule between two settings, which can rely on what each of them may be."""

    low: Fraction = 0.0
    high: Fraction = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low > self.high:
            raise UserError("low is above high")


def test_rules_between_settings_come_after_those_of_each() -> None:
    for changes, sentence in (({"low": None}, "low should be of type float"), ({"low": 1, "high": 0}, "low is above")):
        with pytest.raises(UserError, match=sentence):
            Both(**changes)
    with pytest.raises(UserError, match="high must be a fraction"):
        replace(Both(), high=NAN)


def test_training_refuses_a_gradient_that_is_clipped_at_nan() -> None:
    """NaN passes every comparison: a run of a hundred steps would end with weights of NaN and exit status 0."""
    with pytest.raises(UserError, match="max_grad_norm must be a finite number above 0, not nan"):
        TrainerConfig(max_grad_norm=NAN)


def test_a_number_too_long_to_be_written_is_refused_as_well() -> None:
    with pytest.raises(UserError, match="x cannot be a very long int; known names: a, b"):
        check_value(Literal["a", "b"], 10**5000, "x")
