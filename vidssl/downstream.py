"""What is asked of a trained network? The recipe's sections `evaluation` and `finetune`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from vidssl.fields import Count, Decay, Rate, Ratio, Section, Share

__all__ = ["Evaluation", "Finetune"]


class Evaluation(Section):
    """Retrieval, nearest neighbours and linear probe."""

    protocol: Literal["p1_strict", "p1_ref", "p2", "centre"] = Field(
        default="p1_strict",
        description="p1_strict, p1_ref (CoCLR's retrieval; strict: centred by the train mean) | p2 (IIC's: 10 clips, last map) | centre",
    )
    windows: int = Field(
        default=5, ge=0, le=100_000, description="most windows of one video, evenly spread; 0: no limit"
    )
    crops: Literal["centre", "ten"] = Field(
        default="centre",
        description="of the linear probe's and fine-tuning's test: centre | ten (corners, centre, flips)",
    )
    crop: Ratio = Field(
        default=0.875,
        description="side of the test's squares in short sides of the frame, under p1_ref and p2 and with ten crops; the other protocols show the whole short side. 0.875: 112 of 128, 224 of 256 | 0.93333: 224 of 240",
    )
    batch: int = Field(default=16, ge=1, le=1_000_000, description="clips encoded at once")
    workers: int | None = Field(
        default=None,
        ge=0,
        le=100_000,
        description="Ray tasks that look at videos at once, one device each; 0: this process; null: this process, and on a "
        "cluster a task for each GPU, or for every trainer.cpus_per_worker cores",
    )
    ks: tuple[Count, ...] = Field(
        default=(1, 5, 10, 20, 50), min_length=1, max_length=1000, description="k of the recall at k (R@k)"
    )
    neighbours: int = Field(default=20, ge=1, le=1_000_000, description="k of the k-NN classifier")
    shots: tuple[Count, ...] = Field(
        min_length=1, max_length=1000, default=(1, 5), description="labelled videos per class of the few-shot probe"
    )
    held_out: float = Field(
        default=0.2,
        gt=0,
        lt=1,
        description="share of the training groups on which probe settings are chosen; never the test split",
    )
    probe_epochs: int = Field(
        default=100, ge=1, le=1_000_000, description="passes of the linear probe over the training split"
    )
    probe_lr: tuple[Rate, ...] = Field(
        min_length=1, max_length=1000, default=(0.1, 0.3, 1.0), description="rates tried on the held-out groups"
    )
    probe_weight_decay: tuple[Decay, ...] = Field(
        min_length=1, max_length=1000, default=(1e-3, 1e-4), description="decays tried on the held-out groups"
    )


class Finetune(Section):
    """Supervised training of the whole network from a pre-trained encoder."""

    epochs: int = Field(default=500, ge=1, le=1_000_000, description="passes over the training split")
    batch: int = Field(default=32, ge=1, le=1_000_000, description="videos in one step, of all workers together")
    optimizer: Literal["adam", "sgd"] = Field(default="adam", description="adam | sgd (momentum 0.9)")
    lr: float = Field(default=1e-3, gt=0, le=1e6, description="peak learning rate of the classifier")
    backbone_lr: float = Field(default=0.1, ge=0, le=1e6, description="the backbone's rate as a share of lr; 0: frozen")
    weight_decay: float = Field(default=1e-3, ge=0, le=1e6, description="L2 penalty of every weight")
    dropout: float = Field(
        default=0.9, ge=0, lt=1, description="share of the features that is dropped before the classifier"
    )
    milestones: tuple[Share, ...] = Field(
        max_length=1000, default=(0.8, 0.9), description="shares of the run at which lr is divided by ten"
    )
    schedule: Literal["milestones", "plateau"] = Field(
        default="milestones",
        description="lr is divided by ten at the milestones | plateau: when the held-out loss has not fallen for patience epochs",
    )
    patience: int = Field(default=50, ge=0, le=1_000_000, description="epochs without a lower held-out loss (plateau)")
    augment: Literal["as_trained", "supervised"] = Field(
        default="as_trained",
        description="how its clips are changed: as_trained (by augment.preset) | supervised (as CoCLR, CPR and ViCC fine-tune, see augment.preset)",
    )
    choose: Literal["held_out", "last"] = Field(
        default="held_out",
        description="held_out: the best epoch on evaluation.held_out of the training groups | last: train on all of the split and take the last epoch",
    )
    workers: int | None = Field(
        default=None,
        ge=0,
        le=100_000,
        description="Ray Train workers that share each batch, one device each; 0: this process; null: this process, and on "
        "a cluster as many as it has GPUs (or trainer.cpus_per_worker cores) and the batch can be shared among",
    )
    sync_bn: bool = Field(
        default=True,
        description="several workers: batch norms take the statistics of all of them, so that their number changes nothing; "
        "false: each its own, as published",
    )

    @model_validator(mode="after")
    def _plateau_of_held_out_videos(self) -> Finetune:
        if self.schedule == "plateau" and self.choose == "last":
            raise ValueError(
                "finetune.schedule=plateau looks at held-out videos and finetune.choose=last holds none out; type "
                "finetune.choose=held_out, or finetune.schedule=milestones"
            )
        return self
