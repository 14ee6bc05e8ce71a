"""Two views of videos whose class both show, each beside something louder of its own."""

import numpy as np


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def two_views(count, dim=16, classes=12, seed=0, shared=1.0, own=3.0, noise=0.3, of_class=6):
    """Unit rows of two views, and labels: class means live in `of_class` dimensions, nuisances in as many of each view.

    Args:
        count: n.
        dim: D.
        classes: Number of classes.
        seed: Of the world.
        shared: Size of what both views show.
        own: Size of what only one shows.
        noise: Size of the rest.
        of_class: Dimensions of the class.
    """
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes, count)
    means = rng.standard_normal((classes, of_class))
    views = {}
    for name in ("residual", "rgb"):
        latent = np.concatenate(
            [
                shared * (means[label] + 0.3 * rng.standard_normal((count, of_class))),
                own * rng.standard_normal((count, of_class)),
                noise * rng.standard_normal((count, dim - 2 * of_class)),
            ],
            1,
        )
        mixing, _ = np.linalg.qr(rng.standard_normal((dim, dim)))
        views[name] = unit(latent @ mixing + 0.5).astype(np.float32)
    return views, label


def rotated(rows, seed):
    """The same rows after a rotation of their space."""
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((rows.shape[1],) * 2))
    return (rows @ rotation).astype(np.float32)


def slow_scores(rows):
    """[n, n] inner products of rows with themselves, in double precision, none with itself."""
    scores = rows.astype(np.float64) @ rows.astype(np.float64).T
    np.fill_diagonal(scores, -np.inf)
    return scores


def precision(rows, label, k=5):
    """Share of each row's k nearest that have its class."""
    nearest = np.argsort(-slow_scores(rows), axis=1)[:, :k]
    return float((label[nearest] == label[:, None]).mean())
