"""Training state besides weights and optimizer: a few integers and the data's fingerprint."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from dnabert_rm.data.batching import BatchPlan


@dataclass(frozen=True)
class TrainState:
    """State between two steps. `step` is the index of the next step, and so the number of completed steps."""

    step: int
    plan: BatchPlan
    fingerprint: str
    seed: int

    @property
    def consumed_samples(self) -> int:
        """Samples seen so far: the index of the next sample."""
        return self.plan.first_sample(self.step)

    def to_json(self) -> str:
        """Return the state as JSON text. `consumed_samples` is included for readers and is not read back."""
        return json.dumps({**asdict(self), "consumed_samples": self.consumed_samples}, indent=1) + "\n"

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> TrainState:
        """Return the state from the object that `to_json` writes. Raises KeyError or TypeError if it is malformed."""
        points = tuple((int(step), int(sample), int(batch)) for step, sample, batch in content["plan"]["points"])
        return cls(int(content["step"]), BatchPlan(points), str(content["fingerprint"]), int(content["seed"]))
