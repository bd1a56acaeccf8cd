"""EENet's networks for exit utilities and assignments: inputs, targets, losses and training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.utils import gen_batches

from skexit._nn._dense import DenseNetwork, build, to_dense, torch_generator
from skexit._nn._mini_batches import ReadRows, Training, enough_in_order, keep_in_memory, minimize, scaling, split_rows
from skexit._nn._plain_torch import plain_torch
from skexit.policies._quotas import tilted_distribution
from skexit.uncertainty import max_probability, softmax
from skexit.uncertainty._scores import sum_of_plogp
from skexit.utils._array_api import array_namespace
from skexit.utils._threads import one_torch_thread

if TYPE_CHECKING:
    import torch

Floats = NDArray[np.float64]

#: Smallest share of an exit to which no sample is assigned, so that its logarithm is finite.
SMALLEST_SHARE = 1e-6

#: Smallest divisor of the survival weights, for an exit that no sample reaches.
_SMALLEST_MASS = 1e-12

_N_CONFIDENCES = 3
#: With more classes, networks would have millions of weights; they then see only so many of the largest probabilities.
_MOST_CLASSES, _N_LARGEST = 1000, 100
_NEGATIVE_SLOPE = 0.01
#: The hidden unit that starts as the confidence is shifted by this many standard deviations, so that
#: most rows are on the linear part of the leaky rectifier.
_SHIFT = 3.0
#: With a smaller or a negative slope, utilities would not have the order of the confidences.
_SMALLEST_SLOPE = 0.01
#: With fewer held-out rows, the choice of the epoch would depend on chance.
_FEWEST_HELD_OUT = 20


def exit_inputs(logits: Any, votes: Any, utilities: Any = None) -> Any:
    """Inputs of the network of an exit (EENet, eq. 5-8), of which some are shifted and scaled.

    They are the class probabilities, or with more than 1,000 classes the 100 largest in falling order; the largest
    probability, minus the entropy, the number of votes for the most frequent class, and `utility_input` of earlier
    exits, of shape (n_samples, k). The votes, of shape (n_samples, n_classes), are the numbers of exits up to this one
    that predict each class.

    In the paper, the entropy and the votes are divided by their largest values. Here inputs are standardised in
    training, and the weights of the first layer then include the scale.
    """
    xp = array_namespace(logits)
    probabilities = softmax(logits)
    confidences = [max_probability(probabilities), sum_of_plogp(probabilities), xp.max(votes, axis=-1)]
    if probabilities.shape[1] > _MOST_CLASSES:
        probabilities = xp.sort(probabilities, axis=1, descending=True)[:, :_N_LARGEST]
    columns = [confidence[:, None] for confidence in confidences]
    return xp.concat([probabilities, *columns, *([] if utilities is None else [utilities])], axis=1)


def utility_input(utility: Any) -> Any:
    """Input of later networks for a utility u, from its log-odds: ``2 u - 1``, which is between -1 and 1."""
    return array_namespace(utility).tanh(utility / 2)


def assignment_targets(correct: NDArray[np.bool_]) -> Floats:
    """Exits to which a sample should be assigned (EENet, eq. 4): the correct exits, or all if none is correct.

    >>> import numpy as np
    >>> assignment_targets(np.array([[False, True, True], [False, False, False]])).round(2)
    array([[0.  , 0.5 , 0.5 ],
           [0.33, 0.33, 0.33]])
    """
    eligible = np.where(correct.any(axis=1, keepdims=True), correct, True)
    return eligible / eligible.sum(axis=1, keepdims=True)


def survival_weights(assignment: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Weight of each sample at each exit: the probability of reaching the exit (EENet, eq. 13).

    The weights sum to one over the samples, and have no gradient.
    """
    # A sum from the last exit to the first: one minus a sum from the first could be below zero.
    survival = assignment.detach().flip(1).cumsum(1).flip(1) * weight[:, None]
    return survival / survival.sum(0).clamp_min(_SMALLEST_MASS)


