"""Reads a policy that Stable-Baselines3 has saved (`model.save`), without unpickling anything.

Such a zip has weights (`policy.pth`) and JSON (`data`). The JSON holds a pickle of each value that JSON cannot
represent, beside a text that describes its fields. A pickle can run any code, so only the weights and the text are
read. The text names a class and its arguments. Only classes of the libraries themselves are used. A user who needs more
has to allow it: `unpickle_policy`.

Stable-Baselines3 does not compress. So compressed parts are refused, and no part can be larger than its file.
"""

from __future__ import annotations

import importlib
import io
import json
import pickle
import re
import textwrap
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from worldmodel.utils.errors import UserError, one_line
from worldmodel.utils.extras import extra

with extra("sb3"):
    from stable_baselines3.common.policies import BasePolicy
    from stable_baselines3.common.save_util import load_from_zip_file

POLICY_MODULES = {
    "stable_baselines3.common.policies": "sb3",
    "stable_baselines3.dqn.policies": "sb3",
    "stable_baselines3.sac.policies": "sb3",
    "stable_baselines3.td3.policies": "sb3",
    "sb3_contrib.common.recurrent.policies": "sb3-contrib",
    "sb3_contrib.qrdqn.policies": "sb3-contrib",
    "sb3_contrib.tqc.policies": "sb3-contrib",
}
"""Modules whose policies are rebuilt, and the extra that has them."""
ARGUMENT_MODULES = ("torch.nn.modules.activation", "stable_baselines3.common.torch_layers")
"""Modules whose classes may be arguments of a policy."""
NOT_NEEDED = (":type:", ":serialized:", "optimizer_class", "optimizer_kwargs", "ortho_init")
"""The pickle itself, and arguments without an effect on a trained policy's actions."""
CURE = "give module:Class, or --trust-policy if you trust its author, since unpickling can run any code"


def read_zip(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The JSON and the weights of a saved policy.

    Raises:
        UserError: It is missing, damaged, compressed, or something else; or its weights are not finite.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}; give one that model.save of Stable-Baselines3 wrote")
    try:
        with open_stored(path) as archive:
            data, weights = json.loads(archive.read("data")), read_weights(archive.read("policy.pth"))
        if not isinstance(data, dict):
            raise ValueError("data is not a group of values")
        finite = all(bool(tensor.isfinite().all()) for tensor in weights.values())
    except Exception as error:  # a hostile file may cause any error
        raise UserError(
            f"{path} cannot be read as a policy of Stable-Baselines3 ({brief(error)}); save it again with model.save"
        ) from None
    if not finite:
        raise UserError(f"{path} has weights that are NaN or infinite; give a policy whose training did not diverge")
    return data, weights


def open_stored(file: Path | io.BytesIO) -> zipfile.ZipFile:
    """Open a zip; `ValueError` if a part is compressed, because it could unpack to any size."""
    archive = zipfile.ZipFile(file)
    if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
        raise ValueError("it is compressed")
    return archive


def read_weights(raw: bytes) -> dict[str, Tensor]:
    """The tensors that `torch.save` wrote; `ValueError` if there is more than tensors."""
    open_stored(io.BytesIO(raw))
    try:
        weights = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError("policy.pth has more than weights") from None
    if not isinstance(weights, dict) or not all(isinstance(tensor, Tensor) for tensor in weights.values()):
        raise ValueError("policy.pth has more than weights")
    return weights


def group(data: dict[str, Any], name: str) -> dict[str, Any]:
    """The group of that name; empty if it is missing or something else."""
    found = data.get(name)
    return found if isinstance(found, dict) else {}


def rebuildable_policy(data: dict[str, Any], weights: dict[str, Tensor]) -> tuple[type[BasePolicy], dict[str, Any]]:
    """The class of a policy and its arguments, from the text of the JSON.

    Raises:
        UserError: The text names a class that is not a library's, or sizes that do not fit the weights.
    """
    text = {name: value for name, value in group(data, "policy_kwargs").items() if name not in NOT_NEEDED}
    arguments = {name: read_argument(name, value) for name, value in text.items()}
    sizes, largest = list(numbers(arguments)), max((max(t.shape, default=1) for t in weights.values()), default=0)
    if len(sizes) > len(weights) or max(sizes, default=0) > largest:
        raise UserError("the sizes in its policy_kwargs are not those of its weights; save it again with model.save")
    return policy_class(group(data, "policy_class")), arguments


def policy_class(text: dict[str, Any]) -> type[BasePolicy]:
    """The policy class whose module and constructor the text names."""
    module, constructor = str(text.get("__module__")), str(text.get("__init__"))
    found = re.match(r"<function (\w+)\.__init__ at ", constructor)
    if module not in POLICY_MODULES or not found:
        raise UserError(
            f"its policy is a class of the module {brief(module)}, which is not rebuilt without unpickling; {CURE}"
        )
    with extra(POLICY_MODULES[module]):
        return library_class(module, found[1], BasePolicy)


def read_argument(name: str, value: Any) -> Any:
    """An argument of a policy: a value of JSON, or the class that a text names."""
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"<class '([\w.]+)\.(\w+)'>", value)
    if not found or found[1] not in ARGUMENT_MODULES:
        raise UserError(f"its {name} is {brief(value)}, which is not rebuilt without unpickling; {CURE}")
    return library_class(found[1], found[2], nn.Module)


def library_class(module: str, name: str, kind: type) -> Any:
    """The class of that name; `UserError` if the module has none of this kind."""
    found = getattr(importlib.import_module(module), name, None)
    if not isinstance(found, type) or not issubclass(found, kind):
        raise UserError(f"it needs {module}.{name}, which the installed version does not have; {CURE}")
    return found


def numbers(value: Any) -> Iterator[float]:
    """All numbers in a JSON value; true and false do not count."""
    left = [value]  # not recursive, because deep nesting would overflow the stack
    while left:
        item = left.pop()
        if isinstance(item, dict | list):
            left += item.values() if isinstance(item, dict) else item
        elif isinstance(item, int | float) and not isinstance(item, bool):
            yield item


def unpickle_policy(path: Path, data: dict[str, Any]) -> tuple[type[BasePolicy], dict[str, Any]]:
    """Unpickle the class of a policy and its arguments, which can run any code. The rest is not unpickled."""
    others: dict[str, Any] = dict.fromkeys(data.keys() - {"policy_class", "policy_kwargs"})
    try:
        found, _, _ = load_from_zip_file(path, custom_objects=others, device="cpu")
        assert found is not None
        kind, arguments = found["policy_class"], found["policy_kwargs"]
        if not issubclass(kind, BasePolicy) or not isinstance(arguments, dict):
            raise TypeError(f"{brief(kind)} is not a policy")
    except Exception as error:  # unpickling may raise any error
        raise UserError(
            f"it cannot be unpickled ({brief(error)}); install what it needs, or give module:Class"
        ) from None
    return kind, arguments


def brief(text: object) -> str:
    """The start of an untrusted text, on one line, with `?` for unprintable characters."""
    short = textwrap.shorten(one_line(text), 200, placeholder=" ...")
    return "".join(letter if letter.isprintable() else "?" for letter in short)
