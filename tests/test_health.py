"""Collapse is told once, late enough, and again only after it was over."""

import pytest

from reverie.health import Watch, constant_reward, kl_at_floor, policy_certain, policy_random

WELL = {"loss/dynamics": 1.02, "policy/randomness/a": 0.05, "reward/error": 0.1, "reward/variance": 1.0}
ILL = {
    "kl_at_floor": {"loss/dynamics": 1.0},
    "policy_certain/a": {"policy/randomness/a": 0.0},
    "policy_random/a": {"policy/randomness/a": 1.0},
    "constant_reward": {"reward/error": 1.0},
}


def watch() -> Watch:
    symptoms = (kl_at_floor(1.0), policy_certain("a"), policy_random("a"), constant_reward())
    return Watch(symptoms, grace=100, patience=200)


def names(watch: Watch, updates: int, **values: float | None) -> list[str]:
    return [s.name for s in watch.look(WELL | {"updates": updates} | values)]


@pytest.mark.parametrize("name", ILL)
def test_what_lasts_is_told_once(name):
    doctor = watch()
    told = [(updates, found) for updates in range(0, 1000, 50) for found in names(doctor, updates, **ILL[name])]
    assert told == [(300, name)]  # counted from the grace on
    assert doctor.figures()[f"health/{name}"] == 1
    assert sum(doctor.figures().values()) == 1


def test_a_healthy_run_hears_nothing():
    doctor = watch()
    assert not any(names(doctor, updates) for updates in range(0, 5000, 50))
    assert not any(doctor.figures().values())


def test_a_moment_of_health_is_no_recovery():
    doctor = watch()
    ill = ILL["kl_at_floor"]
    assert not any(names(doctor, updates, **ill) for updates in (100, 150, 250))
    assert not names(doctor, 300)
    assert names(doctor, 400, **ill) == ["kl_at_floor"]
    assert not names(doctor, 450)
    assert doctor.figures()["health/kl_at_floor"] == 1
    assert not names(doctor, 500, **ill), "it was told"


def test_what_was_gone_for_as_long_is_told_anew():
    doctor = watch()
    ill = ILL["kl_at_floor"]
    assert not any(names(doctor, updates, **ill) for updates in (100, 200))
    assert names(doctor, 300, **ill) == ["kl_at_floor"]
    assert not any(names(doctor, updates) for updates in (400, 500))
    assert not any(doctor.figures().values())
    assert not names(doctor, 600, **ill)
    assert names(doctor, 700, **ill) == ["kl_at_floor"]


def test_one_long_record_tells_nothing_nor_does_one_that_began_in_the_grace():
    doctor = watch()
    ill = ILL["kl_at_floor"]
    assert not any(names(doctor, updates, **ill) for updates in (1000, 2000))
    assert names(doctor, 3000, **ill) == ["kl_at_floor"]
    assert not names(doctor, 4000)
    assert doctor.figures()["health/kl_at_floor"] == 1


def test_the_collapse_of_a_run_that_looked_well_in_between_is_told():
    """DreamerV2 on Catch, seed 1, without free nats: latents that say nothing (results/notes.json)."""
    doctor = Watch((kl_at_floor(0.0),))
    run = {988: 0.0074, 1238: 0.0057, 1488: 0.0049, 1738: 0.0047, 1815: 0.0056, 1988: 0.3238}
    run |= {2238: 0.0078, 2488: 0.0036, 2738: 0.0023, 2988: 0.0017}
    told = [u for u, kl in run.items() if doctor.look({"updates": u, "loss/dynamics": kl})]
    assert told == [2738]


def test_what_cannot_be_told_neither_counts_nor_heals():
    doctor = watch()
    assert not any(names(doctor, updates, **ILL["constant_reward"]) for updates in (100, 250))
    assert not names(doctor, 350, **{"reward/variance": 0.0})  # a window without any reward
    assert not names(doctor, 400, **{"reward/error": None})  # not finite
    assert not names(doctor, 450, **ILL["constant_reward"])
    assert names(doctor, 500, **ILL["constant_reward"]) == ["constant_reward"]
    assert not doctor.look({"eval/mean_return": 1.0})  # a record without updates


def test_without_free_nats_the_floor_is_zero():
    collapse = kl_at_floor(0.0)
    assert collapse.shows({"loss/dynamics": 0.005})
    assert not collapse.shows({"loss/dynamics": 0.1})
    assert "raise --free-nats" in collapse.advice
    assert "lower --free-nats" in kl_at_floor(1.0).advice
