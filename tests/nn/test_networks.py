"""Small networks: applied alike in NumPy and torch, trained without leaving traces."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import skexit._nn._mini_batches
from skexit._nn._dense import DenseNetwork, weighted_scaling
from skexit._nn._mini_batches import Training, train

torch = pytest.importorskip("torch")

TRAINING = Training(learning_rate=0.05, l2=1e-3, max_epochs=30, batch_size=32)


def random_network(sizes, seed=0):
    rng = np.random.default_rng(seed)
    return DenseNetwork(
        tuple(rng.normal(size=size) for size in pairwise(sizes)), tuple(rng.normal(size=size) for size in sizes[1:])
    )


def torch_forward(network, inputs):
    """The same network, built from torch's own layers."""
    layers = []
    for weight, bias in zip(network.weights, network.biases, strict=True):
        layer = torch.nn.Linear(*weight.shape, dtype=torch.float64)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(weight.T))
            layer.bias.copy_(torch.from_numpy(bias))
        layers += [layer, torch.nn.ReLU()]
    with torch.no_grad():
        return torch.nn.Sequential(*layers[:-1])(torch.from_numpy(inputs)).numpy()


@pytest.mark.parametrize("sizes", [(3, 2), (4, 8, 3), (5, 6, 7, 1)], ids=str)
class TestDenseNetwork:
    def test_forward_is_torchs(self, sizes):
        network, inputs = random_network(sizes), np.random.default_rng(1).normal(size=(20, sizes[0]))
        np.testing.assert_allclose(network(inputs), torch_forward(network, inputs), rtol=1e-12)

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_torch_tensors_give_torch_tensors(self, sizes, dtype):
        network, inputs = random_network(sizes), np.random.default_rng(1).normal(size=(20, sizes[0])).astype(dtype)
        outputs = network(torch.from_numpy(inputs))
        assert outputs.dtype == getattr(torch, dtype)
        assert network(inputs).dtype == dtype
        np.testing.assert_allclose(outputs.numpy(), network(inputs), rtol=1e-4, atol=1e-5)

    def test_after_scaling(self, sizes):
        rng = np.random.default_rng(2)
        network, inputs = random_network(sizes), rng.normal(3, 5, size=(20, sizes[0]))
        mean, scale = rng.normal(size=sizes[0]), rng.uniform(0.1, 9, size=sizes[0])
        np.testing.assert_allclose(
            network.after_scaling(mean, scale)(inputs), network((inputs - mean) / scale), rtol=1e-9
        )

    def test_multiply_adds(self, sizes):
        assert random_network(sizes).n_multiply_adds == sum(a * b for a, b in pairwise(sizes))


class TestWeightedScaling:
    @given(
        weight=st.lists(st.integers(1, 5), min_size=2, max_size=30),
        batch_rows=st.integers(1, 31),
        offset=st.sampled_from([0.0, 1e6]),
    )
    def test_whole_weights_are_repeated_rows(self, weight, batch_rows, offset):
        values = offset + np.random.default_rng(0).normal(size=(len(weight), 3))
        weight = np.array(weight)
        parts = [slice(start, start + batch_rows) for start in range(0, len(weight), batch_rows)]
        mean, scale = weighted_scaling((values[part], weight[part].astype(float)) for part in parts)
        repeated = np.repeat(values, weight, axis=0)
        np.testing.assert_allclose(mean, repeated.mean(axis=0))
        np.testing.assert_allclose(scale, repeated.std(axis=0), rtol=1e-6)

    @pytest.mark.parametrize("value", [0.0, 0.1, -1e9])
    def test_a_constant_column_is_not_scaled(self, value):
        values = np.column_stack([np.full(1000, value), np.arange(1000.0)])
        mean, scale = weighted_scaling(iter([(values, np.random.default_rng(0).uniform(size=1000))]))
        assert mean[0] == pytest.approx(value)
        assert scale[0] == 1
        assert scale[1] > 100


