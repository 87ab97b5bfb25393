"""Our stages keep the contract that edgekit.testing ships."""

from edgekit.stages.distill import Distill
from edgekit.stages.prune import Prune
from edgekit.stages.quantize import Quantize
from edgekit.testing import StageContract


class TestQuantize(StageContract):
    stage = Quantize()


class TestPrune(StageContract):
    stage = Prune(macs=0.8, round_to=2)


class TestDistill(StageContract):
    stage = Distill(epochs=1)
