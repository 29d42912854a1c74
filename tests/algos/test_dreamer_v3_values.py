"""Variants, sizes and presets: exact parameter counts, and what the names stand for."""

import dataclasses
import json

import jax
import pytest
from dreamer import KEY, config_of

from reverie import config, presets
from reverie.algos.dreamer import v3, v3_2023
from reverie.algos.dreamer.v3 import SIZES, Config
from reverie.envs.base import Space

PRESETS = dict(presets.of("dreamer_v3").named) | dict(presets.of("dreamer_v3_2023").named)
VARIANTS = ("v3-2023", "v3-nature", "v3-repo")
BENCHMARKS = ("atari100k", "atari200m", "dmc-proprio", "dmc-vision", "crafter", "minigrid", "small")
IMAGE = {"image": Space("image", (64, 64, 3))}
BUTTONS = {"action": Space("discrete", (), (6,))}
CARTPOLE = {"obs": Space("vector", (4,))}, {"action": Space("discrete", (), (2,))}


def paper(preset):
    """The algorithm of a preset."""
    return "dreamer_v3_2023" if preset.startswith("v3-2023") else "dreamer_v3"


def values(preset):
    """The algorithm's own values of a preset."""
    own = {field.name for field in dataclasses.fields(Config)}
    return {k: v for k, v in PRESETS[preset].items() if k in own}


def counts(obs, act, module=v3, **values):
    """Parameters of world model, actor and critic; builds no arrays."""
    agent = module.make_agent(config_of(module, **values), obs, act, precision="float32")
    modules = agent.parameters(jax.eval_shape(agent.init, KEY))
    actor, critic = modules.pop("pol"), modules.pop("val")
    return sum(modules.values()), actor, critic


ATARI_2023 = {
    "XS": (7_538_979, 329_734, 393_727),
    "S": (15_687_811, 1_053_702, 1_181_439),
    "M": (32_461_635, 2_137_606, 2_297_215),
    "L": (68_278_275, 4_139_526, 4_331_007),
    "XL": (181_558_659, 9_453_574, 9_708_799),
}
CARTPOLE_2023 = {"XS": 2_435_076, "S": 7_493_380, "M": 16_206_084, "L": 37_802_244, "XL": 108_353_796}


@pytest.mark.parametrize("size", ATARI_2023)
def test_the_sizes_of_2023_have_the_published_numbers_of_parameters(size):
    assert counts(IMAGE, BUTTONS, v3_2023, size=size) == ATARI_2023[size]
    # Published for layers that grow with the size (RLlib); in the code of 2023 they do not.
    world, _, critic = counts(*CARTPOLE, v3_2023, size=size, vector_units=0, vector_layers=0)
    assert world == CARTPOLE_2023[size]
    assert critic == ATARI_2023[size][2]


def test_layers_of_vectors_keep_their_width_in_2023():
    shapes = []
    for size in ("S", "XL"):
        agent = v3_2023.make_agent(v3_2023.Config(size=size), *CARTPOLE, precision="float32")
        state = jax.eval_shape(agent.init, KEY)
        shapes.append([linear.weight.shape for linear in state.model.enc.mlp.linears])
    assert shapes[0] == shapes[1] == [(4, 1024)] + 4 * [(1024, 1024)]


def test_the_paper_of_2023_differs_from_its_code_by_the_kernel_alone():
    code = counts(IMAGE, BUTTONS, v3_2023, size="S")
    paper = counts(IMAGE, BUTTONS, v3_2023, size="S", kernel=3)
    channels = [(3, 32), (32, 64), (64, 128), (128, 256), (256, 128), (128, 64), (64, 32), (32, 3)]
    assert code[0] - paper[0] == (16 - 9) * sum(i * o for i, o in channels)
    assert code[1:] == paper[1:]


@pytest.mark.parametrize("preset", ["v3-nature", "v3-repo", "v3-nature/atari100k", "v3-repo/crafter"])
def test_the_final_variants_have_the_published_number_of_parameters(preset):
    assert sum(counts(IMAGE, BUTTONS, **values(preset))) == 165_942_536


