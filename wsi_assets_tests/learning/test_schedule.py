import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_assets.learning import TrainingOptions
from wsi_assets.learning.schedule import FINAL_RATE, FIRST_STEPS, Schedule

STEPS = 40


def followed(losses, steps=STEPS, **options):
    """Rates by step, and the schedule, of a training with these validation losses (the last is repeated)."""
    schedule = Schedule(TrainingOptions(**options), steps)
    rates, restarts = [], []
    while not schedule.finished:
        for _ in range(steps):
            rates.append(schedule.rate)
            schedule.step += 1
        loss = losses[min(schedule.epoch, len(losses) - 1)]
        if schedule.end_epoch(loss):
            restarts.append(schedule.epoch)
    return rates, schedule, restarts


@given(
    losses=st.lists(st.floats(0, 1), min_size=1, max_size=30),
    steps=st.integers(1, 60),
    max_epochs=st.integers(1, 40),
    patience=st.integers(1, 4),
)
def test_every_training_warms_up_and_anneals_within_max_epochs(losses, steps, max_epochs, patience):
    rates, schedule, _ = followed(losses, steps, max_epochs=max_epochs, patience=patience)
    assert 1 <= schedule.epoch <= max_epochs
    assert rates[0] <= max(rates) <= 1
    assert rates[-1] <= FINAL_RATE * max(1.0, max(rates)) + 1e-9
    peak = rates.index(max(rates))
    assert all(b <= a + 1e-12 for a, b in zip(rates[peak:], rates[peak + 1 :], strict=False))
    assert schedule.best_epoch == 1 + losses_of(losses, schedule.epoch).index(
        min(losses_of(losses, schedule.epoch))
    )


def losses_of(losses, epochs):
    return [losses[min(i, len(losses) - 1)] for i in range(epochs)]


def test_patience_does_not_count_in_the_first_steps():
    # The loss never falls after the first epoch; ten epochs are the first steps.
    _, _, restarts = followed([0.1, 0.9])
    assert restarts[0] == FIRST_STEPS // STEPS + 2


def test_the_rate_falls_at_a_plateau_before_the_training_cools_down():
    rates, schedule, restarts = followed([0.5])
    assert len(restarts) == 2
    assert schedule.epoch < 50
    before, between = (rates[epoch * STEPS - 1] for epoch in restarts)
    assert before == 1
    assert 0.1 < between < 1


def test_a_training_that_goes_on_improving_cools_down_in_its_last_epochs():
    rates, schedule, _ = followed([1 / (i + 1) for i in range(50)])
    assert schedule.epoch == schedule.best_epoch == 50
    assert rates[38 * STEPS] == 1
    assert rates[45 * STEPS] < 0.6


@pytest.mark.parametrize("epochs_before", [1, 12, 15, 18])
def test_a_schedule_is_restored_from_its_state(epochs_before):
    losses = [0.5, 0.4, 0.45, 0.44, 0.43]
    whole, _, _ = followed(losses)
    schedule = Schedule(TrainingOptions(), STEPS)
    rates = []
    while not schedule.finished:
        if schedule.epoch == epochs_before:
            state = schedule.state()
            schedule = Schedule(TrainingOptions(), STEPS)
            schedule.restore(state)
        for _ in range(STEPS):
            rates.append(schedule.rate)
            schedule.step += 1
        schedule.end_epoch(losses[min(schedule.epoch, 4)])
    assert rates == whole
    assert math.isfinite(schedule.best_loss)