def problem(n_samples=400, n_outputs=3, seed=0):
    """Classes by sectors of the plane, which no linear network separates; or the radius."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal([5, -100], [1, 50], size=(n_samples, 2))
    x, y = (inputs[:, 0] - 5), (inputs[:, 1] + 100) / 50
    targets = (x * y > 0).astype(int) + (np.hypot(x, y) > 1.5) if n_outputs > 1 else (x * y > 0).astype(float)
    return inputs, targets


def fit(inputs, targets, n_outputs=3, weight=None, hidden_layer_sizes=(16,), training=TRAINING, seed=0, **options):
    return train(
        lambda rows: inputs[rows],
        targets,
        np.ones(len(targets)) if weight is None else weight,
        hidden_layer_sizes=hidden_layer_sizes,
        n_outputs=n_outputs,
        training=training,
        random_state=np.random.RandomState(seed),
        **options,
    )


def assert_same(network, other):
    for mine, its in zip(network.weights + network.biases, other.weights + other.biases, strict=True):
        np.testing.assert_array_equal(mine, its)


class TestTrain:
    def test_learns_classes(self):
        network = fit(*problem())
        inputs, targets = problem(seed=1)
        assert np.mean(network(inputs).argmax(axis=1) == targets) > 0.85

    @pytest.mark.parametrize("early_stopping", [False, True])
    def test_learns_probabilities(self, early_stopping):
        training = Training(0.02, 1e-3, 30, 32, early_stopping)
        network = fit(*problem(n_outputs=1), n_outputs=1, training=training)
        inputs, targets = problem(n_outputs=1, seed=1)
        assert network(inputs).shape == (400, 1)
        assert np.mean((network(inputs)[:, 0] > 0) == targets) > 0.85

    def test_soft_targets_are_probabilities(self):
        """With nothing to see, a network says the mean of its targets."""
        inputs = np.random.default_rng(0).normal(size=(600, 1))
        targets = np.where(np.arange(600) % 2, 0.9, 0.3)
        network = fit(inputs, targets, n_outputs=1, hidden_layer_sizes=())
        probability = 1 / (1 + np.exp(-network(inputs)))
        assert probability.mean() == pytest.approx(0.6, abs=0.03)

    def test_weights_count_where_a_batch_is_one_row(self):
        """With 20 rows there are 20 steps in an epoch; the mean probability is the weighted share."""
        targets = np.tile([0, 1], 10)
        weight = np.where(targets == 1, 9.0, 1.0)
        training = Training(learning_rate=0.02, l2=0.0, max_epochs=100, batch_size=32)
        network = fit(np.zeros((20, 1)), targets, n_outputs=2, weight=weight, hidden_layer_sizes=(), training=training)
        odds = np.diff(network(np.zeros((1, 1)))[0])
        np.testing.assert_allclose(1 / (1 + np.exp(-odds)), 0.9, atol=0.02)

    def test_weights_are_heeded(self):
        inputs, targets = problem()
        wrong = np.arange(len(targets)) % 2 == 0
        weight = np.where(wrong, 1e-6, 1.0)
        network = fit(inputs, np.where(wrong, 2 - targets, targets), weight=weight)
        assert np.mean(network(inputs).argmax(axis=1) == targets) > 0.8

    def test_linear_network_reaches_the_optimum_of_logistic_regression(self):
        from sklearn.linear_model import LogisticRegression
        from sklearn.metrics import log_loss

        rng = np.random.default_rng(0)
        inputs = rng.normal(size=(500, 4))
        targets = (inputs @ rng.normal(size=(4, 3)) + rng.gumbel(size=(500, 3))).argmax(axis=1)
        network = fit(inputs, targets, hidden_layer_sizes=(), training=Training(0.05, 0, 60, 32))
        outputs = network(inputs)
        probabilities = np.exp(outputs) / np.exp(outputs).sum(axis=1, keepdims=True)
        best = log_loss(targets, LogisticRegression(C=np.inf).fit(inputs, targets).predict_proba(inputs))
        assert best - 1e-9 <= log_loss(targets, probabilities) <= best + 0.005

    @pytest.mark.parametrize("early_stopping", [False, True])
    def test_same_seed_same_network(self, early_stopping):
        training = Training(0.02, 1e-3, 3, 32, early_stopping)
        networks = [fit(*problem(), training=training, seed=seed) for seed in (7, 7, 8)]
        assert_same(networks[0], networks[1])
        assert not np.array_equal(networks[0].weights[0], networks[2].weights[0])

    def test_global_torch_state_neither_matters_nor_changes(self):
        torch.manual_seed(1)
        expected = fit(*problem())
        torch.manual_seed(2)
        state, n_threads = torch.get_rng_state(), torch.get_num_threads()
        assert_same(fit(*problem()), expected)
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.get_num_threads() == n_threads

    def test_number_of_threads_is_restored_after_an_error(self, monkeypatch):
        n_threads = torch.get_num_threads()
        monkeypatch.setattr(torch.optim.Adam, "step", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            fit(*problem())
        assert torch.get_num_threads() == n_threads

    def test_global_numpy_state_is_left_alone(self):
        before = np.random.get_state()[1].copy()  # noqa: NPY002
        fit(*problem())
        np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002

    @pytest.mark.parametrize("early_stopping", [False, True])
    def test_reading_batches_gives_the_same_as_memory(self, monkeypatch, early_stopping):
        training = Training(0.02, 1e-3, 3, 32, early_stopping)
        expected = fit(*problem(), training=training)
        monkeypatch.setattr(skexit._nn._mini_batches, "_IN_MEMORY_BYTES", 0)
        assert_same(fit(*problem(), training=training), expected)

    @pytest.mark.parametrize("n_samples", [1, 2, 9, 10, 33])
    @pytest.mark.parametrize("max_epochs", [1, 9])
    def test_few_rows(self, n_samples, max_epochs):
        inputs, targets = problem(n_samples)
        training = Training(0.02, 1e-3, max_epochs, 32, early_stopping=True)
        assert np.isfinite(fit(inputs, targets, training=training)(inputs)).all()

    @pytest.mark.slow
    def test_early_stopping_keeps_the_best_epoch(self):
        """Trained for long on noise, a network without it is far worse on new rows."""
        losses = []
        for early_stopping in (False, True):
            loss = 0.0
            for seed in range(3):
                rng = np.random.default_rng(seed)
                inputs, targets = rng.normal(size=(300, 5)), rng.integers(2, size=300).astype(float)
                network = fit(
                    inputs[:150],
                    targets[:150],
                    n_outputs=1,
                    hidden_layer_sizes=(64,),
                    training=Training(0.05, 0, 60, 32, early_stopping),
                    seed=seed,
                )
                outputs = network(inputs[150:])[:, 0]
                loss += np.mean(np.logaddexp(0, outputs) - targets[150:] * outputs)
            losses.append(loss / 3)
        # The loss of a guess is 0.69.
        assert losses[1] < 0.8
        assert losses[0] > 0.9

    def test_progress(self, capsys):
        fit(*problem(), description="head of exit 2")
        assert "head of exit 2" in capsys.readouterr().err
        fit(*problem())
        assert capsys.readouterr().err == ""
