"""Our stages keep the contract that edgekit.testing ships."""

import pytest

from edgekit.stages.distill import Distill
from edgekit.stages.factorize import Factorize
from edgekit.stages.prune import Prune
from edgekit.stages.qat import Qat
from edgekit.stages.quantize import Quantize
from edgekit.stages.sparsify import Sparsify
from edgekit.testing import StageContract
from edgekit.testing.subjects import quantized, small_network


class TestQuantize(StageContract):
    stage = Quantize()


class TestPrune(StageContract):
    stage = Prune(macs=0.8, round_to=2)


class TestFactorize(StageContract):
    stage = Factorize(macs=0.9, round_to=2)


class TestSparsify(StageContract):
    stage = Sparsify(share=0.5)


class TestDistill(StageContract):
    stage = Distill(epochs=1)


class TestQat(StageContract):
    stage = Qat(epochs=1)

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path):
        self.folder = tmp_path / "quantized"
        self.folder.mkdir()

    def model(self):
        return quantized(small_network(), self.folder)
