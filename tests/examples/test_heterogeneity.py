"""The experiment of the second paper, at its smallest."""

import json

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from examples.data import subwords
from examples.heterogeneity import eigenvalues, findings
from examples.heterogeneity import experiment as heterogeneity
from examples.heterogeneity import report as heterogeneity_report
from examples.heterogeneity import verdict as heterogeneity_verdict
from examples.heterogeneity.claims import equal_rates
from examples.heterogeneity.reading import clippings
from examples.heterogeneity.settings import Settings
from examples.lab.optimizers import OPTIMIZERS, SECOND_PAPER
from examples.models import encoder, huggingface_encoder
from optax_clip import diagnostics


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny encoder with the committed vocabulary."""
    folder = tmp_path_factory.mktemp("models") / "encoder"
    config = encoder.EncoderConfig(
        vocab_size=8192,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=8,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    huggingface_encoder.save(folder, config, encoder.init(config, 0)[1])
    (folder / "tokenizer.json").write_bytes(subwords.COMMITTED.read_bytes())
    return str(folder)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Three classes, each with a word of its own."""
    path = tmp_path_factory.mktemp("texts") / "texts.tsv"
    lines = [f"{label}\t{label} text {n}\n" for n in range(40) for label in "abc"]
    path.write_text("".join(lines))
    return path


def settings(checkpoint, texts, run, **options):
    defaults = {"init": checkpoint, "preset": "tiny", "data": texts, "run": run}
    names = {"optimizer": ("adam", "clipped_sgd")}
    return Settings(**defaults | names | options)


@pytest.fixture(scope="module")
def run(checkpoint, texts, tmp_path_factory):
    """A finished run, and its settings."""
    chosen = settings(checkpoint, texts, tmp_path_factory.mktemp("runs") / "run")
    heterogeneity.main(chosen, heterogeneity.prepare(chosen))
    return chosen


@pytest.mark.slow
def test_every_optimizer_runs_with_every_seed_at_its_best_rate(run):
    summary = json.loads((run.run / "summary.json").read_text())
    found = {(o["name"], o["fraction"]): o for o in summary["optimizers"]}
    assert set(found) == {
        ("adam", 0.05),
        ("clipped_sgd", 0.05),
        ("clipped_sgd", 0.5),
    }
    for one in found.values():
        assert len(one["losses"]) == run.sizes().seeds
        assert all(0 <= accuracy <= 1 for accuracy in one["accuracy"])
        assert one["nll"] == pytest.approx(one["test_losses"], abs=1e-4)
        assert [norms[0][0] for norms in one["head_norms"]] == [0] * 3
        assert [norms[-1][0] for norms in one["head_norms"]] == [2] * 3
    assert found["clipped_sgd", 0.5]["state_bytes"] < found["adam", 0.05]["state_bytes"]


@pytest.mark.slow
def test_blocks_are_measured_along_adams_training(run):
    first, last = json.loads((run.run / "summary.json").read_text())["moments"]
    assert (first["step"], last["step"]) == (0, 2)
    squares = {name: b["l2"] ** 2 for name, b in first["blocks"].items()}
    sizes = {name: b["size"] for name, b in first["blocks"].items()}
    h = {n: max(abs(b["top"]), abs(b["bottom"])) for n, b in first["blocks"].items()}
    by_gradient = sum(squares[n] * h[n] for n in h) / sum(squares.values())
    by_size = sum(sizes[n] * h[n] for n in h) / sum(sizes.values())
    assert first["complexity"]["gradient"] == pytest.approx(by_gradient, rel=1e-4)
    assert first["complexity"]["sign"] == pytest.approx(by_size, rel=1e-4)
    assert first["directions"]["gradient"]["bound"] == pytest.approx(by_gradient)
    gini = diagnostics.heterogeneity([b["l2"] for b in first["blocks"].values()])
    assert first["heterogeneity"]["l2"]["gini"] == pytest.approx(float(gini.gini))
    assert "layers/0/feed_forward_norm" in first["norms"]


@pytest.mark.slow
def test_one_threshold_makes_blocks_more_equal(run):
    moment = json.loads((run.run / "summary.json").read_text())["moments"][0]
    found = clippings(moment)
    gini = {f: n["heterogeneity"]["rms"]["gini"] for f, n in found["global"].items()}
    assert gini[0.001] < gini[0.0]
    # Most coordinates are 0, the embeddings of words that are not in the batch: a
    # fraction is one of the others.
    assert (0.05 in found["global"], 0.05 in found["leaf"]) == (True, True)


