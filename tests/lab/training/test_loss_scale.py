"""The state of float16's scaler goes on only in a scaler of the same kind."""

from types import SimpleNamespace

from clars.lab.launching import strategy

DYNAMIC = {"cur_scale": 1024.0, "cur_iter": 7, "cur_hysteresis": 1, "last_overflow_iter": 3}


def zero(**state):
    """What `accelerator.prepare` returns around DeepSpeed's optimizer, as far as it is looked at."""
    return SimpleNamespace(optimizer=SimpleNamespace(loss_scaler=SimpleNamespace(**state)))


def put(state, optimizer):
    strategy.put_loss_scale(SimpleNamespace(scaler=None), optimizer, state)
    return vars(optimizer.optimizer.loss_scaler)


def test_a_dynamic_scale_goes_on():
    fresh = zero(**dict.fromkeys(DYNAMIC, 0), scale_window=1000)
    assert put(DYNAMIC, fresh) == DYNAMIC | {"scale_window": 1000}


def test_a_fixed_scale_is_not_that_of_another_precision():
    """A float16 run began with the scale 1 of a run in float32, and its gradients vanished in silence."""
    fresh = zero(**DYNAMIC)
    assert put({"cur_scale": 1.0}, fresh) == DYNAMIC
    fixed = zero(cur_scale=1.0)
    assert put(DYNAMIC, fixed) == {"cur_scale": 1.0}
