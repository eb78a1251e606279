"""The functions of arrays."""

import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from conftest import FORMS, noisy, rows

import resblock


def test_one_call_has_the_same_bits_however_it_is_made(form):
    function = resblock.Function(form)
    params, x = noisy(function), rows(7, 5, 48)
    y, record = function.forward(x, params, threads=1)
    assert y.shape == (7, 5, function.outputs) and record.shape == (function.record_len(35),)
    dx, grads = function.backward(np.cos(y), record, params, threads=1)
    strided = np.asfortranarray(np.repeat(x.reshape(35, 48), 2, axis=0))[::2]
    turned = [np.asfortranarray(p) for p in params]
    for threads in [1, 2, 3]:
        assert np.array_equal(function(x, params, threads=threads), y)
        assert np.array_equal(function.pack(params)(x, threads=threads), y)
        other, again = function.forward(strided, turned, threads=threads)
        assert np.array_equal(other, y.reshape(35, -1))
        dx2, grads2 = function.backward(np.cos(other), again, turned, threads=threads)
        assert np.array_equal(dx2, dx.reshape(35, 48))
        assert all(np.array_equal(a, b) for a, b in zip(grads, grads2))
    reversed_rows, reversed_columns = x[::-1], x[..., ::-1]
    assert np.array_equal(function(reversed_rows, params), y[::-1])
    assert np.array_equal(function(reversed_columns, params), function(reversed_columns.copy(), params))


def test_gradients_are_those_of_differences(form):
    function = resblock.Function(form)
    params, x = noisy(function), rows(6, 48)
    weights = rows(6, function.outputs, seed=3).astype(np.float64)
    loss = lambda x, params: float((function(x, params) * weights).sum())
    _, record = function.forward(x, params)
    dx, grads = function.backward(weights.astype(np.float32), record, params)
    rng = np.random.default_rng(4)
    for gradient, value, at in [(dx, x, None), *((g, p, i) for i, (g, p) in enumerate(zip(grads, params)))]:
        way = rng.normal(size=value.shape)
        way /= np.linalg.norm(way)
        step = 1e-2
        moved = [(value + sign * step * way).astype(np.float32) for sign in (1, -1)]
        if at is None:
            up, down = (loss(m, params) for m in moved)
        else:
            up, down = (loss(x, [*params[:at], m, *params[at + 1 :]]) for m in moved)
        expected, found = (up - down) / (2 * step), float((gradient * way).sum())
        assert abs(expected - found) < 2e-2 * (1 + abs(expected)), (at, expected, found)


def test_what_is_not_wanted_is_not_made():
    function = resblock.Function(FORMS["gpt2"])
    params, x = noisy(function), rows(6, 48)
    y, record = function.forward(x, params)
    wanted = [i % 2 == 0 for i in range(len(params))]
    dx, grads = function.backward(y, record, params, wanted=wanted, need_dx=False)
    _, whole = function.backward(y, record, params)
    assert dx is None and [g is not None for g in grads] == wanted
    assert all(g is None or np.array_equal(g, w) for g, w in zip(grads, whole))


def test_dropout_is_drawn_from_seed_step_and_row():
    form = resblock.BlockForm.tabular(48, 80, resblock.Dropout(hidden=0.5, branch=0.1))
    function = resblock.Function(form)
    params, x = noisy(function), rows(64, 48)
    for i, role in enumerate(function.roles):
        if role == "running_var":
            params[i] = np.abs(params[i])
    call = lambda x, draw: function.forward(x, params, draw=draw, frozen=True)[0]
    whole = call(x, (1, 2, 0))
    assert np.array_equal(whole, call(x, (1, 2, 0))) and not np.array_equal(whole, call(x, (1, 3, 0)))
    assert np.array_equal(whole[32:], call(x[32:], (1, 2, 32)))
    assert np.array_equal(function(x, params), function.forward(x, params, frozen=True)[0])


def test_running_averages_move_by_the_batch():
    function = resblock.Function(resblock.NormLayer(48, resblock.Norm.batch()))
    params, x = function.init(), rows(64, 48)
    y, record = function.forward(x, params)
    assert np.allclose(y.mean(0), 0, atol=1e-5) and np.allclose(y.std(0), 1, atol=1e-3)
    function.update_statistics(record, params, 0.5)
    assert np.allclose(params[2], 0.5 * x.mean(0), atol=1e-6)
    assert np.allclose(params[3], 0.5 + 0.5 * x.var(0, ddof=1), atol=1e-5)