def test_the_final_control_presets_have_the_published_number_of_parameters():
    obs = {"obs": Space("vector", (24,))}
    act = {"action": Space("vector", (6,), low=(-1.0,) * 6, high=(1.0,) * 6)}
    assert sum(counts(obs, act, **values("v3-nature/dmc-proprio"))) == 9_738_019
    assert sum(counts(obs, act, **values("v3-repo/dmc-proprio"))) == 640_867


#              size  envs repeat ratio
PROTOCOL = {
    "v3-2023/atari100k": ("S", 1, 4, 1024),
    "v3-2023/atari200m": ("XL", 8, 4, 64),
    "v3-2023/dmc-proprio": ("S", 4, 2, 512),
    "v3-2023/dmc-vision": ("S", 4, 2, 512),
    "v3-2023/crafter": ("XL", 1, 1, 512),
    "v3-2023/small": ("S", 1, 1, 1024),
    "v3-nature/atari100k": ("200m", 1, 4, 128),
    "v3-nature/atari200m": ("200m", 16, 4, 32),
    "v3-nature/dmc-proprio": ("12m", 16, 2, 512),
    "v3-nature/dmc-vision": ("12m", 16, 2, 512),
    "v3-repo/atari100k": ("200m", 1, 4, 256),
    "v3-repo/atari200m": ("200m", 16, 4, 32),
    "v3-repo/dmc-proprio": ("1m", 16, 1, 1024),
    "v3-repo/dmc-vision": ("200m", 16, 1, 256),
    "v3-repo/crafter": ("200m", 1, 1, 512),
    "v3-repo/small": ("200m", 1, 1, 1024),
}


@pytest.mark.parametrize("preset", PROTOCOL)
def test_a_preset_is_the_published_protocol(preset):
    conf = config.default(paper(preset), preset)
    run = conf.run
    repeat = json.loads(run.env_kwargs).get("repeat", run.action_repeat)
    assert run.action_repeat in (1, repeat)  # of the env or of the runner, never of both
    assert (conf.agent.size, run.envs, repeat, run.replay_ratio) == PROTOCOL[preset]
    assert (run.batch, run.length) == (16, 64)
    assert run.replay_size == (1_000_000 if preset.startswith("v3-2023") else 5_000_000)


def test_every_variant_runs_every_benchmark_with_its_own_values():
    own = {f.name for f in dataclasses.fields(Config)}
    for variant in VARIANTS:
        for benchmark in BENCHMARKS:
            protocol = PRESETS[f"{variant}/{benchmark}"]
            # A protocol says how much and on what; the algorithm is the variant's, but for its size.
            assert {k for k in own & protocol.keys() if protocol[k] != PRESETS[variant].get(k)} <= {"size"}


def test_atari_is_what_each_variant_played():
    def options(preset):
        return json.loads(PRESETS[preset]["env_kwargs"])

    few = {"actions": "needed", "gray": False, "noops": 30, "repeat": 4, "size": 64, "sticky": 0.0}
    many = {"actions": "all", "gray": True, "noops": 30, "repeat": 4, "size": 96, "sticky": 0.25}
    assert all(options(f"{variant}/atari100k") == few for variant in VARIANTS)
    assert options("v3-nature/atari200m") == options("v3-repo/atari200m") == many
    assert options("v3-2023/atari200m") == many | {"gray": False, "noops": 0, "size": 64}


def test_every_size_has_a_flag():
    for size in SIZES:
        assert config.override(config.default("dreamer_v3"), size=size).agent.size == size


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kernel": 4}, "--choices: kernel must be 3 or 5 with convolutions pool"),
        ({"kernel": 7, "convolutions": "stride"}, "3 or 4 or 5 with convolutions stride"),
        ({"vector_layers": -1}, "--choices: vector_layers must be 0 or more"),
        ({"prior_layers": 0}, "--choices: prior_layers must be 1 or more"),
        ({"norm": "group"}, "--choices: norm is 'group' .*expected one of 'rms', 'layer'"),
        ({"choices": '{"nrom": "layer"}'}, "--choices has no 'nrom'; did you mean 'norm'"),
        ({"choices": "[1]"}, "--choices must be a JSON object"),
        ({"choices": "{"}, "--choices must be a JSON object"),
    ],
)
def test_values_that_cannot_be_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Config(**wrong) if "choices" in wrong else config_of(v3, **wrong)
