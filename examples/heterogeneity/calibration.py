"""How good a classifier's probabilities are.

    assess(logits_NxC, labels_N) -> {"accuracy": ..., "nll": ..., "ece": ..., ...}

The second paper's metrics, with its 15 bins of equal width.
"""

import numpy as np
from scipy.special import log_softmax
from sklearn.calibration import calibration_curve
from sklearn.metrics import f1_score, matthews_corrcoef

BINS = 15


def assess(logits_NxC: np.ndarray, labels_N: np.ndarray) -> dict[str, float]:
    """Accuracy, F1, Matthews correlation, likelihood and calibration.

    f1      mean over the classes that occur, or are predicted
    nll     mean negative log-likelihood, in nats
    brier   mean squared difference of probabilities and labels, over rows and classes
    ece     mean gap of confidence and accuracy over the bins, weighted by their rows
    mce     the largest of these gaps
    """
    log_p_NxC = log_softmax(np.asarray(logits_NxC, np.float64), axis=-1)
    p_NxC, rows = np.exp(log_p_NxC), np.arange(len(labels_N))
    one_hot_NxC = np.eye(logits_NxC.shape[1])[labels_N]
    predicted_N, confidence_N = p_NxC.argmax(-1), p_NxC.max(-1)
    gaps, weights = calibration_gaps(confidence_N, predicted_N == labels_N)
    return {
        "accuracy": float(np.mean(predicted_N == labels_N)),
        "f1": float(f1_score(labels_N, predicted_N, average="macro")),
        "matthews": float(matthews_corrcoef(labels_N, predicted_N)),
        "nll": float(-log_p_NxC[rows, labels_N].mean()),
        "brier": float(np.mean((p_NxC - one_hot_NxC) ** 2)),
        "ece": float(np.sum(weights * gaps)),
        "mce": float(gaps.max()),
        "confidence": float(confidence_N.mean()),
    }


def calibration_gaps(
    confidence_N: np.ndarray, correct_N: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """|confidence - accuracy| of each bin that has rows, and its fraction of them."""
    accuracy, confidence = calibration_curve(
        correct_N, confidence_N, n_bins=BINS, pos_label=True
    )
    # scikit-learn's own bins, which it does not count: (low, high].
    edges = np.linspace(0, 1, BINS + 1)
    counts = np.bincount(np.searchsorted(edges[1:-1], confidence_N))
    return np.abs(confidence - accuracy), counts[counts > 0] / len(confidence_N)
