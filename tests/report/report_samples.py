"""A realistic report, built the way the pipeline builds one: outputs and latencies are drawn, all else is computed."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgekit import gate, metrics, ships
from edgekit.clauses import Clause
from edgekit.report.predictions import Predictions, read_predictions, write_predictions, write_samples
from edgekit.report.report import (
    DataInfo,
    DeviceInfo,
    Latency,
    LayerInfo,
    Paired,
    RecipeInfo,
    Report,
    Result,
    SourceInfo,
    StageInfo,
    TargetInfo,
)
from edgekit.report.robust import Condition, Robustness
from edgekit.report.values import Bounds, Interval

CLASSES = ("T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
N = 10_000
HARD = np.array([0.9, 1.6, 0.8, 1.2, 0.8, 1.6, 0.45, 1.4, 1.6, 1.4])
CLAUSES = (
    Clause(metric="accuracy", vs="reference", max_regression="1.0pp"),
    Clause(metric="latency.p90", target="x86-64", vs="reference", max_ratio=1.0),
    Clause(metric="size", max="2 MB"),
    Clause(metric="latency.p50", max="1.2 ms", severity="warn"),
    Clause(metric="accuracy", min="92.2%"),
)
ROLES = (("reference", "fp32"), ("float", "fp32"), ("quantized", "int8"))
MEDIANS = {
    "onnxruntime": (2.10e-3, 1.31e-3, 0.62e-3),
    "openvino": (1.55e-3, 1.02e-3, 0.55e-3),
    "litert": (3.4e-3, 2.1e-3, 2.08e-3),
}
SIZES = {
    "onnxruntime": (4_412_000, 2_160_000, 571_000),
    "openvino": (4_430_100, 2_171_000, 602_000),
    "litert": (4_401_000, 2_149_000, 566_000),
    "tensorrt": (4_730_000, 2_601_000, 812_000),
}


def outputs(role: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits `[N, 10]` and labels: the roles differ by noise of their own on what they share."""
    shared = np.random.default_rng(1)
    labels = shared.integers(0, 10, N)
    logits = shared.normal(0, 1.0, (N, 10))
    logits[np.arange(N), labels] += 3.9 * HARD[labels]
    extra = {"reference": 0.0, "float": 0.12, "quantized": 0.2}[role]
    return (logits + np.random.default_rng(seed).normal(0, extra, logits.shape)).astype(np.float32), labels


def latency(median: float, seed: int, n: int = 400) -> np.ndarray:
    """Latencies in seconds with a tail."""
    rng = np.random.default_rng(seed)
    return median * (0.97 + rng.gamma(1.5, 0.03, n) + (rng.random(n) < 0.02) * rng.random(n))


def measured(backend: str, index: int, folder: Path) -> Result:
    role, precision = ROLES[index]
    logits, labels = outputs(role, seed=len(backend) if role == "quantized" else 7)
    scored = metrics.evaluate(logits, labels, classes=CLASSES)
    stem = f"x86-64-{backend}-{role}"
    ids = [str(i) for i in range(N)]
    write_predictions(scored.predictions(ids, labels, data_sha256="c0ffee", split="test"), folder / f"{stem}.npz")
    samples = latency(MEDIANS[backend][index], seed=index)
    write_samples(samples, folder / f"{stem}.npy")
    p50, p90 = np.quantile(samples, [0.5, 0.9])
    pairs = [
        Paired(vs=vs, statistic=s, ratio=r, low=r * 0.975, high=r * 1.03, rounds=20)
        for vs, other in (("reference", 0), ("float", 1))
        if other < index
        for s in ("p50", "p90")
        for r in [MEDIANS[backend][index] / MEDIANS[backend][other]]
    ]
    int8 = role == "quantized"
    return Result(
        target="x86-64",
        backend=backend,
        precision=precision,
        role=role,
        status="measured",
        measured_on="local",
        device=DeviceInfo(
            name="local", fingerprint="x86_64 avx512_vnni 2 cores", threads=1, versions={backend: "1.32.0"}
        ),
        bundle=f"bundles/{stem}.edge",
        size_bytes=SIZES[backend][index],
        bundle_bytes=SIZES[backend][index] + 61_000,
        predictions_file=f"{stem}.npz",
        metrics=scored.metrics,
        per_class=scored.per_class,
        latency_s=Latency(
            p50=Bounds(value=p50, low=p50 * 0.98, high=p50 * 1.02),
            p90=Bounds(value=p90, low=p90 * 0.97, high=p90 * 1.04),
            n=len(samples),
            samples_file=f"{stem}.npy",
        ),
        paired=tuple(pairs),
        load_s=0.034,
        first_inference_s=0.0051,
        peak_rss_bytes=81_000_000,
        int8_nodes=41 if int8 else 0,
        float_nodes=4 if int8 else 45,
        float_reasons={"/se/Sigmoid": "HardSigmoid stays float here", "/se/Mul": "HardSigmoid stays float here"}
        if int8
        else {},
        agreement=0.981,
        agreement_n=N,
        snr_db=24.6 if int8 else 17.0,
    )


def unmeasured() -> list[Result]:
    """A board without a device, a GPU engine built ahead of time, an engine for the board to build, a failure."""
    built = [
        Result(target="raspberry-pi-5", backend="onnxruntime", precision=p, role=r, status="built", size_bytes=s)
        for (r, p), s in zip(ROLES, SIZES["onnxruntime"], strict=True)
    ]
    engine = [
        Result(target="rtx-ampere", backend="tensorrt", precision=p, role=r, status="built", size_bytes=s)
        for (r, p), s in zip(ROLES, SIZES["tensorrt"], strict=True)
    ]
    emitted = Result(
        target="jetson-orin-nano", backend="tensorrt", precision="int8", role="quantized", status="emitted",
        reason="its engine is built on the board by the agent", size_bytes=1_190_000,
    )  # fmt: skip
    failed = Result(
        target="raspberry-pi-5", backend="litert", precision="int8", role="quantized", status="failed",
        reason="LiteRT has no operator for node '/head/GridSample' (GridSample)",
    )  # fmt: skip
    return [*built, failed, *engine, emitted]


