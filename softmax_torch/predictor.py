"""Prediction with a trained model: from raw inputs to class names and probabilities.

    raw  ->  x = preprocessing(raw)  ->  logits z  ->  p = softmax(calibration(z))
                                               ->  sets = conformal(z)
                                               ->  class = threshold(z), of two classes, on request
              features, z                      ->  p = laplace(z, features)

A checkpoint, or weights exported from one, holds all of these. Either is read without running code
from it. Lightning is not needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from softmax_torch import backbones
from softmax_torch.calibration import Calibration
from softmax_torch.conformal import ConformalSets
from softmax_torch.decision_threshold import DecisionThreshold, check_two_classes
from softmax_torch.laplace import METHODS, Method, Posterior
from softmax_torch.modules import Classifier, SoftmaxRegression
from softmax_torch.post_hoc import PostHoc, refuse_beside_laplace
from softmax_torch.storage.checkpoints import read_checkpoint
from softmax_torch.storage.exported_weights import read_exported_weights
from softmax_torch.storage.finite_weights import check_finite
from softmax_torch.storage.run_results import checkpoint_of
from softmax_torch.threads import is_small, one_thread_if

try:
    from softmax_torch import preprocessing
    from softmax_torch.preprocessing import Preprocessing
except ImportError as error:
    raise ImportError(
        f"{error}. Raw inputs need more than the operator does: pip install 'softmax-torch[train]'"
    ) from error

__all__ = [
    "Predicted",
    "PredictedRows",
    "Predictor",
    "check_named",
    "load",
    "names_in_sets",
    "network",
]

PREDICTED_TOGETHER = 4096
"""Largest number of samples of a file that are predicted together."""

PIXELS = 1 << 25
"""Largest number of values in those samples: 128 MiB in float32."""


class Predicted(NamedTuple):
    """Names (n,) and class probabilities (n, C) of samples of a file."""

    ids: list[str]
    probabilities: Tensor


class PredictedRows(NamedTuple):
    """All that is predicted for samples of a file.

    Attributes:
        ids: names (n,) of the samples.
        probabilities: of the classes (n, C).
        sets: which classes are in the set of each sample, bool (n, C); None if not asked for.
        classes: what the decision threshold decides, int64 (n,); None without one.
    """

    ids: list[str]
    probabilities: Tensor
    sets: Tensor | None = None
    classes: Tensor | None = None


class Predictor:
    """A trained classifier that takes raw inputs.

    Raw inputs are of the kind it was trained on: paths of images, Pillow images or arrays of bytes;
    rows of a table, as a data frame or a dict of columns; vectors as an array. ``predict_file``
    takes files.

    Args:
        network: from x (n, ...) to logits (n, C); it is put into evaluation mode.
        preprocessing: from raw inputs to x, and names of classes.
        calibration: applied to logits; None for none.
        device: where the network works.
        hyper_parameters: arguments of the network as stored in a checkpoint; None if unknown.
        conformal: makes sets of classes from logits before ``calibration``; None for none.
        threshold: decides between two classes, from logits before ``calibration``; None to predict
            the most probable class.
        laplace: the distribution of the head's weights; None for none.
        laplace_method: how it makes probabilities, "probit" or "sampling"; None leaves it out.

    Raises:
        ValueError: the device does not exist; there is a threshold for other than two classes; a
            Laplace approximation is to be applied beside a calibration, or to another network than
            a ``Classifier``, or there is none.
    """

    def __init__(
        self,
        network: nn.Module,
        preprocessing: Preprocessing,
        calibration: Calibration | None = None,
        device: torch.device | str = "cpu",
        hyper_parameters: dict[str, Any] | None = None,
        conformal: ConformalSets | None = None,
        threshold: DecisionThreshold | None = None,
        laplace: Posterior | None = None,
        laplace_method: Method | None = None,
    ) -> None:
        if threshold is not None:
            check_two_classes(len(preprocessing.class_names))
        refuse_beside_laplace(laplace_method, calibration, threshold)
        if laplace_method is not None:
            PostHoc(laplace=laplace).require("laplace", "laplace_method")
            if not isinstance(network, Classifier):
                raise ValueError(
                    "network: expected a softmax_torch.modules.Classifier with a Laplace "
                    f"approximation of its head, got {type(network).__name__}"
                )
        try:
            self.device = torch.device(device)
            self.network = network.to(self.device).eval()
        except (RuntimeError, AssertionError) as error:  # the latter of a torch without CUDA
            raise ValueError(f"device: expected one that is here, got {device}: {error}") from None
        self.preprocessing, self.calibration = preprocessing, calibration
        self.hyper_parameters, self.conformal = hyper_parameters, conformal
        self.threshold = threshold
        self.laplace, self.laplace_method = laplace, laplace_method
        # Inputs are cast to the dtype of the weights, such as float64, only in ``logits``.
        self.dtype = next((p.dtype for p in network.parameters()), torch.get_default_dtype())

    @property
    def rows(self) -> int:
        """Number of samples of a file that are predicted together."""
        return max(1, min(PREDICTED_TOGETHER, PIXELS // self.preprocessing.in_features))

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class index."""
        return self.preprocessing.class_names

    @torch.inference_mode()
    def logits(self, x: Tensor) -> Tensor:
        """Return logits (n, C) in float32 of x (n, ...), calibrated if there is a calibration.

        With a Laplace approximation they are log-probabilities.
        """
        with one_thread_if(self._is_small(len(x))):
            return self._both_logits(x)[1]

    @torch.inference_mode()
    def logits_and_sets(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``logits`` and which classes are in the conformal set of each x, bool (n, C).

        Raises:
            ValueError: there are no conformal sets.
        """
        PostHoc(conformal=self.conformal).require("conformal", "sets")
        assert self.conformal is not None
        with one_thread_if(self._is_small(len(x))):
            z, predicted = self._both_logits(x)
            return predicted, self.conformal(z)

    @torch.inference_mode()
    def uncalibrated_logits(self, x: Tensor) -> Tensor:
        """Return logits (n, C) in float32 of x (n, ...), without any calibration."""
        z: Tensor = self.network(x.to(self.device, self.dtype))
        return z.float()

    def _both_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits as they were trained, and as they are predicted."""
        if self.laplace_method is None:
            z = self.uncalibrated_logits(x)
            return z, z if self.calibration is None else self.calibration(z)
        assert self.laplace is not None
        assert isinstance(self.network, Classifier)
        features, z = self.network.features_and_logits(x.to(self.device, self.dtype))
        z = z.float()
        return z, self.laplace.predict_log_proba(z, features, self.laplace_method)

    def _is_small(self, samples: int) -> bool:
        """Return whether so many samples have too little to do for several threads of a CPU.

        False for a network with a backbone, or of the user's own, whose work is unknown.
        """
        net = self.network
        if not isinstance(net, Classifier) or not isinstance(net.backbone, nn.Identity):
            return False
        return is_small(samples, net.model.in_features, net.model.num_classes)

    def predict_proba(self, raw: Any) -> Tensor:
        """Return class probabilities (n, C) of raw inputs, in float32 on the CPU."""
        return self.logits(self.preprocessing.tensor(raw)).softmax(1).cpu()

    def predict(self, raw: Any) -> list[str]:
        """Return the name of each raw input's class: the most probable, or by the threshold."""
        found = self._predicted([], self.preprocessing.tensor(raw), sets=False)
        classes = found.probabilities.argmax(1) if found.classes is None else found.classes
        return [self.class_names[c] for c in classes.tolist()]

    def predict_set(self, raw: Any) -> list[list[str]]:
        """Return the names of the classes in the conformal set of each raw input.

        The most probable class comes first. A set may be empty (``softmax_torch.conformal``).

        Raises:
            ValueError: the checkpoint has no conformal sets.
        """
        logits, sets = self.logits_and_sets(self.preprocessing.tensor(raw))
        return names_in_sets(logits, sets, self.class_names)

    def predict_file(self, path: str | Path) -> Iterator[Predicted]:
        """Yield predictions for a file or folder, which may be larger than memory."""
        for rows in self.predict_rows(path):
            yield Predicted(rows.ids, rows.probabilities)

    def predict_rows(self, path: str | Path, sets: bool = False) -> Iterator[PredictedRows]:
        """Yield all that is predicted for a file or folder, which may be larger than memory.

        Args:
            path: the file or folder.
            sets: whether conformal sets are predicted too.

        Raises:
            ValueError: sets are asked for, and the checkpoint has none.
        """
        if sets:
            PostHoc(conformal=self.conformal).require("conformal", "sets")
        for ids, x in self.preprocessing.read(Path(path), self.rows):
            yield self._predicted(ids, x, sets)

    @torch.no_grad()  # callers may write into the tensors, unlike those of inference mode
    def _predicted(self, ids: list[str], x: Tensor, sets: bool) -> PredictedRows:
        """Return what is predicted for samples x (n, ...), on the CPU."""
        with one_thread_if(self._is_small(len(x))):
            z, predicted = self._both_logits(x)
            p = predicted.softmax(1)
            members = self.conformal(z) if sets and self.conformal is not None else None
            classes = None if self.threshold is None else self.threshold(z)
        members, classes = (None if t is None else t.cpu() for t in (members, classes))
        return PredictedRows(ids, p.cpu(), members, classes)


def names_in_sets(scores: Tensor, sets: Tensor, class_names: Sequence[str]) -> list[list[str]]:
    """Return the names of the classes in each set, in the order of descending scores.

    Args:
        scores: (n, C), such as logits or probabilities.
        sets: which classes are in the set of each sample, bool (n, C).
        class_names: C names.
    """
    # Classes outside come last, in no order.
    order = scores.masked_fill(~sets, -torch.inf).argsort(dim=1, descending=True, stable=True)
    sizes = sets.sum(1).tolist()
    longest = max(sizes, default=0)
    rows = zip(order[:, :longest].tolist(), sizes, strict=True)
    return [[class_names[c] for c in row[:size]] for row, size in rows]


def load(
    path: str | Path,
    calibrated: bool = False,
    device: torch.device | str = "cpu",
    backbone: str | None = None,
    threshold: float | Literal["stored"] | None = None,
    laplace: Method | None = None,
) -> Predictor:
    """Return the classifier in a checkpoint, or in weights that were exported from one.

    Args:
        path: a .ckpt of a run; the directory of a run, for the checkpoint that ``fit`` printed at
            its end; or exported weights, a .safetensors file or the folder with one.
        calibrated: whether to apply the calibration in a checkpoint. With exported weights, the
            calibration that they were exported with is always applied.
        device: where the network works.
        backbone: import path of the net before the head, if the checkpoint was trained with one by
            its import path. No module is imported because a checkpoint names it.
        threshold: of two classes, the probability of the second from which on ``predict`` returns
            it: a number for the probabilities that ``predict_proba`` returns, or "stored" for the
            threshold in the checkpoint, of the probabilities that it was chosen for. None predicts
            the most probable class.
        laplace: "probit" or "sampling" to take the uncertainty of the weights into account, by the
            Laplace approximation in a checkpoint (``softmax_torch.laplace``). Weights that were
            exported with it always do.

    Raises:
        FileNotFoundError, ValueError: there is no such file; it is damaged, or no checkpoint of a
            run; its weights are not finite; it lacks preprocessing, or the calibration, threshold
            or Laplace approximation that is asked for, or both a calibration and a Laplace
            approximation are; the threshold is not in (0, 1), or there are not two classes; the
            device does not exist; the backbone is not the checkpoint's, or is an import path that
            was not given.
        ImportError: safetensors, which reads exported weights, is not installed; or the backbone
            cannot be imported.
    """
    if laplace not in (None, *METHODS):
        raise ValueError(f"laplace: expected {', '.join(METHODS)} or None, got {laplace!r}")
    path = checkpoint_of(Path(path))
    if path.is_dir() or path.suffix == ".safetensors":
        content = read_exported_weights(path)
        calibrated = calibrated or content.get("calibration") is not None
        laplace = laplace or (content.get("laplace") or {}).get("method")
    else:
        content = read_checkpoint(path)
    if "preprocessing" not in content:
        raise ValueError(
            f"{path}: expected a checkpoint with the preprocessing of its data, got one without: "
            "it was trained with data of another kind, or by an earlier version"
        )
    post_hoc = PostHoc.of_checkpoint(content)
    refuse_beside_laplace(laplace, calibrated, threshold)
    if calibrated:
        post_hoc.require("calibration", path)
    if laplace is not None:
        post_hoc.require("laplace", path)
    decision = post_hoc.decision(threshold, calibrated, path)
    check_named(content["hyper_parameters"].get("backbone"), backbone, path)
    net = network(content["hyper_parameters"], content["state_dict"])
    check_finite(content["state_dict"], dict(net.named_parameters()), path)
    return Predictor(
        net,
        preprocessing.from_state_dict(content["preprocessing"]),
        post_hoc.calibration if calibrated else None,
        device,
        content["hyper_parameters"],
        post_hoc.conformal,
        decision,
        post_hoc.laplace,
        laplace,
    )


def check_named(stored: str | None, given: str | None, path: Path) -> None:
    """Raise ValueError unless a user names the import path in a checkpoint, and no other net."""
    needed = stored is not None and backbones.is_import_path(stored)
    if (needed or given is not None) and stored != given:
        why = ", since loading it runs the code of a module" if needed else ""
        raise ValueError(
            f"backbone: expected {stored if stored is not None else 'none'}, the net in {path}, to "
            f"be named{why}; got {given or 'none'}"
        )


def network(hyper_parameters: dict[str, Any], state_dict: dict[str, Tensor]) -> Classifier:
    """Rebuild the trained net, from x (n, ...) to logits (n, C).

    Args:
        hyper_parameters: hyper-parameters with the name of the backbone, if there is one. An
            import path is imported: check that a user gave it.
        state_dict: weights, which determine the dtype and the sizes.

    Raises:
        ValueError: the backbone was a user's module, which has no name to rebuild it by.
    """
    name = hyper_parameters.get("backbone")
    if name is None and any(key.startswith("backbone.") for key in state_dict):
        raise ValueError(
            "checkpoint: expected a named backbone, got one that was a module; build the net in "
            "Python and pass it to Predictor"
        )
    weight = state_dict["model.linear.weight"]
    C, D = weight.shape
    bias = "model.linear.bias" in state_dict
    backbone = nn.Identity() if name is None else backbones.make(name).to(weight.dtype)
    net = Classifier(backbone, SoftmaxRegression(D, C, bias, dtype=weight.dtype))
    net.load_state_dict(state_dict)
    return net
