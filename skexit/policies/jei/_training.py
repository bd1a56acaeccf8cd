"""Joint training of inference modules and gates (JEI-DNN, Algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from skexit._nn._dense import DenseNetwork, weighted_scaling
from skexit._nn._mini_batches import adam_groups, keep_in_memory, one_cycle
from skexit._nn._plain_torch import plain_torch
from skexit.data import ExitArray
from skexit.data._validation import read_features, read_logits
from skexit.policies.jei._gates import N_STATISTICS, balanced_weight, exit_probabilities, gate_statistics, gate_targets
from skexit.utils._threads import one_torch_thread

if TYPE_CHECKING:
    import torch

Floats = NDArray[np.float64]

#: Smallest number of steps in an epoch; batches are smaller if there are few rows.
_FEWEST_STEPS = 80


@dataclass(frozen=True)
class JointTraining:
    """Settings of `JointTrainer`: parameters of :class:`skexit.JEIGatedEnsemble`."""

    targets: str
    gate_reading: str
    gradient: str
    gate_class_weight: str | None
    learning_rate: float
    l2: float
    warm_up_epochs: int
    max_epochs: int
    early_stopping: bool
    patience: int
    batch_size: int
    bilevel_switch: int


class JointTrainer:
    """Trains inference modules and gates, with one copy of the modules per fold, and one more.

    Copy f is not trained on the rows of fold f. Its logits on these rows are used to train the gates and for early
    stopping, because modules look better than they are on rows that they were trained on. The last copy is trained on
    all rows; it is the copy that is kept. All copies share the gates.

    An exit that has logits keeps them, divided by its temperature. A linear module is trained at every other exit.
    """

    @plain_torch()
    def __init__(
        self,
        X: ExitArray,
        labels: NDArray[np.int64],
        weight: Floats,
        folds: NDArray[np.int64],
        *,
        temperatures: Floats,
        settings: JointTraining,
        random_state: np.random.RandomState,
        verbose: bool = False,
    ) -> None:
        import torch

        self.X, self.settings, self.random_state, self.verbose = X, settings, random_state, verbose
        self.temperatures, self.folds = temperatures, folds
        self.labels = torch.as_tensor(labels)
        self.weight = torch.as_tensor(weight / weight.mean(), dtype=torch.float32)
        self.n_copies = int(folds.max()) + 2
        self._learned = (self.weight * self._learns(folds)).mean(-1).clamp(min=1e-12)
        self.trained = [k for k in range(X.layout.n_exits) if not X.layout.has_logits(k)]
        self._scaling = {k: self._find_scaling(k, weight) for k in self.trained}
        self._widths = [X.layout.n_features[k] if k in self._scaling else X.layout.n_logits[k] for k in self._exits()]
        self._inputs = keep_in_memory(
            lambda rows: scaled_inputs(X, rows, self._scaling, temperatures), len(X), sum(self._widths)
        )
        self.modules = self._initial_modules()
        n_gates = X.layout.n_exits - 1
        #: Weights of each gate for the statistics of its exit, and biases.
        self.gates = [
            torch.zeros(size, dtype=torch.float32, requires_grad=True) for size in ((n_gates, N_STATISTICS), n_gates)
        ]
        self._warm_up()

    @plain_torch()
    @one_torch_thread()
    def fit(self, prices: Floats) -> int:
        """Train from the end of the warm-up or of the training for other prices; returns the number of epochs kept.

        Prices of the compute of each exit are in nats: λ times its cost as a fraction of the network's cost.
        """
        settings = self.settings
        step = self._bilevel_steps(prices)
        best, best_loss, best_epoch = self._state(), self.held_out_loss(prices), 0
        epochs = self._progress(f"price {prices[-1]:.3g}", settings.max_epochs)
        for epoch in epochs:
            for batch in self._batches():
                step(batch)
            held_out_loss = self.held_out_loss(prices)
            epochs.set_postfix(held_out_loss=f"{held_out_loss:.4f}")
            if held_out_loss < best_loss or not settings.early_stopping:
                best, best_loss, best_epoch = self._state(), held_out_loss, epoch + 1
            elif epoch + 1 - best_epoch >= settings.patience:
                break
        for tensor, value in zip(self._tensors(), best, strict=True):
            tensor.data.copy_(value)
        return best_epoch

    @plain_torch()
    def start_gates(self, gates: list[DenseNetwork]) -> None:
        """Start from gates that were fitted to the current modules."""
        import torch

        weights, biases = self.gates
        with torch.no_grad():
            for k, gate in enumerate(gates):
                weights[k] = torch.as_tensor(gate.weights[0][:, 0], dtype=torch.float32)
                biases[k] = float(gate.biases[0][0])

    def networks(self, copy: int = -1) -> list[DenseNetwork | None]:
        """Inference modules of the copy that was not trained on this fold, or of -1, which was trained on all rows.

        None for an exit that keeps its own logits.
        """
        networks: list[DenseNetwork | None] = [None] * self.X.layout.n_exits
        for k, (weights, biases) in self.modules.items():
            weight, bias = weights[copy].detach().numpy(), biases[copy, 0].detach().numpy()
            network = DenseNetwork((weight.astype(np.float64),), (bias.astype(np.float64),))
            networks[k] = network.after_scaling(*self._scaling[k])
        return networks

    def _find_scaling(self, k: int, weight: Floats) -> tuple[Floats, Floats]:
        batches = self.X.batches()
        return weighted_scaling((read_features(self.X, k, batch), weight[batch]) for batch in batches)

    def _exits(self) -> range:
        return range(self.X.layout.n_exits)

    def _initial_modules(self) -> dict[int, list[torch.Tensor]]:
        """Weights and biases of each exit's module, for each copy."""
        import torch

        n_classes, widths = cast(int, self.X.layout.n_classes), self.X.layout.n_features
        return {
            k: [
                torch.zeros(self.n_copies, widths[k], n_classes, dtype=torch.float32, requires_grad=True),
                torch.zeros(self.n_copies, 1, n_classes, dtype=torch.float32, requires_grad=True),
            ]
            for k in self.trained
        }

    def _logits(self, rows: NDArray[np.int64]) -> torch.Tensor:
        """Logits of every copy, of shape (n_copies, n_rows, n_exits, n_classes)."""
        import torch

        logits = []
        for k, block in enumerate(self._inputs(rows).split(self._widths, dim=1)):
            if k in self.modules:
                weights, biases = self.modules[k]
                logits.append(torch.baddbmm(biases, block.expand(self.n_copies, *block.shape), weights))
            else:
                logits.append(block.expand(self.n_copies, *block.shape))
        return torch.stack(logits, dim=2)

    def _held_out_logits(self, rows: NDArray[np.int64]) -> torch.Tensor:
        """Logits of each row from the copy that was not trained on it."""
        import torch

        with torch.no_grad():
            return self._logits(rows)[self.folds[rows], np.arange(len(rows))]

    def _gate_logits(self, logits: torch.Tensor) -> torch.Tensor:
        weights, biases = self.gates
        return (gate_statistics(logits[..., :-1, :]) * weights).sum(-1) + biases

    def _exit_probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        import torch

        gates = torch.sigmoid(self._gate_logits(logits))
        last = torch.ones_like(gates[..., :1])
        return exit_probabilities(torch.cat([gates, last], dim=-1), self.settings.gate_reading)

    def _copy_weight(self, rows: NDArray[np.int64]) -> torch.Tensor:
        """Weight of each row for each copy: 0 for the rows of its fold, and 1 on average over all rows.

        They are not normalised in a batch, because a batch may be a single row.
        """
        learns = self._learns(self.folds[rows])
        return self.weight[rows] * learns / self._learned[:, None]

    def _learns(self, folds: NDArray[np.int64]) -> torch.Tensor:
        """Which copies are trained on rows of these folds."""
        import torch

        return torch.as_tensor(np.arange(self.n_copies)[:, None] != folds)

    def _warm_up(self) -> None:
        """Train all modules on all rows; earlier modules have more to learn, and a higher learning rate (eq. 17)."""
        import torch

        settings, n_exits = self.settings, self.X.layout.n_exits
        groups = self._module_groups([settings.learning_rate * max(n_exits - 1 - k, 1) for k in self.trained])
        optimizer = torch.optim.Adam(groups, fused=True)
        rates = [group["lr"] for group in groups]
        schedule = one_cycle(optimizer, rates, settings.warm_up_epochs * self._n_batches())
        with one_torch_thread():
            for _ in self._progress("warm-up", settings.warm_up_epochs):
                for batch in self._batches():
                    optimizer.zero_grad()
                    losses = cross_entropies(self._logits(batch)[:, :, self.trained], self.labels[batch])
                    (losses.sum(-1) * self._copy_weight(batch)).mean(-1).sum().backward()
                    optimizer.step()
                    schedule.step()

    def _bilevel_steps(self, prices: Floats) -> Callable[[NDArray[np.int64]], None]:
        """Function that trains on one batch, the gates or the modules in turn."""
        import torch

        settings = self.settings
        rate = settings.learning_rate
        modules = torch.optim.Adam(self._module_groups([rate] * len(self.trained)), fused=True)
        gates = torch.optim.Adam(self.gates, lr=rate)
        turns = np.arange(settings.max_epochs * self._n_batches()) // settings.bilevel_switch % 2 == 0
        schedules = {
            True: one_cycle(gates, rate, int(turns.sum())),
            # At least one step, also if the modules are never trained: a schedule needs one.
            False: one_cycle(modules, rate, max(int((~turns).sum()), 1)),
        }
        remaining_turns = iter(turns.tolist())

        def step(batch: NDArray[np.int64]) -> None:
            trains_gates = next(remaining_turns)
            optimizer = gates if trains_gates else modules
            if trains_gates:
                loss = self._gate_loss(batch, prices)
            else:
                loss, shares = self._module_loss(batch, prices)
                self._scale_penalties(modules, shares)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedules[trains_gates].step()

        return step

    def _module_loss(self, batch: NDArray[np.int64], prices: Floats) -> tuple[torch.Tensor, torch.Tensor]:
        """Eq. 6 for each copy, summed, and the share of the samples at each exit.

        Its gradient is the left term of eq. 14, and with ``gradient="full"`` also the right term.
        """
        logits = self._logits(batch)
        seen_by_gates = logits if self.settings.gradient == "full" else logits.detach()
        probabilities = self._exit_probabilities(seen_by_gates)
        losses = self._sample_losses(logits, probabilities, batch, prices)
        loss = (losses * self._copy_weight(batch)).mean(-1).sum()
        return loss, (probabilities[-1].detach() * self.weight[batch][:, None]).mean(0)

    def _sample_losses(
        self, logits: torch.Tensor, probabilities: torch.Tensor, rows: NDArray[np.int64], prices: Floats
    ) -> torch.Tensor:
        """Loss of each sample, of shape (..., n_rows), for logits and exit probabilities."""
        losses = cross_entropies(logits, self.labels[rows])
        return expected_losses(losses, probabilities, logits.new_tensor(prices))

    def _scale_penalties(self, optimizer: torch.optim.Optimizer, shares: torch.Tensor) -> None:
        """Multiply penalties by shares: if few samples leave, the loss is small, and must not be outweighed."""
        for k, group in zip(self.trained, optimizer.param_groups[: len(self.trained)], strict=True):
            group["weight_decay"] = self.settings.l2 * float(shares[k])

    def _gate_loss(self, batch: NDArray[np.int64], prices: Floats) -> torch.Tensor:
        import torch

        logits = self._held_out_logits(batch)
        costs = cross_entropies(logits, self.labels[batch]).double().numpy() + prices
        targets = torch.as_tensor(gate_targets(costs, self.settings.targets), dtype=torch.float32)
        weight = self.weight[batch][:, None].expand(targets.shape)
        if self.settings.gate_class_weight == "balanced":
            weight = torch.as_tensor(balanced_weight(targets.numpy(), weight.numpy()), dtype=torch.float32)
        return gate_loss(self._gate_logits(logits), targets, weight)

    def held_out_loss(self, prices: Floats) -> float:
        """Mean loss of a sample, by modules that were not trained on it."""
        import torch

        total = 0.0
        with torch.no_grad():
            for batch in self.X.batches():
                rows = np.arange(batch.start, batch.stop)
                logits = self._held_out_logits(rows)
                losses = self._sample_losses(logits, self._exit_probabilities(logits), rows, prices)
                total += float((losses * self.weight[rows]).sum())
        return total / float(self.weight.sum())

    def _module_groups(self, rates: list[float]) -> list[dict[str, Any]]:
        """Parameter groups: the weights of each module, with a penalty, then the biases, without a penalty."""
        groups = [adam_groups([weights], [biases], self.settings.l2) for weights, biases in self.modules.values()]
        return [
            {**group, "lr": rate}
            for groups_of_kind in zip(*groups, strict=True)
            for group, rate in zip(groups_of_kind, rates, strict=True)
        ]

    def _n_batches(self) -> int:
        return max(-(-len(self.X) // self.settings.batch_size), min(_FEWEST_STEPS, len(self.X)))

    def _batches(self) -> list[NDArray[np.int64]]:
        return np.array_split(self.random_state.permutation(len(self.X)), self._n_batches())

    def _progress(self, description: str, n_epochs: int) -> Any:
        return tqdm(range(n_epochs), desc=description, unit="epoch", disable=not self.verbose, leave=False)

    def _state(self) -> list[torch.Tensor]:
        return [tensor.detach().clone() for tensor in self._tensors()]

    def _tensors(self) -> list[torch.Tensor]:
        return [*(tensor for module in self.modules.values() for tensor in module), *self.gates]


def cross_entropies(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy at each exit, of shape (..., n_samples, n_exits)."""
    import torch

    log_probabilities = torch.log_softmax(logits, dim=-1)
    index = labels[:, None, None].expand(*logits.shape[:-1], 1)
    return -log_probabilities.gather(-1, index)[..., 0]


def expected_losses(losses: torch.Tensor, probabilities: torch.Tensor, prices: torch.Tensor) -> torch.Tensor:
    """Expected loss of each sample over the exits (JEI-DNN, eq. 6); the price of an exit is λ times its cost."""
    return ((losses + prices) * probabilities).sum(-1)


def gate_loss(gate_logits: torch.Tensor, targets: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Sum over the gates of the mean binary cross-entropy (JEI-DNN, eq. 16).

    The weights are 1 on average over all rows.
    """
    from torch.nn import functional

    losses = functional.binary_cross_entropy_with_logits(gate_logits, targets, reduction="none")
    return (losses * weight).mean(0).sum()


def scaled_inputs(
    X: ExitArray, rows: NDArray[np.int64], scaling: dict[int, tuple[NDArray[Any], NDArray[Any]]], temperatures: Any
) -> torch.Tensor:
    """Inputs side by side: features, standardised by `scaling`, or for other exits logits divided by temperatures."""
    import torch

    blocks = []
    for k in range(X.layout.n_exits):
        if k in scaling:
            mean, scale = scaling[k]
            blocks.append((read_features(X, k, rows) - mean) / scale)
        else:
            blocks.append(cast(Any, read_logits(X, k, rows)) / temperatures[k])
    return torch.as_tensor(np.concatenate(blocks, axis=1), dtype=torch.float32)