def layers(variant: str, count: int = 60) -> tuple[LayerInfo, ...]:
    """Layers of a network, two of them sensitive, the larger cost at the cheaper end."""
    rng = np.random.default_rng(len(variant))
    snr = rng.normal(38, 4, count)
    snr[[7, 31]] = 14.2, 17.9
    noise = 10 ** (-snr / 10)
    return tuple(
        LayerInfo(
            variant=variant, layer=f"/features/{i // 3}/conv{i % 3}", op="Add" if i % 7 == 6 else "Conv",
            snr_db=float(snr[i]), share=float(noise[i] / noise.sum()), cost=2e-5 * (1 + i % 9), unit="s",
            float_s=0.0 if i % 7 == 6 else 3e-5 * (1 + i % 9), int8_s=1e-5 * (1 + i % 9), kept=i in (7, 31),
        )
        for i in range(count)
    )  # fmt: skip


def stages() -> tuple[StageInfo, ...]:
    curve = tuple(
        {"epoch": float(i + 1), "train_loss": 0.9 * 0.7**i + 0.2, "val_loss": 0.8 * 0.72**i + 0.24,
         "val_accuracy": 0.93 - 0.12 * 0.55**i, "lr": 0.01}
        for i in range(6)
    )  # fmt: skip
    return (
        StageInfo(
            name="prune", config={"macs": 0.5, "importance": "taylor", "round_to": 8}, seconds=21.3, snr_db=6.2,
            agreement=0.71, metrics={"accuracy": 0.702, "loss": 0.91}, macs=17_100_000, parameters=536_000,
            notes=("kept 50.2 % of the multiply-accumulates",),
        ),
        StageInfo(
            name="distill", config={"epochs": 6, "temperature": 4.0}, seconds=151.8, snr_db=17.0, agreement=0.979,
            metrics={"accuracy": 0.9372, "loss": 0.21}, macs=17_100_000, parameters=536_000, curve=curve,
        ),
        StageInfo(
            name="quantize", config={"precision": "int8", "calibration": "auto", "samples": 512, "min_snr": 20.0},
            seconds=9.4, snr_db=16.1, agreement=0.974, metrics={"accuracy": 0.936, "loss": 0.214}, macs=17_100_000,
            parameters=536_000, notes=("auto took percentile: 24.6 dB against 22.9 dB with min-max",),
            sensitivity=(*layers("affine"), *layers("symmetric")),
        ),
    )  # fmt: skip


def realistic(folder: Path) -> Report:
    """The report of a demo run, judged, with its files in `folder`."""
    results = [measured(backend, i, folder) for backend in MEDIANS for i in range(3)]

    def load(name: str) -> Predictions:
        return read_predictions(folder / name)

    marked, warnings = ships.mark_ships([*results, *unmeasured()], 0.005, predictions=load)
    logits, labels = outputs("reference", 7)
    source = metrics.evaluate(logits, labels, classes=CLASSES)
    report = Report(
        edgekit="0.1.0",
        created="2026-11-23T17:30:00+00:00",
        seconds=312.4,
        recipe=RecipeInfo(name="recipe.yaml", path="recipe.yaml", sha256="ab" * 32),
        data=DataInfo(name="fashion_mnist", split="test", n=N, sha256="c0ffee", classes=CLASSES, licence="MIT"),
        source=SourceInfo(
            name="fashion_cnn", size_bytes=4_389_000, macs=34_120_000, parameters=1_095_000, metrics=source.metrics,
            per_class=source.per_class,
        ),
        stages=stages(),
        targets=(
            TargetInfo(target="x86-64", backends=tuple(MEDIANS), device="local"),
            TargetInfo(target="raspberry-pi-5", backends=("onnxruntime", "litert")),
            TargetInfo(target="rtx-ampere", backends=("tensorrt",)),
            TargetInfo(target="jetson-orin-nano", backends=("tensorrt",)),
        ),
        results=marked,
        warnings=warnings,
        environment={"python": "3.11.9", "platform": "Linux x86_64", "numpy": np.__version__},
    )  # fmt: skip
    judged = gate.judge(report, CLAUSES, predictions=load)
    return report.model_copy(update={"gate": judged, "exit_code": int(gate.exit_code(judged, [7]))})


def robust(drop: float = 0.0, vs: bool = True) -> Robustness:
    """Accuracy on changed samples; `drop` is what corruptions cost more than they cost the reference."""

    def at(value: float, half: float = 0.02) -> Interval:
        return Interval(value=value, low=value - half, high=value + half, n=1000)

    accuracies = {"gaussian_noise.1": 0.9, "gaussian_noise.5": 0.6, "jpeg.5": 0.88, "adversarial.pgd": 0.75}
    conditions = tuple(
        Condition(
            name=name,
            kind="adversarial" if name.startswith("adv") else "corruption",
            accuracy=at(value - drop * (1 - value)),
            lost=at(drop * (1 - value), 0.01) if vs else None,
        )
        for name, value in accuracies.items()
    )
    return Robustness(
        n=1000, clean=at(0.93), mean=at(0.79 - drop), lost=at(drop, 0.005) if vs else None, conditions=conditions
    )
