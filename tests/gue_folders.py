"""Input folders of GUE data sets, and output folders of `dnabert-rm gue` without training."""

import json

from dnabert_rm.evaluate.suite import load_suite
from dnabert_rm.evaluate.suite_runs import resolve_settings

GUE = load_suite("gue")


def make_sets(root, **splits):
    """Write data sets with two rows per table: `mouse__0="train test"` writes mouse/0/train.csv and test.csv."""
    for name, which in splits.items():
        folder = root / name.replace("__", "/")
        folder.mkdir(parents=True)
        for split in which.split():
            (folder / f"{split}.csv").write_text(f"sequence,label\n{'ACGT' * 3},0\n{'TTGA' * 3},1\n")
    return root


def write_run(output, name, arm, seed, value, stand_in=False, shared=0, suite=GUE):
    """Write a finished run whose metric is `value`; its other metrics must not appear in a table."""
    folder = output / "runs" / name / arm / f"seed-{seed}"
    folder.mkdir(parents=True)
    record = {"data_set": name, "arm": arm, "seed": seed, "stand_in": stand_in, "model_sha256": "ab" * 32}
    metrics = {"accuracy": 7.0, "f1_macro": 8.0, "mcc": 9.0} | {suite.metric_of(name): value}
    scores = {
        "data_set": name,
        "seed": seed,
        "metrics": {"dev": {"mcc": 6.0}, "test": metrics},
        "splits": {"train": {"rows": 1234}, "test": {"rows": 56}},
        "settings": {"model": "hf"},
        "rows_shared_with_train": {"dev": 0, "test": shared},
        "rows_cut_to_their_middle": {"test": 0},
        "train_seconds": 2.0 * seed,
    }
    (folder / "gue_run.json").write_text(json.dumps(record | {"settings": resolve_settings(name, suite, {})}))
    (folder / "scores.json").write_text(json.dumps(scores))
