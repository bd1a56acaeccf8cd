"""Heads are the same for any number of threads of torch."""

import numpy as np
import pytest

from skexit import ExitHeads, stack_exits

torch = pytest.importorskip("torch")


@pytest.fixture(autouse=True)
def restored_number():
    found = torch.get_num_threads()
    yield
    torch.set_num_threads(found)


def make_rows(n_samples=150):
    rng = np.random.default_rng(0)
    y = rng.integers(3, size=n_samples)
    return stack_exits(features=[rng.normal(size=(n_samples, 4)) + y[:, None] * shift for shift in (0.3, 1)]), y


@pytest.mark.parametrize("make_state", [lambda: 0, lambda: np.random.RandomState(3)], ids=["number", "RandomState"])
@pytest.mark.parametrize(
    "heads",
    [
        ExitHeads((5,), cascade=True, dropout="auto", max_epochs=3, cv=4),
        ExitHeads((5,), training="boosted", max_epochs=3, cv=2, distillation=0.5, temperature_scaling=True),
        ExitHeads(cv=3),
    ],
    ids=["cascade", "boosted", "linear"],
)
def test_same_for_any_number_of_threads(heads, make_state):
    X, y = make_rows()
    results = []
    for n_threads in (1, 3):
        torch.set_num_threads(n_threads)
        heads.set_params(random_state=make_state())
        results.append((np.asarray(heads.fit_transform(X, y)), np.asarray(heads.transform(X))))
        assert torch.get_num_threads() == n_threads
    for one_thread, several in zip(*results, strict=True):
        np.testing.assert_allclose(one_thread, several, rtol=1e-5, atol=1e-6)


def test_a_random_state_goes_on():
    X, y = make_rows()
    heads = ExitHeads((5,), max_epochs=1, cv=2, random_state=np.random.RandomState(0))
    assert not np.array_equal(heads.fit(X, y).transform(X), heads.fit(X, y).transform(X))
    assert isinstance(heads.random_state, np.random.RandomState)
