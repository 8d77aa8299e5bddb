"""A linear probe: how well logistic regression tells classes by a network's features."""

import warnings

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, top_k_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from clars.lab.data import Images, Splits, batched
from clars.lab.evaluation import Scores, dtype_of
from clars.lab.loading.loader import Loader

ITERATIONS = 200  # of L-BFGS


def probe(model: nn.Module, splits: Splits, batch_size: int, device: torch.device, workers: int = 0) -> Scores:
    """Fit logistic regression to the features of the training images, standardised, and measure it on the others.

    Each process does all of it, so that none waits for another's parameters and all come to the same numbers. With
    features that are not finite nothing is right.

    Args:
        model: images [n, c, h, w] -> features [n, d]; left in training mode.
        splits: what to fit to and what to measure on.
        batch_size: of a pass.
        device: of the passes.
        workers: that load.
    """
    model.eval()
    (seen, labels), (unseen, wanted) = (
        _features(model, images, batch_size, device, workers) for images in (splits.train, splits.test)
    )
    model.train()
    if not (np.isfinite(seen).all() and np.isfinite(unseen).all()):
        return Scores(0.0, 0.0 if splits.num_classes > 5 else None, float("nan"))
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=ITERATIONS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # after so many iterations it is as good as it gets
        classifier.fit(seen, labels)
    shares, known = classifier.predict_proba(unseen), classifier.classes_
    top1 = top_k_accuracy_score(wanted, shares, k=1, labels=known)
    top5 = top_k_accuracy_score(wanted, shares, k=5, labels=known) if len(known) > 5 else None
    return Scores(100 * top1, None if top5 is None else 100 * top5, log_loss(wanted, shares, labels=known))


@torch.no_grad()
def _features(
    model: nn.Module, images: Images, batch_size: int, device: torch.device, workers: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the features [n, d] and the labels [n] of all images."""
    loader = Loader(images, batched(images.items(), batch_size), device, workers)
    found = [(model(x.to(dtype_of(model))).double().cpu(), y.cpu()) for x, y in loader]
    features, labels = map(torch.cat, zip(*found, strict=True))
    return features.numpy(), labels.numpy()
