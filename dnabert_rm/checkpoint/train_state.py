"""Training state besides weights and optimizer: a few integers and the data's fingerprint."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from dnabert_rm.data.batching import BatchPlan


@dataclass(frozen=True)
class TrainState:
    """State between two steps. `step` is both the index of the next step and the number of completed steps."""

    step: int
    plan: BatchPlan
    fingerprint: str
    seed: int

    @property
    def consumed_samples(self) -> int:
        """Number of samples used so far, which is also the index of the next sample."""
        return self.plan.first_sample(self.step)

    def to_json(self) -> str:
        """Return the state as JSON text. `consumed_samples` is added for human readers, and `from_dict` ignores it."""
        return json.dumps({**asdict(self), "consumed_samples": self.consumed_samples}, indent=1) + "\n"

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> TrainState:
        """Return the state from the parsed JSON of `to_json`.

        Raises KeyError, TypeError, ValueError or AssertionError if the content is malformed.
        """
        points = tuple((int(step), int(sample), int(batch)) for step, sample, batch in content["plan"]["points"])
        return cls(int(content["step"]), BatchPlan(points), str(content["fingerprint"]), int(content["seed"]))
