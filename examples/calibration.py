"""How good a classifier's probabilities are.

    assess(logits_NxC, labels_N) -> {"accuracy": ..., "nll": ..., "ece": ..., ...}

The second paper's metrics, with its 15 bins of equal width.
"""

import numpy as np
from scipy.special import log_softmax

BINS = 15


def assess(logits_NxC: np.ndarray, labels_N: np.ndarray) -> dict[str, float]:
    """Accuracy, F1, Matthews correlation, likelihood and calibration.

    nll     mean negative log-likelihood, in nats
    brier   mean squared difference of probabilities and labels, over rows and classes
    ece     mean gap of confidence and accuracy over the bins, weighted by their rows
    mce     the largest of these gaps
    """
    log_p_NxC = log_softmax(np.asarray(logits_NxC, np.float64), axis=-1)
    p_NxC, rows = np.exp(log_p_NxC), np.arange(len(labels_N))
    one_hot_NxC = np.eye(logits_NxC.shape[1])[labels_N]
    predicted_N, confidence_N = p_NxC.argmax(-1), p_NxC.max(-1)
    gaps, shares = calibration_gaps(confidence_N, predicted_N == labels_N)
    confusion_CxC = one_hot_NxC.T @ np.eye(logits_NxC.shape[1])[predicted_N]
    return {
        "accuracy": float(np.mean(predicted_N == labels_N)),
        "f1": _macro_f1(confusion_CxC),
        "matthews": _matthews(confusion_CxC),
        "nll": float(-log_p_NxC[rows, labels_N].mean()),
        "brier": float(np.mean((p_NxC - one_hot_NxC) ** 2)),
        "ece": float(np.sum(shares * gaps)),
        "mce": float(gaps.max()),
        "confidence": float(confidence_N.mean()),
    }


def calibration_gaps(
    confidence_N: np.ndarray, correct_N: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """|confidence - accuracy| of each bin (low, high], and its share of the rows."""
    edges = np.linspace(0, 1, BINS + 1)
    bin_N = np.clip(np.searchsorted(edges, confidence_N, side="left") - 1, 0, BINS - 1)
    counts = np.bincount(bin_N, minlength=BINS)
    differences = np.bincount(
        bin_N, weights=confidence_N - correct_N, minlength=BINS
    ) / np.maximum(counts, 1)
    return np.abs(differences), counts / len(confidence_N)


def _macro_f1(confusion_CxC: np.ndarray) -> float:
    """The mean over the classes that occur, or are predicted."""
    right = np.diag(confusion_CxC)
    both = confusion_CxC.sum(0) + confusion_CxC.sum(1)
    return float(np.mean(2 * right[both > 0] / both[both > 0]))


def _matthews(confusion_CxC: np.ndarray) -> float:
    """Of several classes; 0 where all labels or all predictions are the same."""
    n, right = confusion_CxC.sum(), np.trace(confusion_CxC)
    true_C, predicted_C = confusion_CxC.sum(1), confusion_CxC.sum(0)
    spread = (n**2 - predicted_C @ predicted_C) * (n**2 - true_C @ true_C)
    return (
        float((right * n - true_C @ predicted_C) / np.sqrt(spread)) if spread else 0.0
    )