def utility_loss(utility_logits: torch.Tensor, correct: torch.Tensor, survival: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of utilities and correctness, weighted by survival (EENet, eq. 11 and 12).

    In the paper, the minus sign of eq. 12 is missing.
    """
    from torch.nn.functional import binary_cross_entropy_with_logits

    losses = binary_cross_entropy_with_logits(utility_logits, correct, reduction="none")
    return (survival * losses).sum() / correct.shape[1]


def budget_loss(assignment: torch.Tensor, costs: torch.Tensor, budget: float, weight: torch.Tensor) -> torch.Tensor:
    """Difference of the mean cost of the assignments and the budget, relative to the budget (EENet, eq. 14)."""
    mean_cost = weight @ (assignment @ costs) / weight.sum()
    return (budget - mean_cost).abs() / budget


def assignment_loss(log_assignment: torch.Tensor, targets: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the assignments and their targets (EENet, eq. 15)."""
    return -(weight @ (log_assignment * targets).sum(1)) / (weight.sum() * targets.shape[1])


@dataclass(frozen=True)
class SchedulerLoss:
    """The three losses of EENet's scheduler; budget and cumulative costs are fractions of the network's cost.

    The weights of the budget loss and of the assignment loss are α and β in the paper.
    """

    costs: Floats
    budget: float
    budget_loss_weight: float
    assignment_loss_weight: float

    def parts(
        self,
        utility_logits: torch.Tensor,
        log_assignment: torch.Tensor,
        correct: torch.Tensor,
        targets: torch.Tensor,
        weight: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """Losses of utility, budget and assignment, from values of shape (n_samples, n_exits)."""
        assignment = log_assignment.exp()
        return {
            "utility": utility_loss(utility_logits, correct, survival_weights(assignment, weight)),
            "budget": budget_loss(assignment, weight.new_tensor(self.costs), self.budget, weight),
            "assignment": assignment_loss(log_assignment, targets, weight),
        }

    def total(self, parts: dict[str, torch.Tensor]) -> torch.Tensor:
        """The loss that is minimised."""
        return (
            parts["utility"]
            + self.budget_loss_weight * parts["budget"]
            + self.assignment_loss_weight * parts["assignment"]
        )


def build_scheduler(
    n_exits: int, n_inputs: int, hidden_ratio: float, fewest_hidden: int, generator: torch.Generator
) -> list[torch.nn.Sequential]:
    """Networks with random weights, one per exit, for the logits of utility and assignment (EENet, eq. 8-10).

    The network of exit k, counted from 0, has `n_inputs` inputs and k utilities of earlier exits. `hidden_ratio` is the
    number of hidden units per input.
    """
    sizes = [(n_inputs + k, max(fewest_hidden, round(hidden_ratio * (n_inputs + k))), 2) for k in range(n_exits)]
    return [build(size, generator, _NEGATIVE_SLOPE) for size in sizes]


def apply_scheduler(models: Sequence[torch.nn.Sequential], inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of utility and logarithms of assignment; the utilities of each exit are inputs of later exits.

    The inputs, of shape (n_samples, n_exits, n_inputs), are standardised.
    """
    import torch

    utilities = inputs.new_empty((len(inputs), 0))
    outputs = []
    for k, model in enumerate(models):
        outputs.append(model(torch.cat([inputs[:, k], utilities], dim=1)))
        utilities = torch.cat([utilities, utility_input(outputs[k][:, :1])], dim=1)
    utility_logits, assignment_logits = torch.stack(outputs, dim=1).unbind(2)
    return utility_logits, assignment_logits.log_softmax(1)


def start_at_confidence(
    models: Sequence[torch.nn.Sequential],
    confidences: Floats,
    correct: NDArray[np.bool_],
    sample_weight: Floats,
    shares: Floats,
) -> None:
    """Set weights so that utilities have the order of the largest probability, and assignments have given shares.

    At each exit, the first hidden unit becomes the largest probability. The utility starts as the logistic regression
    of correctness on it, and the assignment as the logarithm of the share. The other hidden units keep their random
    weights, but start without influence. The confidences, of shape (n_samples, n_exits), are standardised.
    """
    import torch

    with torch.no_grad():
        for k, model in enumerate(models):
            hidden, _, output = cast(Any, model)
            slope, intercept = _logistic_regression(confidences[:, k], correct[:, k], sample_weight)
            hidden.weight[0] = 0
            hidden.weight[0, hidden.in_features - k - _N_CONFIDENCES] = 1
            hidden.bias[0] = _SHIFT
            output.weight.zero_()
            output.weight[0, 0] = slope
            output.bias[0] = intercept - _SHIFT * slope
            output.bias[1] = float(np.log(max(shares[k], SMALLEST_SHARE)))


def _logistic_regression(confidence: Floats, correct: NDArray[np.bool_], sample_weight: Floats) -> tuple[float, float]:
    # Two more rows, one correct with a high confidence, one wrong with a low confidence: with them, no exit
    # is always correct or always wrong.
    confidence, correct = np.append(confidence, [1, -1]), np.append(correct, [True, False])
    weight = np.append(sample_weight / sample_weight.mean(), [1, 1])
    fitted = LogisticRegression().fit(confidence[:, None], correct, weight)
    return max(float(fitted.coef_[0, 0]), _SMALLEST_SLOPE), float(fitted.intercept_[0])


@plain_torch()
def train_scheduler(
    read: ReadRows,
    correct: NDArray[np.bool_],
    sample_weight: Floats,
    loss: SchedulerLoss,
    *,
    n_classes: int,
    hidden_ratio: float,
    from_confidence: bool,
    training: Training,
    random_state: np.random.RandomState,
    groups: NDArray[np.int64] | None = None,
    description: str | None = None,
) -> tuple[list[DenseNetwork], Floats, dict[str, float], int]:
    """Learn utilities and assignments; returns networks, mean assignment and losses of all rows, and number of epochs.

    The network of each exit takes `exit_inputs` and the utilities of earlier exits, and gives the logits of utility and
    assignment. The number of epochs is that of the best networks; 0 if they were best at the start.

    `read` takes row numbers and returns the `exit_inputs` of all exits side by side. With `from_confidence`, networks
    start with `start_at_confidence` and geometric shares, otherwise with random weights. Early stopping holds out no
    rows if these would be fewer than 20.
    """
    import torch

    n_samples, n_exits = correct.shape
    n_inputs = (n_classes if n_classes <= _MOST_CLASSES else _N_LARGEST) + _N_CONFIDENCES
    rows, held_out = split_rows(n_samples, training, random_state, groups, fewest_held_out=_FEWEST_HELD_OUT)
    mean, scale = scaling(read, rows, training.batch_size)
    generator = torch_generator(random_state)
    models = build_scheduler(n_exits, n_inputs, hidden_ratio, 2 if from_confidence else 1, generator)
    targets = assignment_targets(correct)

    def read_scaled(batch: NDArray[np.int64]) -> torch.Tensor:
        inputs = torch.as_tensor((read(batch) - mean) / scale, dtype=torch.float32)
        return inputs.view(len(batch), n_exits, n_inputs)

    read_inputs = keep_in_memory(read_scaled, n_samples, len(mean))

    def parts(outputs: tuple[torch.Tensor, torch.Tensor], batch: NDArray[np.int64]) -> dict[str, torch.Tensor]:
        known = [torch.as_tensor(value[batch], dtype=outputs[0].dtype) for value in (correct, targets, sample_weight)]
        return loss.parts(*outputs, *known)

    # Results of batches are written into memory that is allocated before. New arrays would lie between the temporary
    # arrays of the batches, and keep their memory from being used again: gigabytes with 13 GB of logits.
    if from_confidence:
        in_order = enough_in_order(rows)
        confidences = np.empty((len(in_order), n_exits))
        for own in gen_batches(len(in_order), training.batch_size):
            confidences[own] = read_inputs(in_order[own])[:, :, -_N_CONFIDENCES]
        shares = tilted_distribution(np.zeros(n_exits), np.arange(n_exits, dtype=float), loss.costs, loss.budget)
        start_at_confidence(models, confidences, correct[in_order], sample_weight[in_order], shares)
    n_epochs = minimize(
        lambda batch: loss.total(parts(apply_scheduler(models, read_inputs(batch)), batch)),
        [parameter for model in models for parameter in model.parameters()],
        rows,
        held_out,
        sample_weight,
        training=training,
        random_state=random_state,
        description=description,
    )
    # In double precision, because means are over all rows.
    utility_logits, log_assignment = torch.empty(2, n_samples, n_exits, dtype=torch.float64)
    all_rows = np.arange(n_samples)
    with torch.no_grad(), one_torch_thread():
        for own in gen_batches(n_samples, training.batch_size):
            utility_logits[own], log_assignment[own] = apply_scheduler(models, read_inputs(all_rows[own]))
        final = parts((utility_logits, log_assignment), all_rows)
    return (
        scheduler_networks(models, mean, scale),
        np.average(log_assignment.exp().numpy(), axis=0, weights=sample_weight),
        {name: part.item() for name, part in final.items()},
        n_epochs,
    )


def scheduler_networks(models: Sequence[torch.nn.Sequential], mean: Floats, scale: Floats) -> list[DenseNetwork]:
    """The networks without torch, for inputs that are not standardised."""
    n_exits = len(models)
    means, scales = mean.reshape(n_exits, -1), scale.reshape(n_exits, -1)
    # The inputs for utilities are not standardised.
    return [
        to_dense(model).after_scaling(np.append(means[k], np.zeros(k)), np.append(scales[k], np.ones(k)))
        for k, model in enumerate(models)
    ]
