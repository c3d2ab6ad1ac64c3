"""Solved probes against slow references, and from a folder of what is kept."""

import numpy as np
import pytest
import torch

from speechbrain_sim import logistic
from speechbrain_sim.logistic import Lbfgs, solve_logistic
from speechbrain_sim.probes import ProbeSolver, shuffled_labels, units_of
from speechbrain_sim.rows import Examples, Rows, StoredArray, moments

STRENGTHS = [1e-1, 1e-3, 1e-5]


def loss_of(x, y, weight, bias, strength):
    """The loss, example by example, in double precision."""
    total = 0.0
    for row, label in zip(x.double(), y, strict=True):
        logits = [
            float(row @ w + b) for w, b in zip(weight.T, bias, strict=True)
        ]
        top = max(logits)
        total += top + np.log(sum(np.exp(z - top) for z in logits))
        total -= logits[label]
    return total / len(y) + strength / 2 * float(weight.square().sum())


@pytest.fixture(scope="module")
def data():
    """Three classes of 6 channels, not quite apart; to train on, to test on."""
    torch.manual_seed(0)
    y = torch.arange(400) % 3
    x = torch.randn(400, 6) @ torch.randn(6, 6)
    x[:, :3] += 2 * torch.nn.functional.one_hot(y, 3)
    x = (x - x.mean(0)) / x.std(0)
    return x[:250], y[:250], x[250:], y[250:]


def test_equals_scikit_learn(data):
    linear = pytest.importorskip("sklearn.linear_model")
    x, y, test, true = data
    solved = solve_logistic(x, y, 3, STRENGTHS)
    assert solved.converged.all()
    for n, strength in enumerate(STRENGTHS):
        strength *= float(x.square().mean())
        model = linear.LogisticRegression(
            C=1 / (strength * len(y)), tol=1e-8, max_iter=9999
        ).fit(x.double().numpy(), y.numpy())
        theirs = (
            torch.from_numpy(model.coef_.T),
            torch.from_numpy(model.intercept_),
        )
        ours = solved.weights[0][n].double(), solved.weights[1][n, 0].double()
        best = loss_of(x, y, *theirs, strength)
        assert loss_of(x, y, *ours, strength) == pytest.approx(best, rel=3e-4)
        same = solved.predict(test)[n].numpy() == model.predict(test.numpy())
        assert same.mean() > 0.99


def test_equals_scikit_learn_on_digits(monkeypatch):
    """Also where it begins with a share of the rows, read in small chunks."""
    datasets = pytest.importorskip("sklearn.datasets")
    linear = pytest.importorskip("sklearn.linear_model")
    monkeypatch.setattr(logistic, "FEWEST", 0)
    monkeypatch.setitem(logistic.CHUNK, "cpu", 100 * 10)
    x, y = datasets.load_digits(return_X_y=True)
    x, test, y, true = x[:1300].astype("float32"), x[1300:], y[:1300], y[1300:]
    mean, std = moments([torch.from_numpy(x)])
    test = torch.from_numpy(test.astype("float32"))
    rows = Rows([StoredArray(x, [0, 1300])], mean, std)
    solved = solve_logistic(rows, torch.from_numpy(y), 10, 1e-3)
    model = linear.LogisticRegression(C=1 / 1.3, max_iter=9999)
    theirs = model.fit(rows[:], y).score((test - mean) / std, true)
    answers = solved.predict((test - mean) / std)[0].numpy()
    assert abs((answers == true).mean() - theirs) <= 0.003
    assert theirs > 0.9


def test_side_by_side_equals_alone(data):
    x, y, *_ = data
    labels = torch.cat([y[None].int(), shuffled_labels(y, 2)])
    together = solve_logistic(x, labels, 3, 1e-3)
    for n, row in enumerate(labels):
        alone = solve_logistic(x, row, 3, 1e-3)
        torch.testing.assert_close(
            together.weights[0][n], alone.weights[0][0], atol=2e-2, rtol=0
        )
    free = solve_logistic(x, y, 3, 1e-3, bias=False)
    assert len(free.weights) == 1 and free.converged.all()


def test_few_passes_are_not_convergence(data):
    x, y, *_ = data
    solved = solve_logistic(x, y, 3, STRENGTHS, limit=2)
    assert solved.passes == 2 and not solved.converged.any()


