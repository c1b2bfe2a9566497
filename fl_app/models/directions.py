"""Whether a larger value of a metric is better: the one table, by the metric's name.

It holds torchmetrics' ``higher_is_better``, scikit-learn's rule that what ends in ``score`` is
better when larger and what ends in ``error``, ``loss`` or ``distance`` when smaller, and usual
short names.

References
----------
scikit-learn's scorers: https://scikit-learn.org/stable/modules/model_evaluation.html
torchmetrics: https://lightning.ai/docs/torchmetrics/stable/all-metrics.html
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

__all__ = ["higher_is_better"]

_HIGHER = """
acc, accuracy, auc, auc roc, auprc, aucpr, auroc, aucroc, bleu, c index, chrf, cindex, completeness,
concordance, critical success, d2, d2 absolute error, d2 brier, d2 log loss, d2 pinball, d2 tweedie,
dcg, dice, elbo, em, exact match, explained variance, f beta, f measure, f1, f2, fbeta, fidelity,
fmeasure, g mean, gmean, hit, hits, homogeneity, inception, info preserved, informedness,
intelligibility, intersection over union, io u, iou, jaccard, kappa, likelihood, map, matthews, mcc,
meteor, miou, mrr, msssim, ndcg, negative predictive value, npv, pesq, positive likelihood ratio,
ppv, prauc, precision, predictive value, psnr, quality, r2, rand, recall, reciprocal rank, reward,
roc auc, rocauc, rouge, sdr, selectivity, sensitivity, signal distortion ratio, signal noise ratio,
silhouette, similarity, snr, spearman, specificity, ssim, stoi, success, tnr, tpr, true negative,
true positive, v measure, youden
"""
_LOWER = """
bce, brier, bytes down, bytes up, cer, cost, cross entropy, crossentropy, crps, davies bouldin,
deviance, distance, divergence, ece, eer, error, fall out, fallout, false alarm, false discovery,
false negative, false positive, fdr, fid, fnr, fpr, gap, hamming, hausdorff, hd95, info lost, kid,
kl, levenshtein, log cosh, loss, lpips, mae, mape, medae, misclassification, miss, mse, msle,
negative likelihood ratio, negative log likelihood, nll, nmse, nrmse, patch similarity, perplexity,
rae, ranked probability, regret, relative global dimensionless synthesis, risk, rmse, rmsle, rse,
seconds, smape, spectral angle mapper, ter, translation edit, wape, wer, xent
"""
_TABLE = {
    tuple(phrase.split()): higher
    for text, higher in ((_HIGHER, True), (_LOWER, False))
    for phrase in text.split(",")
}
_LONGEST = max(map(len, _TABLE))
# What may stand behind a metric's name and turns nothing.
_NEUTRAL = re.compile(
    r"\d+|k|at|top|p\d+|worst|best|mean|avg|average|rate|ratio|index|coef|coefficient|corr|corrcoef|"
    r"measure|macro|micro|weighted|samples|binary|multiclass|multilabel|ovr|ovo|train|val|test"
)
_WORD = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+\d*|[A-Z]+\d*|\d+")


def higher_is_better(metric: str, known: Mapping[str, bool] | None = None) -> bool | None:
    """Return whether a larger value of a metric is better, judged by its name.

    Parameters
    ----------
    metric : str
        A name, for example ``accuracy``, ``top_5_accuracy``, ``BinaryAUROC``, ``neg_log_loss``, or
        a key of a run, for example ``server/mse``, ``fairness/accuracy_worst``.
    known : mapping of str to bool, optional
        Names that are looked up here before the table.

    Returns
    -------
    bool or None
        None where the name does not tell.

    Examples
    --------
    >>> [higher_is_better(name) for name in ("AUROC", "dice_loss", "accuracy_gap", "niceness")]
    [True, False, False, None]
    >>> higher_is_better("eval/niceness", {"niceness": True})
    True
    """
    for name, higher in (known or {}).items():
        pattern = rf"(.*/|.*_client_)?{re.escape(name)}(/.*|_worst|_p10)?"
        if re.fullmatch(pattern, metric):
            return higher
    plain = _judged(re.findall(r"[a-z0-9]+", metric.lower()))
    return _judged([w.lower() for w in _WORD.findall(metric)]) if plain is None else plain


def _judged(words: Sequence[str]) -> bool | None:
    """Judge by the longest phrase of the table at the end."""
    rest = list(words)
    while rest:
        for size in range(min(_LONGEST, len(rest)), 0, -1):
            higher = _TABLE.get(tuple(rest[-size:]))
            if higher is not None:
                return _turned(higher, rest[:-size])
        last = rest.pop()
        if last == "score":
            judged = _judged(rest)
            return _turned(True, rest) if judged is None else judged
        if not _NEUTRAL.fullmatch(last):
            return None
    return None


def _turned(higher: bool, before: Sequence[str]) -> bool | None:
    """Turn it where the name's beginning does: scikit-learn's ``neg_log_loss``."""
    if not {"minus", "inverse", "inverted"}.isdisjoint(before):
        return None
    return higher is {"neg", "negative"}.isdisjoint(before)
