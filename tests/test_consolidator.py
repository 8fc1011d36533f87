"""When to consolidate: at boundaries, every N steps, or on plateaus of the task's loss."""

import numpy as np
import pytest
from atlasd.model.consolidator import Consolidator, consolidator_of


def fired(consolidator, losses):
    """The steps (from 1) at which it says: now."""
    return [step for step, loss in enumerate(losses, 1) if consolidator.observe(float(loss))]


def falls(n, start=2.0, end=0.5):
    return end + (start - end) * np.exp(-np.arange(n) / 8)


def test_the_oracle_never_speaks():
    assert fired(Consolidator("oracle"), falls(500)) == []


def test_every_n_steps_is_every_n_steps():
    assert fired(Consolidator("every", every=7), np.ones(30)) == [7, 14, 21, 28]


def test_it_waits_until_the_loss_lies_still():
    (first,) = fired(Consolidator("plateau", most=1000), falls(120))
    assert 25 <= first <= 80
    assert falls(120)[first - 1] < 0.55


def test_it_speaks_once_until_the_loss_has_risen_again():
    still = [*falls(100), *np.full(90, 0.5)]
    consolidator = Consolidator("plateau", most=1000)
    assert len(fired(consolidator, still)) == 1
    again = fired(consolidator, [*np.full(10, 0.7), *falls(100, 0.7)])
    assert len(again) == 1


def test_a_noisy_loss_that_never_lies_still_is_consolidated_in_time():
    rng = np.random.default_rng(0)
    noisy = 1 + 0.4 * rng.standard_normal(450).clip(-2, 2)
    assert fired(Consolidator("plateau", most=200), noisy) == [200, 400]


def test_a_bad_state_is_vetoed_for_a_while_and_not_for_ever():
    """After a shift the loss may stay high: then that is what there is to keep."""
    consolidator = Consolidator("plateau", most=50)
    assert fired(consolidator, np.full(25, 0.5)) == [25]
    assert fired(consolidator, np.full(99, 2.0)) == []
    assert consolidator.lifted == 0
    assert fired(consolidator, np.full(100, 2.0)) == [1, 51]
    assert consolidator.lifted == 1


@pytest.mark.parametrize("rule", ["every", "plateau"])
@pytest.mark.parametrize("stop", [3, 30, 77])
def test_it_goes_on_where_it_was(rule, stop):
    losses = [*falls(90), *falls(90, 3.0)]
    whole = fired(Consolidator(rule, every=11), losses)
    one, two = Consolidator(rule, every=11), Consolidator(rule, every=11)
    before = fired(one, losses[:stop])
    two.load_state_dict(one.state_dict())
    assert before + [stop + step for step in fired(two, losses[stop:])] == whole


@pytest.mark.parametrize(
    "told", [{"rule": "never"}, {"every": 0}, {"window": 1}, {"window": 30}, {"most": 10}]
)
def test_rules_that_cannot_be_are_refused(told):
    with pytest.raises(ValueError, match=r"allowed are|must be"):
        Consolidator(**({"rule": "plateau"} | told))


@pytest.mark.parametrize(
    ("rule", "first"), [("plateau", 25), ("plateau:5:5", 5), ("plateau:5:10", 10), ("every:3", 3)]
)
def test_a_rule_in_words(rule, first):
    assert fired(consolidator_of(rule), np.full(30, 0.5))[0] == first


@pytest.mark.parametrize(
    "rule",
    [
        "",
        "never",
        "oracle:1",
        "every",
        "every:0",
        "every:x",
        "plateau:5",
        "plateau:9:5",
        "plateau::5",
    ],
)
def test_no_rule_is_refused(rule):
    with pytest.raises(ValueError, match=r"allowed are oracle|must be at least 1|window <= least"):
        consolidator_of(rule)
