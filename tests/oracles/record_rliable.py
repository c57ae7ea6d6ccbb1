"""Record what rliable 1.2.0 says about fixed scores, as numbers for test_intervals.py.

    python tests/oracles/record_rliable.py [VENV]

rliable cannot share an environment with pandas 3, so it gets one of its own (default ``.side/rliable``).
"""

import json
import subprocess
import sys
import time
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
PACKAGES = ["rliable==1.2.0", "pandas<3"]
REPETITIONS, REPEATS = 20_000, 5


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else HERE.parents[1] / ".side" / "rliable")
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    if subprocess.run([python, "-c", "import rliable.library"], capture_output=True).returncode:
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    subprocess.run([python, __file__, "--record"], check=True)


def record() -> None:
    import numpy as np
    from rliable import library, metrics

    rng = np.random.default_rng(0)
    first = rng.gamma(2.0, 0.4, size=(10, 5)).round(2)  # rounded: there are ties
    second = rng.gamma(2.0, 0.3, size=(7, 5)).round(2)
    thresholds = np.array([0.0, 0.25, 0.5, 1.0, 2.0])
    statistics = {
        "mean": (first, metrics.aggregate_mean),
        "median": (first, metrics.aggregate_median),
        "iqm": (first, metrics.aggregate_iqm),
        "iqm_second": (second, metrics.aggregate_iqm),
        "optimality_gap": (first, metrics.aggregate_optimality_gap),
        "performance_profile": (first, lambda x: library.score_distributions(x, thresholds)),
        "probability_of_improvement": ([first, second], metrics.probability_of_improvement),
    }
    recorded = {}
    for name, (scores, function) in statistics.items():
        lows, highs = [], []
        for repeat in range(REPEATS):
            np.random.seed(repeat)  # noqa: NPY002 (rliable ignores its own random_state)
            reps = REPETITIONS // (10 if name == "probability_of_improvement" else 1)
            point, interval = library.get_interval_estimates(
                {"x": scores}, lambda *x, f=function: np.atleast_1d(f(*x)), reps=reps
            )
            lows.append(interval["x"][0])
            highs.append(interval["x"][1])
        recorded[name] = {
            "value": point["x"].tolist(),
            "low": np.mean(lows, 0).tolist(),
            "high": np.mean(highs, 0).tolist(),
            "spread": float(max(np.std(lows, 0).max(), np.std(highs, 0).max())),
        }
    scores = rng.random((10, 26))
    start = time.perf_counter()
    library.get_interval_estimates({"x": scores}, lambda x: np.array([metrics.aggregate_iqm(x)]), reps=2000)
    seconds = time.perf_counter() - start
    value = {
        "packages": PACKAGES,
        "repetitions": REPETITIONS,
        "repeats": REPEATS,
        "first": first.tolist(),
        "second": second.tolist(),
        "thresholds": thresholds.tolist(),
        "statistics": recorded,
        "iqm_10x26_2000_repetitions_seconds": round(seconds, 4),
    }
    (HERE / "rliable.json").write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    print(f"{HERE / 'rliable.json'}: {len(recorded)} statistics")


if __name__ == "__main__":
    record() if "--record" in sys.argv else main()