@pytest.mark.slow
def test_report_and_verdict_are_made_from_the_files(run):
    heterogeneity_report.summarise(run.run)
    written = heterogeneity_report.write(run.run)
    assert {path.name for path in written} == {
        "report.md",
        "loss_curves.png",
        "head_norm.png",
        "blocks.png",
        "clipping.png",
    }
    report = (run.run / "report.md").read_text()
    assert "Lambda_G / Lambda_P" in report
    assert "does clipping undo it" in report.lower()
    verdict = heterogeneity_verdict.main(run.run.parent).read_text()
    assert "sign SGD ends at a lower training loss" in verdict
    (session,) = json.loads((run.run / "settings.json").read_text())["sessions"]
    assert session["command"] in verdict


@pytest.mark.slow
def test_a_resumed_run_repeats_nothing(run):
    before = [path.read_text() for path in sorted(run.run.glob("*.jsonl"))]
    again = Settings(**{**vars(run), "resume": True})
    heterogeneity.main(again, heterogeneity.prepare(again))
    assert before == [path.read_text() for path in sorted(run.run.glob("*.jsonl"))]
    with pytest.raises(FileExistsError, match="--resume"):
        heterogeneity.prepare(run)
    with pytest.raises(FileExistsError, match="schedule: linear there, cosine here"):
        heterogeneity.prepare(settings(run.init, run.data, run.run, schedule="cosine"))


def test_heads_are_compared_at_equal_rates_only():
    def tried(name, rate, growth):
        known = {"name": name, "fraction": 0.05, "learning_rate": rate}
        return {**known, "head_growth": growth}

    def chosen(name, rate, end):
        known = {"name": name, "fraction": 0.05, "learning_rate": rate}
        return {**known, "head_norms": [[[0, 2.0], [9, end]], [[0, 2.0], [9, end]]]}

    run = {
        "settings": {"fraction": 0.05},
        "optimizers": [chosen("plain_sign_sgd", 0.1, 3.0), chosen("sign_sgd", 1, 8.0)],
        "sweep": [
            tried("plain_sign_sgd", 0.01, 1.1),
            tried("plain_sign_sgd", 0.1, 1.4),  # the mean over the seeds is 1.5
            tried("plain_sign_sgd", 1, None),  # diverged
            tried("sign_sgd", 0.1, 1.2),
            tried("sign_sgd", 1, 4.0),
        ],
    }
    assert equal_rates(run) == {0.1: (1.5, 1.2)}


def summary_of(model, gini, losses_of_sgd):
    """What is read of a run with one measured moment, and seeds at two rates."""

    def seeds(name, losses):
        grown = [[[0, 1.0], [2, 2.0]]] * len(losses)
        known = {"name": name, "fraction": 0.05, "learning_rate": 0.1}
        return {**known, "losses": losses, "head_norms": grown}

    def direction(sharpness, bound):
        return {"sharpness": sharpness, "bound": bound}

    return {
        "settings": {
            "task": "fashion_mnist",
            "model": model,
            "data": None,
            "init": None,
            "fraction": 0.05,
            "counts": {"train": 320, "classes": 10},
            "epochs": 0,
            "steps": 2,
            "batch_size": 16,
            "full_batch": False,
        },
        "optimizers": [
            seeds("plain_sgd", losses_of_sgd),
            seeds("sign_sgd", [1.0, 1.0, 1.0]),
            seeds("clipped_sgd", [0.5, 1.5, 1.0]),
        ],
        "sessions": [],
        "sweep": [],
        "moments": [
            {
                "step": 0,
                "heterogeneity": {"l2": {"gini": gini}, "rms": {"gini": 0.5}},
                "complexity": {"gradient": 2.0, "sign": 1.0},
                "correlation": {"spearman": 0.5, "spearman_interval": [-0.1, 0.9]},
                "blocks": {},
                "directions": {
                    "gradient": direction(3.0, 2.0),
                    **{
                        f"clipped {fraction} {scope}": direction(1.0, bound)
                        for fraction, bound in (("0.01", 1.0), ("0.05", 0.5))
                        for scope in ("global", "leaf")
                    },
                },
            }
        ],
    }


def test_pages_count_runs_and_moments(tmp_path):
    found = {
        "vit": summary_of("vit", 0.8, [2.0, 2.1, 2.2]),
        "resnet": summary_of("resnet", 0.6, [0.9, 1.0, 1.1]),
    }
    for name, summary in found.items():
        folder = tmp_path / findings.RUNS / name
        folder.mkdir(parents=True)
        (folder / "summary.json").write_text(json.dumps(summary))
    paper = findings.of_the_paper(tmp_path)
    assert "on 1 of 1 transformers; on 1 of them" in paper
    assert "ResNet from scratch +0.000 [" in paper
    assert "trained on 10.0% to 10% of an epoch" in paper
    assert "by norms at 1 of 1 measured moments, by norms per parameter at 0" in paper
    blocks = findings.of_the_blocks(tmp_path)
    assert "above 0 at 0 of 2 measured moments" in blocks
    assert "with 5 % clipped 0.25 to 0.25 (one threshold)" in blocks
    assert "at 2 of 2 moments, up to 1.5-fold" in blocks
    assert "ViT (Pre-LN) from scratch -1.100 [" in blocks


