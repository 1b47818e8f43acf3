"""Packages that only some work needs, such as engines. Each is an extra: `pip install 'worldmodel[vizdoom]'`.

Where one is imported, `extra` turns its absence into an error that says how to install it. A module that is useless
without the package imports it at the top, so that the error comes before any work. Others import it where needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from worldmodel.utils.errors import UserError, one_line

EXTRAS = {
    "vizdoom": "ViZDoom",
    "mujoco": "MuJoCo",
    "sb3": "Stable-Baselines3",
    "sb3-contrib": "SB3 Contrib",
    "tensorboard": "TensorBoard",
    "minari": "Minari",
    "parquet": "pyarrow",
    "hub": "huggingface_hub",
}
"""Extra -> the name of its package."""


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Context in which the package of an extra is imported; `UserError` if it is missing or broken."""
    try:
        yield
    except ModuleNotFoundError:
        raise UserError(f"{EXTRAS[name]} is not installed; run pip install 'worldmodel[{name}]'") from None
    except ImportError as error:
        raise UserError(
            f"{EXTRAS[name]} cannot be imported ({one_line(error)}); run pip install 'worldmodel[{name}]'"
        ) from None
