"""The contract of a stage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

from edgekit.extras import require
from edgekit.model import Model
from edgekit.stages import Stage
from edgekit.testing.subjects import Lent, host, light, small_network, unchanged


class StageContract:
    """What every stage promises. Set `stage`; override `model` or `context` where yours needs something special."""

    stage: ClassVar[Stage]

    def model(self) -> Model:
        """The small network, trainable where the stage trains."""
        if not self.stage.trains:
            return small_network()
        from edgekit.graph.crossing import to_torch

        return to_torch(small_network())

    def context(self, work: Path) -> Lent:
        """What the stage is lent."""
        work.mkdir(parents=True, exist_ok=True)
        return Lent(work, targets=(host("onnxruntime"),))

    def test_importing_it_is_cheap(self) -> None:
        """Nothing heavy is imported before it is needed."""
        light(type(self.stage).__module__)

    def test_its_settings_survive_a_recipe(self) -> None:
        """It is its own configuration: a frozen value that JSON holds whole."""
        pytest = require("pytest", extra="dev", why="running contract tests")
        settings: Any = self.stage
        again = type(settings).model_validate(json.loads(json.dumps(settings.model_dump(mode="json"))))
        assert again == settings, f"{settings!r} became {again!r}"
        with pytest.raises(ValueError, match="no_such_setting"):
            type(settings).model_validate({**settings.model_dump(), "no_such_setting": 1})
        with pytest.raises(ValueError, match="frozen"):
            setattr(settings, next(iter(type(settings).model_fields), "kind"), None)

    def test_never_changes_its_model(self, tmp_path: Path) -> None:
        """`apply` returns a new model; the old one, its teacher too, is as it was."""
        model = self.model()
        before, steps = list(unchanged(model)), model.history
        self.stage.apply(model, self.context(tmp_path))
        assert list(unchanged(model)) == before, "apply() changed the model that it got"
        assert model.history == steps, "apply() changed the history of the model that it got"

    def test_adds_one_step_and_keeps_the_interface(self, tmp_path: Path) -> None:
        """The new model says what happened, has the same inputs and outputs, and the same reference."""
        model = self.model()
        result = self.stage.apply(model, self.context(tmp_path))
        assert result.history[:-1] == model.history, "apply() must append exactly one step"
        step = result.history[-1]
        assert step.name == self.stage.kind and step.seconds >= 0, f"the step is {step}"
        assert (result.inputs, result.outputs) == (model.inputs, model.outputs), "inputs or outputs changed"
        assert result.reference.proto.SerializeToString() == model.reference.proto.SerializeToString()

    def test_same_seed_same_result(self, tmp_path: Path) -> None:
        """Twice the same work gives the same bytes."""
        once, again = (
            list(unchanged(self.stage.apply(self.model(), self.context(tmp_path / str(i))))) for i in range(2)
        )
        assert once == again, "two runs with one seed differ"
