"""`herd curriculum`: every preset is drawn, and what is drawn are the curriculum's own values."""

import numpy as np
import pytest

from herd.cli import main
from herd.config.loader import compose, conf_root
from herd.recipe.job import make_job
from herd.report.figures_curriculum import curriculum_figure
from herd.training.curriculum import Curriculum


@pytest.mark.parametrize("name", sorted(path.stem for path in (conf_root() / "curriculum").glob("*.yaml")))
def test_draws_every_preset(name):
    config = make_job("pretrain", compose("pretrain", [f"curriculum={name}"])).config
    curriculum = Curriculum(config.curriculum, config.mix.weights, config.optimizer.lr)
    rate, shape, _ = curriculum_figure(curriculum).axes
    tokens, drawn = rate.lines[0].get_data()
    assert drawn[0] == curriculum.learning_rate(0)
    assert drawn[-1] == curriculum.learning_rate(curriculum.steps - 1)
    assert tokens[-1] == curriculum.tokens_at(curriculum.steps - 1)
    batch, length = (patch.get_data() for patch in shape.patches[-2:])
    np.testing.assert_array_equal(batch.values, [phase.batch_tokens for phase in curriculum.phases])
    np.testing.assert_array_equal(length.values, [phase.seq_len for phase in curriculum.phases])
    assert batch.edges[-1] == curriculum.tokens


def test_the_command_lists_the_phases_and_leaves_a_picture(tmp_path, capsys):
    main(["curriculum", "curriculum=ci", f"out={tmp_path / 'it.png'}"])
    assert "annealing: " in capsys.readouterr().out
    assert (tmp_path / "it.png").read_bytes().startswith(b"\x89PNG")