def test_full_batch_takes_the_gradient_of_all_rows(checkpoint, texts, tmp_path):
    chosen = settings(
        checkpoint, texts, tmp_path / "run", full_batch=True, clip_norm=False
    )
    task = heterogeneity.load(chosen)
    seen = []
    make = heterogeneity.optimizer(chosen, heterogeneity.Contender("plain_sgd", 0.0), 2)
    train = heterogeneity.trainer(chosen, task, make, lambda *state: seen.append(state))
    losses = train(0.1, 0).losses
    whole = {name: array[:16] for name, array in task.train.items()}
    assert losses[0] == pytest.approx(
        float(task.eval_loss(task.params, whole)), rel=1e-4
    )
    assert losses == pytest.approx(train(0.1, 1).losses, rel=1e-4)  # no seed decides
    assert [step for step, _ in seen[:3]] == [0, 1, 2]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("constant", [1, 1, 1]),
        ("linear", [1, 0.5, 0]),
        ("cosine", [1, 0.5, 0]),
        ("linear_with_warmup", [0.5, 10 / 18, 0]),
    ],
)
def test_schedules(name, expected):
    shape = heterogeneity.shape(name, 20)
    found = [float(shape(step)) for step in (0, 10, 20)]
    assert found == pytest.approx(expected, abs=1e-6)


def test_the_norm_clip_and_the_schedule_are_around_the_optimizer(
    checkpoint, texts, tmp_path
):
    chosen = settings(checkpoint, texts, tmp_path, schedule="linear")
    contender = heterogeneity.Contender("plain_sgd", 0.0)
    optimizer = heterogeneity.optimizer(chosen, contender, steps=2)(0.1)
    params = {"x": np.zeros(2, np.float32)}
    state = optimizer.init(params)
    gradient = {"x": np.array([6.0, 8.0], np.float32)}  # of norm 10
    for factor in (1.0, 0.5):
        update, state = optimizer.update(gradient, state, params)
        np.testing.assert_allclose(
            update["x"], [-0.06 * factor, -0.08 * factor], rtol=1e-6
        )


def test_adam_with_a_large_epsilon_goes_along_its_momentum():
    params = {"x": np.zeros(3, np.float32)}
    gradient = {"x": np.array([1e-4, -2e-4, 3e-4], np.float32)}
    updates = {}
    for name in ("adam", "adam_eps_1", "sign_sgd", "plain_sgd"):
        optimizer = OPTIMIZERS[name](1.0, 0.0)
        updates[name], _ = optimizer.update(gradient, optimizer.init(params), params)
    cosine = optax.tree.vdot(updates["adam_eps_1"], updates["plain_sgd"]) / (
        optax.tree.norm(updates["adam_eps_1"]) * optax.tree.norm(updates["plain_sgd"])
    )
    assert float(cosine) == pytest.approx(1, abs=1e-4)
    np.testing.assert_allclose(
        updates["adam"]["x"], updates["sign_sgd"]["x"], rtol=1e-3
    )


def test_the_second_papers_optimizers_are_known():
    assert set(SECOND_PAPER) <= set(OPTIMIZERS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "opera"}, "--task: expected one of rotten_tomatoes, .*; got opera"),
        ({"optimizer": ("none",)}, "--optimizer: expected some of"),
        ({"fraction": 1.0}, r"--fraction must be in \[0, 1\)"),
        ({"model": "resnet"}, "--model: for texts expected one of"),
    ],
)
def test_what_no_run_can_mean_is_refused(checkpoint, texts, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        heterogeneity.prepare(settings(checkpoint, texts, tmp_path / "run", **options))
    assert not (tmp_path / "run").exists()


def test_a_verdict_needs_a_run(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no run with a summary.json"):
        heterogeneity_verdict.main(tmp_path)


def test_eigenvalues_on_the_host_are_those_of_the_package():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(6, 14)).astype(np.float32)

    def loss(params, batch):
        whole = jnp.concatenate([params["b"], params["a"].ravel()])
        return 0.5 * jnp.sum((batch @ whole) ** 2) - jnp.sum(params["a"] ** 4)

    # The one for Lanczos, with eigenvalues of both signs, the other taken whole.
    params = {"a": -jnp.ones((4, 3)), "b": jnp.ones(2)}
    package = eigenvalues.on_device(loss)(params, a)
    host = eigenvalues.on_host(loss)(params, a)
    assert list(host) == list(package) == ["a", "b"]
    for name in host:
        assert host[name] == pytest.approx(package[name], rel=2e-2)
    assert host["a"][1] < 0 < host["a"][0]
