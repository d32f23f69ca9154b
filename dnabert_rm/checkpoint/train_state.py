"""What a run has to remember besides weights and optimizer: a few integers and the data's fingerprint."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from dnabert_rm.data.batching import BatchPlan


@dataclass(frozen=True)
class TrainState:
    """The state between two steps; `step` is the next step, which is also the number of steps done."""

    step: int
    plan: BatchPlan
    fingerprint: str
    seed: int

    @property
    def consumed_samples(self) -> int:
        """Samples seen so far: the index of the next sample."""
        return self.plan.first_sample(self.step)

    def to_json(self) -> str:
        """The state as JSON text, with `consumed_samples` for people who look."""
        return json.dumps({**asdict(self), "consumed_samples": self.consumed_samples}, indent=1) + "\n"

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> TrainState:
        """The state from `to_json`'s object; KeyError or TypeError where it is not one."""
        points = tuple((int(step), int(sample), int(batch)) for step, sample, batch in content["plan"]["points"])
        return cls(int(content["step"]), BatchPlan(points), str(content["fingerprint"]), int(content["seed"]))