def test_a_scale_and_an_offset_change_nothing(data):
    """Raw features of any unit, in the units that they are solved in."""
    x, y, test, _ = data
    answers = []
    for scale, offset in (1, 0), (1e-5, 0), (1e5, 3e5):
        loud = scale * x * torch.tensor([1, 1, 1, 1e-2, 1, 1]) + offset
        quiet = scale * test * torch.tensor([1, 1, 1, 1e-2, 1, 1]) + offset
        solved = solve_logistic(loud - loud.mean(0), y, 3, 1e-4)
        assert solved.converged.all() and solved.passes < 150
        answers.append(solved.predict(quiet - loud.mean(0))[0])
    for other in answers[1:]:
        assert (answers[0] == other).float().mean() > 0.98


def test_minimizes_functions_of_different_curvature():
    """Quadratic ones, whose minima are known, and Rosenbrock's."""
    curves = 10.0 ** torch.arange(-3.0, 3.0).expand(2, -1)
    minima = torch.arange(12.0).view(2, 6)

    def quadratic(x, which):
        away = x - minima[which]
        value = 1 + (curves[which] * away.square()).sum(1, keepdim=True) / 2
        return value, curves[which] * away

    search = Lbfgs(torch.clone)
    x, solved, calls = search.minimize(quadratic, torch.zeros(2, 6), 1e-7, 300)
    assert solved.all() and calls < 300
    value, _ = quadratic(x, torch.arange(2))
    assert (value < 1 + 1e-5).all()

    @torch.enable_grad()
    def rosenbrock(x, _):
        x = x.clone().requires_grad_()
        a, b = x.T
        value = (1 - a) ** 2 + 100 * (b - a**2) ** 2 + 1
        value.sum().backward()
        return value.detach()[:, None], x.grad

    start = torch.tensor([[-1.2, 1.0], [0.0, 0.0]])
    x, solved, _ = Lbfgs(torch.clone).minimize(rosenbrock, start, 1e-7, 300)
    assert solved.all()
    torch.testing.assert_close(x, torch.ones(2, 2), atol=3e-2, rtol=0)


def test_a_hidden_layer_reads_what_a_line_cannot():
    torch.manual_seed(0)
    x = torch.randn(600, 2)
    y = (x[:, 0] * x[:, 1] > 0).long()
    accuracy = {}
    for hidden in (0, 8):
        solved = solve_logistic(x[:400], y[:400], 2, 1e-4, hidden=hidden)
        answers = solved.predict(x[400:])[0]
        accuracy[hidden] = (answers == y[400:]).float().mean()
    assert accuracy[0] < 0.7 and accuracy[8] > 0.9


def examples(x, y):
    """Examples of a tensor, each a recording."""
    rows = Rows([StoredArray(x.numpy(), np.arange(len(x) + 1))])
    return {"low": Examples(rows, y.numpy(), np.arange(len(x)), [])}


@pytest.mark.parametrize("hidden", [0, 4])
@pytest.mark.parametrize("standardize", [True, False])
def test_saved_probes_are_those_that_were_tested(
    data, tmp_path, standardize, hidden
):
    x, y, test, true = (data[0] * 3 + 5, data[1], data[2] * 3 + 5, data[3])
    solver = ProbeSolver(3, True, hidden, 200, "cpu", tmp_path)
    parts = examples(x, y), examples(test, true)
    values = moments([x])
    units = {"low": {standardize: units_of(*values, standardize)}}
    choices, chosen = solver.choose(*parts, units, STRENGTHS)
    choice = choices["low"]
    right = (chosen["low"][0].numpy() == true.numpy()).mean()
    assert right == choice.valid_accuracy == max(t[-1] for t in choice.tried)
    probes, answers, _ = solver.test(*parts, units, choices, 2)
    logits = probes(test[None], "low")[0]
    assert answers["low"].shape == (3, len(test))
    assert torch.equal(logits.argmax(-1), answers["low"][0])
    if not standardize:
        assert torch.equal(probes.low_std, torch.ones(6))


def test_what_was_solved_is_not_solved_again(data, tmp_path, monkeypatch):
    x, y, test, true = data
    solver = ProbeSolver(3, True, 0, 200, "cpu", tmp_path)
    first = solver.solve("low", x, y, STRENGTHS)
    monkeypatch.delattr("speechbrain_sim.probes.solve_logistic")
    again = solver.solve("low", x, y, STRENGTHS)
    assert torch.equal(first.predict(test), again.predict(test))


def test_probes_without_bias_read_features_as_they_are():
    mean, std = torch.full((3,), 2.0), torch.full((3,), 5.0)
    assert units_of(mean, std, True, bias=False) == (mean, std)
    for bias, centre in (True, 2), (False, 0):
        found = units_of(mean, std, False, bias)
        assert [x.tolist() for x in found] == [[centre] * 3, [1] * 3]
