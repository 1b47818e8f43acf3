"""Codes and starting contexts of a store: what their rows say, and that those of two VQ-VAEs are never mixed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import envs  # noqa: F401 - registers
from tests.conftest import TOY, toy_episode
from train import outcome, prior, tokens, vqvae
from worldmodel.data.clips import read_state
from worldmodel.data.env_spec import NO_ACTION, ActionSpec, EnvSpec
from worldmodel.data.store import Store
from worldmodel.data.writer import StoreWriter
from worldmodel.generation.context import Context
from worldmodel.generation.dream import Dream
from worldmodel.models.loading import load_vqvae
from worldmodel.models.pixels import to_uint8
from worldmodel.training.encoding import latent_rows
from worldmodel.training.tokens_stage import make_contexts, rows_before_ends
from worldmodel.utils.checkpoint import read_checkpoint, replace_config
from worldmodel.utils.errors import UserError

Stages = Callable[..., tuple]


def test_rows_of_codes_say_what_led_into_them() -> None:
    """Six frames, two to a latent frame: action a_t leads from frame t into frame t + 1."""
    env_spec = EnvSpec(name="x", action=ActionSpec(kind="Discrete", nvec=(3,)), variables=("V",))
    episode = {
        "frames": np.zeros((6, 4, 4, 3), np.uint8),
        "action": np.array([0, 1, 2, 1, 2, 0]),
        "reward": np.array([1, 2, 4, 8, 16, 0], np.float32),
        "terminated": np.array([0, 0, 0, 0, 1, 0], bool),
        "variables": np.arange(6, dtype=np.float32)[:, None],
    }
    episode["led"] = env_spec.action.encode_led(episode["action"][:-1])
    rows = latent_rows(episode, 0, 6, stride=2)
    assert rows["condition"].tolist() == [[0, 0, 0, 1, 0, 0], [0, 1, 0, 0, 0, 1], [0, 1, 0, 0, 0, 1]]
    assert rows["reward"].tolist() == [1, 6, 24]
    assert rows["done"].tolist() == [False, False, True]
    assert rows["variables"].tolist() == [[1], [3], [5]]
    assert latent_rows(episode, 2, 4, stride=2)["condition"].tolist() == [[0, 1, 0, 0, 0, 1]]


def test_an_action_space_without_0_has_nothing_at_the_ends() -> None:
    env_spec = EnvSpec(name="x", action=ActionSpec(kind="Box", low=(0.5,), high=(1.0,)))
    assert env_spec.action.encode_led(np.array([[0.5], [1.0]], np.float32)).tolist() == [[0], [0.5], [1]]


def test_codes_are_those_of_whole_episodes_and_contexts_begin_in_them(toy_run: Path) -> None:
    data, codes, model = Store(toy_run / "data.zarr"), Store(toy_run / "tokens.zarr"), load_vqvae(toy_run / "vqvae")
    assert codes.n_rows == data.n_rows
    assert np.array_equal(codes.episode_indices("test"), data.episode_indices("test"))
    whole = model.encode(torch.from_numpy(data.read_episode(7)["frames"])[None])[0]
    assert (whole.numpy() == codes.read_episode(7)["codes"]).mean() > 0.999  # rounding may differ from batch to batch
    contexts = Context.load(toy_run)
    assert contexts.codes.shape == (4, 4, 4, 4, 1)
    valid = np.concatenate([codes.read_episode(i)["codes"] for i in codes.episode_indices("valid")])
    for context in contexts.codes.numpy():
        assert any(np.array_equal(valid[t : t + 4], context) for t in range(len(valid)))


def test_codes_of_a_recurrent_vqvae_come_with_its_reconstructions(recurrent_run: Path) -> None:
    data, codes = Store(recurrent_run / "data.zarr"), Store(recurrent_run / "tokens.zarr")
    model, episode, rows = load_vqvae(recurrent_run / "vqvae"), data.read_episode(7), codes.read_episode(7)
    assert np.array_equal(rows["reconstruction"][0], episode["frames"][0]), "the first frame is given"
    assert not np.array_equal(rows["reconstruction"][1:], episode["frames"][1:])
    state = read_state(codes, np.array([codes.episode_bounds(7)[0] + 3]), np.array([3]), 2)
    assert np.array_equal(state[0], rows["reconstruction"][[2, 1, 0]])
    start = read_state(codes, np.array([codes.episode_bounds(7)[0] + 1]), np.array([1]), 2)
    assert np.array_equal(start[0], rows["reconstruction"][[0, 0, 0]]), "as RecurrentVQVAE.start"
    later, led = (
        torch.from_numpy(rows["codes"][None, 3:].astype(np.int64)),
        torch.from_numpy(rows["condition"][None, 3:]),
    )
    with torch.no_grad():
        decoded = to_uint8(model.decode(later.long(), {model: torch.from_numpy(state)}, led))[0].numpy()
    apart = np.abs(decoded.astype(int) - rows["reconstruction"][3:])
    assert apart[0].max() <= 1 and apart.mean() < 0.5, "but for rounding, which differs from batch to batch"


def test_contexts_of_a_recurrent_vqvae_have_the_pictures_before_them(recurrent_run: Path) -> None:
    contexts, codes = Context.load(recurrent_run), Store(recurrent_run / "tokens.zarr")
    assert contexts.state is not None and contexts.state.shape == (4, 3, 16, 16, 3)
    episodes = [codes.read_episode(i) for i in codes.episode_indices("valid")]
    places = [(e, t) for e in episodes for t in range(1, len(e["codes"]) - 3)]
    for context in range(4):
        known = contexts[slice(context, context + 1)]
        found = [(e, t) for e, t in places if np.array_equal(e["codes"][t : t + 4], known.codes[0].numpy())]
        pictures = [e["reconstruction"][[t - 1, max(t - 2, 0), 0]] for e, t in found]
        assert any(np.array_equal(p, known.state[0].numpy()) for p in pictures)
    starts = contexts.is_episode_start(3)
    assert starts.any() and not starts.all()


def test_contexts_with_equal_codes_may_have_different_pictures(tmp_path: Path) -> None:
    """Codes of a recurrent VQ-VAE describe changes. In these episodes nothing changes, and two of them are equal."""
    with StoreWriter(tmp_path / "store", TOY, {}) as writer:
        for gray in (50, 100, 150, 50):
            rows: dict[str, np.ndarray] = {"reconstruction": np.full((6, 16, 16, 3), gray, np.uint8)}
            rows |= {"codes": np.zeros((6, 1, 1, 1), np.uint16), "condition": np.zeros((6, 3), np.float32)}
            writer.append(rows | {"variables": np.zeros((6, 1), np.float32)})
    args = tokens.Args(n_contexts=8, context_frames=4, split="train")
    found = make_contexts(Store(tmp_path / "store"), args, past_frames=2)
    assert found.state is not None
    assert sorted(found.state[:, 0, 0, 0, 0].tolist()) == [50, 100, 150]


def test_encoding_goes_on_where_it_stopped(
    toy_run: Path, tmp_path: Path, toy_fill: Callable, toy_stages: Stages
) -> None:
    shutil.copytree(toy_run / "vqvae", tmp_path / "vqvae")
    args = toy_stages(tmp_path)[1]
    toy_fill(tmp_path / "data.zarr", 20)
    tokens.main(args)
    before = Store(tmp_path / "tokens.zarr").read_episode(3)
    shutil.rmtree(tmp_path / "data.zarr")
    toy_fill(tmp_path / "data.zarr", 30)  # the same twenty and ten more
    tokens.main(args)
    after = Store(tmp_path / "tokens.zarr")
    assert len(after.episode_ends) == 30
    assert all(np.array_equal(before[name], after.read_episode(3)[name]) for name in before)


def test_contexts_may_come_before_ends(toy_run: Path, tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "store", TOY, {}) as writer:
        for n, end in ((30, 29), (30, 99), (9, 8)):
            writer.append({"codes": np.zeros((n, 1, 1, 1), np.uint16), "done": np.arange(n) == end})
    places = rows_before_ends(Store(tmp_path / "store"), np.arange(3), 0, 8)
    assert sorted(t for e, t in places if e == 0) == list(range(8, 22)), "the end itself is never in a context"
    assert [t for e, t in places if e == 2] == [0]
    assert len(places) == 15, "an episode that was cut off has no end"
    assert not [e for e, _ in rows_before_ends(Store(tmp_path / "store"), np.arange(3), 1, 8) if e == 2]
    store = Store(toy_run / "tokens.zarr")
    near = rows_before_ends(store, store.episode_indices("valid"), 0, 4)
    known = {store.read_episode(e)["codes"][t : t + 4].astype(np.int32).tobytes() for e, t in near}
    for share, least in ((0.0, 0), (0.5, 3), (1.0, 6)):
        chosen = make_contexts(store, tokens.Args(n_contexts=6, context_frames=4, before_end_fraction=share), 0).codes
        assert len(chosen) == 6
        assert sum(codes.numpy().astype(np.int32).tobytes() in known for codes in chosen) >= least
    for split in ("train", "valid"):
        chosen = make_contexts(store, tokens.Args(n_contexts=6, context_frames=4, split=split), 0).codes
        played = b"".join(
            store.read_episode(i)["codes"].astype(np.int32).tobytes() for i in store.episode_indices(split)
        )
        assert all(codes.numpy().astype(np.int32).tobytes() in played for codes in chosen)
    with pytest.raises(UserError, match=r"before_end_fraction must be a fraction from 0 to 1, not 1\.5"):
        tokens.Args(before_end_fraction=1.5)


def test_several_stores_are_encoded_one_after_the_other(
    toy_run: Path, tmp_path: Path, toy_fill: Callable, toy_stages: Stages
) -> None:
    shutil.copytree(toy_run / "vqvae", tmp_path / "vqvae")
    stores = tuple(toy_fill(tmp_path / name, n) for name, n in (("first", 20), ("second", 4)))
    args = replace(toy_stages(tmp_path)[1], data=stores)
    tokens.main(args)
    toy_fill(tmp_path / "second", 6)  # more of the second
    tokens.main(args)
    codes = Store(tmp_path / "tokens.zarr")
    assert len(codes.episode_ends) == 30
    for split in ("train", "valid", "test"):
        parts = [Store(path).episode_indices(split) for path in stores]
        assert np.array_equal(codes.episode_indices(split), np.concatenate([parts[0], parts[1] + 20])), split
    for i, (store, k) in {0: (0, 0), 19: (0, 19), 20: (1, 0), 29: (1, 9)}.items():
        column = Store(stores[store]).read_episode(k)["variables"]
        assert np.array_equal(codes.read_episode(i)["variables"], column)
    assert codes.read_episode(20)["frame_row"][0] == Store(stores[0]).n_rows
    with StoreWriter(tmp_path / "other", replace(TOY, name="other"), {}) as writer:
        writer.append(toy_episode(np.random.default_rng(0)))
    with pytest.raises(UserError, match=r"other does not have the environment of .*first, so they cannot be read as"):
        tokens.main(replace(args, data=(stores[0], tmp_path / "other"), restart=True))
    assert len(Store(tmp_path / "tokens.zarr").episode_ends) == 30
    toy_fill(tmp_path / "first", 2)
    with pytest.raises(UserError, match=r"recorded with settings.data.stores.* use --restart to"):
        tokens.main(args)


def test_codes_of_another_vqvae_are_not_mixed(
    toy_run: Path, tmp_path: Path, toy_fill: Callable, toy_stages: Stages
) -> None:
    shutil.copytree(toy_run / "vqvae", tmp_path / "vqvae")
    v, t, p, o = toy_stages(tmp_path)
    toy_fill(tmp_path / "data.zarr", 20)
    tokens.main(t)
    vqvae.main(replace(v, trainer=replace(v.trainer, steps=1), restart=True))
    sentence = r"was recorded with settings.vqvae.weights = \w+, but \w+ was asked for; use --restart to encode"
    with pytest.raises(UserError, match=sentence):
        tokens.main(t)
    for stale in (lambda: prior.main(p), lambda: outcome.main(o), lambda: Context.load(tmp_path)):
        with pytest.raises(UserError, match="was made with another VQ-VAE than"):
            stale()
    tokens.main(replace(t, restart=True))
    Context.load(tmp_path)
    for part in ("prior", "outcome"):
        shutil.copytree(toy_run / part, tmp_path / part)
    with pytest.raises(
        UserError, match=r"prior was made with another VQ-VAE than .*vqvae; make it again with --restart"
    ):
        Dream.load(tmp_path)


def test_a_recurrent_vqvae_that_takes_actions_needs_them(
    recurrent_run: Path, tmp_path: Path, toy_stages: Stages
) -> None:
    shutil.copytree(recurrent_run / "vqvae", tmp_path / "vqvae")
    with StoreWriter(tmp_path / "data.zarr", replace(TOY, action=NO_ACTION, variables=()), {}) as writer:
        writer.append({"frames": toy_episode(np.random.default_rng(0))["frames"]})
    with pytest.raises(UserError, match=r"data\.zarr has no actions, but .*vqvae takes them; encode a store that has"):
        tokens.main(toy_stages(tmp_path, recurrent=True)[1])
    assert not (tmp_path / "tokens.zarr").exists()


def test_codes_of_another_hysteresis_are_not_mixed(
    toy_run: Path, tmp_path: Path, toy_fill: Callable, toy_stages: Stages
) -> None:
    """The weights are the same, and a prior may begin with them; the codes are others."""
    shutil.copytree(toy_run / "vqvae", tmp_path / "vqvae")
    _, t, p, o = toy_stages(tmp_path, steps=1)
    toy_fill(tmp_path / "data.zarr", 20)
    tokens.main(t)
    config = read_checkpoint(tmp_path / "vqvae").config
    config["model"]["hysteresis"] = 0.1
    replace_config(tmp_path / "vqvae", config)
    for stale in (lambda: prior.main(p), lambda: outcome.main(o), lambda: Context.load(tmp_path)):
        with pytest.raises(UserError, match="was made with another VQ-VAE than"):
            stale()
    tokens.main(replace(t, restart=True))
    Context.load(tmp_path)
    prior.main(replace(p, init_from=toy_run / "prior"))
    shutil.copytree(toy_run / "outcome", tmp_path / "outcome")
    with pytest.raises(UserError, match=r"outcome was made with another VQ-VAE"):
        Dream.load(tmp_path)
