"""JEI-DNN: inference modules and gates, trained together for a price of compute."""

from skexit.policies.jei._ensemble import JEIGatedEnsemble
from skexit.policies.jei._lambda_path import LambdaPath

__all__ = ["JEIGatedEnsemble", "LambdaPath"]