def test_keeping_less_gives_the_same_bits():
    whole, inputs = resblock.Function(FORMS["llama"]), resblock.Function(FORMS["llama"], keep="inputs")
    within = resblock.Function([FORMS["gpt2"]] * 3, keep=(4 * (2 * 16 + 64 * (3 * 48 + 200)), 64))
    assert inputs.record_len(64) < whole.record_len(64)
    assert within.record_len(64) < resblock.Function([FORMS["gpt2"]] * 3).record_len(64)
    params, x = noisy(whole), rows(64, 48)
    results = [f.backward(x, f.forward(x, params)[1], params) for f in (whole, inputs)]
    assert np.array_equal(results[0][0], results[1][0])
    assert all(np.array_equal(a, b) for a, b in zip(results[0][1], results[1][1]))


def test_bad_input_is_an_error_that_names_it():
    function = resblock.Function(FORMS["gpt2"])
    params, x = noisy(function), rows(6, 48)
    y, record = function.forward(x, params)
    bad = [
        (TypeError, "x: expected float32", lambda: function(x.astype(np.float64), params)),
        (TypeError, "params: expected float32", lambda: function(x, [p.astype(np.float16) for p in params])),
        (ValueError, "x: expected 48 features", lambda: function(x[:, :47], params)),
        (ValueError, "first.weight: expected shape", lambda: function(x, [params[0].T, *params[1:]])),
        (ValueError, "params: expected 6 ", lambda: function(x, params[:-1])),
        (ValueError, "dy: expected 48 features", lambda: function.backward(x[:, 1:], record, params)),
        (resblock.ResblockError, "record", lambda: function.backward(x, record[1:], params)),
        (resblock.ResblockError, "record", lambda: function.backward(x, np.zeros_like(record), params)),
        (resblock.ResblockError, "another number of rows|record", lambda: function.backward(x[:3], record, params)),
        (resblock.ResblockError, "epsilon", lambda: resblock.Function(resblock.BlockForm(4, 4, pre_norm=resblock.Norm("layer", -1.0)))),
        (resblock.ResblockError, "formula", lambda: resblock.Function(resblock.BlockForm(4, 4, activation="sine"))),
        (resblock.ResblockError, "formula", lambda: resblock.Function(resblock.BlockForm(-4, 4))),
        (resblock.ResblockError, "", lambda: resblock.Function(resblock.BlockForm(4, 4, outputs=5))),
        (TypeError, "formula", lambda: resblock.Function(3)),
        (resblock.ResblockError, "there is no block", lambda: resblock.BlockForm.named("gpt5", 4, 4)),
    ]
    for kind, text, call in bad:
        with pytest.raises(kind, match=text):
            call()
    assert np.array_equal(function(x, params), y)


def test_no_rows_and_nan_rows():
    function = resblock.Function(FORMS["gpt2"])
    params, x = noisy(function), rows(6, 48)
    y, record = function.forward(x[:0], params)
    dx, grads = function.backward(y, record, params)
    assert y.shape == (0, 48) == dx.shape and all((g == 0).all() for g in grads)
    clean = function(x, params)
    x[2, 5] = np.nan
    y = function(x, params)
    assert np.isnan(y[2]).all() and np.array_equal(np.delete(y, 2, 0), np.delete(clean, 2, 0))


def test_other_threads_of_python_go_on_during_a_call():
    function = resblock.Function(resblock.BlockForm(512, 2048))
    params, x = function.init(), rows(2048, 512)
    beats, over = [], threading.Event()

    def beat():
        while not over.is_set():
            beats.append(time.monotonic())
            time.sleep(0.001)

    thread = threading.Thread(target=beat)
    thread.start()
    begun = time.monotonic()
    function(x, params, threads=1)
    ended = time.monotonic()
    over.set()
    thread.join()
    assert any(begun < at < ended for at in beats) or ended - begun < 0.02


def test_control_c_stops_a_loop_of_calls():
    code = "import numpy as np, resblock; f = resblock.Function(resblock.BlockForm(256, 256)); p = f.init(); x = np.ones((256, 256), np.float32)\nprint('on', flush=True)\nwhile True: f(x, p)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "on\n"
    process.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in process.communicate(timeout=60)[1]


def test_threads_are_a_setting_and_an_environment_variable():
    before = resblock.num_threads()
    resblock.set_num_threads(2)
    assert resblock.num_threads() == 2
    resblock.set_num_threads(before)
    code = "import resblock; print(resblock.num_threads())"
    found = subprocess.run([sys.executable, "-c", code], env={"RESBLOCK_NUM_THREADS": "3"}, capture_output=True, text=True)
    assert found.stdout == "3\n"
