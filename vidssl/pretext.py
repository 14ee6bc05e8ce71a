"""What is learnt, and from which positives? The sections of the pretext task and of mining."""

from __future__ import annotations

from operator import attrgetter
from typing import Literal

from pydantic import Field, field_validator, model_validator

from vidssl.fields import Candidates, Count, Epoch, MethodName, Place, Ratio, Section, Steps, StrategyName, View
from vidssl.tables.methods import METHODS, MethodTraits, Streams
from vidssl.tables.strategies import STRATEGIES, StrategyTraits

__all__ = ["Iic", "Mining", "Pretext", "Vicc"]


class Vicc(Section):
    """Cross-stream prototypes (`method.name=vicc`)."""

    streams: Literal["single", "cross"] = Field(
        default="single", description="single (two clips of one stream) | cross (and the frozen second stream)"
    )
    prototypes: int = Field(default=300, ge=1, le=1_000_000, description="P, prototypes that clips are assigned to")
    epsilon: float = Field(default=0.05, ge=1e-3, le=100, description="temperature of Sinkhorn's assignment")
    iterations: int = Field(default=3, ge=1, le=1000, description="rounds of Sinkhorn")
    queue: int = Field(
        default=1920, ge=0, le=100_000_000, description="rows of all ranks that join the assignment; 0: none"
    )
    queue_from_epoch: int = Field(default=150, ge=0, le=1_000_000, description="epoch from which the queue is used")
    freeze_epochs: int = Field(
        default=100, ge=0, le=1_000_000, description="epochs in which the prototypes do not move"
    )
    second_view_grad: bool = Field(
        default=True, description="false: the second clip is encoded without gradient, as the published runs did"
    )


class Iic(Section):
    """Inter-intra contrast (`method.name=iic`)."""

    negatives: int = Field(
        default=1024, ge=1, le=100_000_000, description="K, other videos drawn from the memories for each row"
    )
    intra: Literal["none", "repeat", "shuffle", "rot", "rot90"] = Field(
        default="repeat", description="how a clip becomes its own negative"
    )
    intra_of: Literal["first", "second"] = Field(
        default="first", description="view it is made from: the first (IIC) or the second (IICv2)"
    )
    intra_negative: Literal["bank", "live", "live_stopped"] = Field(
        default="bank",
        description="bank (what the memory holds, as published) | live (this step's, with gradient) | live_stopped",
    )
    normalize: bool = Field(default=False, description="unit rows in the scores; false as published (IICv2: true)")
    loss: Literal["softmax", "nce"] = Field(default="softmax", description="softmax | nce (binary, constant Z)")
    momentum: float = Field(default=0.5, ge=0, lt=1, description="share of the old row that the memories' update keeps")


class Pretext(Section):
    """The pretext task."""

    name: MethodName = Field(
        default="cpr", description=" | ".join(f"{name} ({traits.says})" for name, traits in METHODS.items())
    )
    view: View = Field(default="rgb", description="the view whose stream is trained")
    second_view: View = Field(
        default="residual",
        description="the second view: its stream mines (coclr, cpr) or assigns (vicc); iic contrasts it with the first",
    )
    first_from: Place | None = Field(
        default=None, description="run, export or published checkpoint that the trained stream starts from"
    )
    second_from: Place | None = Field(
        default=None,
        description="run, export or published checkpoint with the second view's trained encoder; none: it is trained in the warm-up",
    )
    cascade: bool = Field(
        default=False, description="infonce, iic: CPR's mined positives on top (coclr and cpr always mine)"
    )
    hold_until_full: bool = Field(
        default=False, description="no optimizer step before the queue is full, as CoCLR and CPR are published"
    )
    warmup_steps: int = Field(
        default=0,
        ge=0,
        le=1_000_000_000,
        description="coclr, cpr: steps of InfoNCE on both streams before mining starts and the second is frozen; with cascade: steps without it",
    )
    temperature: float = Field(default=0.07, ge=1e-4, le=1000, description="of every softmax")
    momentum: float = Field(
        default=0.999, ge=0, lt=1, description="share of the old weights that the key encoder keeps in a step"
    )
    queue: int = Field(default=2048, ge=1, le=100_000_000, description="K, keys kept as negatives; any size")
    self_positive: Literal["keep", "drop_p", "remove"] = Field(
        default="drop_p",
        description="own key as positive when there are others: keep | drop_p (CoCLR: a negative in drop_p of the steps) | remove (out of the softmax)",
    )
    drop_p: float = Field(default=0.9, ge=0, le=1, description="share of the steps in which drop_p applies")
    exclude_siblings: bool = Field(default=False, description="infonce: clips of the same group are not negatives")
    shuffle_bn: bool = Field(
        default=True, description="keys are computed on rows shuffled over ranks (only with several ranks)"
    )
    vicc: Vicc = Vicc()
    iic: Iic = Iic()

    @property
    def traits(self) -> MethodTraits:
        """What is known of the method before it is loaded."""
        return METHODS[self.name]

    @property
    def streams(self) -> Streams:
        """What it learns with, its own option looked at."""
        option = self.traits.streams_option
        return "cross" if option and attrgetter(option)(self) == "cross" else self.traits.streams


class Mining(Section):
    """The cascade and where it runs."""

    where: Literal["actor", "inline", "off"] = Field(
        default="actor",
        description="actor (whole data set, asynchronous) | inline (queue of every rank, as published) | off",
    )
    strategy: StrategyName = Field(
        default="cascade", description=" | ".join(f"{name} ({traits.says})" for name, traits in STRATEGIES.items())
    )
    space: Literal["raw", "white", "canonical", "auto"] = Field(
        default="raw",
        description="where scores are taken: raw (rows as they are, as published) | white (every direction of a view counts alike) | canonical (the directions that both views share) | auto (canonical where enough rows share enough, else raw; says why)",
    )
    refit_steps: Steps | None = Field(
        default=None,
        description="steps from one fit of the space to the next; none: until half of the rows have been written anew",
    )
    stages: int = Field(default=3, ge=1, le=64, description="S, stages of the cascade")
    ratio: Ratio | None = Field(default=None, description="share kept by each stage; give this or pool")
    pool: Candidates | None = Field(
        default=None, description="candidates that reach the last stage: ratio = (pool/N)^(1/(S-1))"
    )
    topk: int = Field(default=5, ge=1, le=100_000, description="k positives per row")
    weights: Literal["equal", "agreement"] = Field(
        default="equal",
        description="how much a mined positive counts in the loss: equal (as published) | agreement (by both views' mean cosine; inline only)",
    )
    progressive: tuple[tuple[Epoch, Count], ...] = Field(
        max_length=1000,
        default=(),
        description="pairs [epoch, k]: from that epoch on k positives (at most topk); empty: topk all along",
    )
    last_view: Literal["main", "alternate"] = Field(
        default="main", description="view of the last stage; main as published"
    )
    max_staleness_steps: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000_000,
        description="older positives are not used: the row falls back to its own instance; none: an epoch, or (where the miners need longer for one pass over the rows) that pass and two epochs",
    )
    lookahead: int = Field(default=2, ge=1, le=10_000, description="steps that mining runs ahead of the order")
    backend: Literal["auto", "numpy", "torch", "faiss", "oracle"] = Field(
        default="auto", description="auto picks by N, k and device"
    )
    bank_dtype: Literal["float32", "float16", "bfloat16"] = Field(
        default="float32",
        description="of the bank's rows; float16 and bfloat16 halve its memory and what is sent to it",
    )
    pool_slots: Candidates | None = Field(
        default=None, description="mine among so many slots of the bank, not all (actor); null: all"
    )
    pool_of: Literal["random", "recent"] = Field(
        default="random", description="with pool_slots: any filled slots | those that were written last"
    )
    miners: int = Field(
        default=0,
        ge=0,
        le=10_000,
        description="actors that mine beside the bank, each with a copy of its rows; 0: the bank's own process mines",
    )
    cpus_per_miner: int = Field(default=1, ge=1, le=1024, description="cores of one miner")
    gpus_per_miner: float = Field(
        default=0.0,
        ge=0,
        le=8,
        description="share of a GPU that one miner takes, .25 as well as 1; 0: it mines on cores",
    )
    dtype: Literal["float32", "float16", "bfloat16"] | None = Field(
        default=None, description="of the rows that miners hold; null: as bank_dtype"
    )
    miner_node: str | None = Field(
        default=None, max_length=200, description="Ray resource of the nodes that miners run on; null: any node"
    )
    shards: int = Field(
        default=1,
        ge=1,
        le=10_000,
        description="processes that hold the bank's rows, a range of the videos each, on the nodes of the cluster; 1: the bank's own process does",
    )
    cpus_per_shard: int = Field(
        default=1, ge=0, le=1024, description="cores of one shard, which mines on them; 0: none are booked"
    )
    shard_node: str | None = Field(
        default=None, max_length=200, description="Ray resource of the nodes that shards run on; null: any node"
    )
    bank_node: str | None = Field(
        default=None,
        max_length=200,
        description="Ray resource of the nodes that the bank's process may run on; null: the driver's node where its memory is "
        "enough, else any",
    )
    snapshot_every_steps: int = Field(
        default=0, ge=0, le=1_000_000_000, description="extra bank snapshots beside those of checkpoints; 0: none"
    )

    @property
    def traits(self) -> StrategyTraits:
        """What is known of the strategy."""
        return STRATEGIES[self.strategy]

    @field_validator("where", mode="before")
    @classmethod
    def _off_is_a_word(cls, given: object) -> object:
        return "off" if given is False else given  # YAML reads a bare `off` as false

    @model_validator(mode="after")
    def _rising(self) -> Mining:
        epochs = [epoch for epoch, _ in self.progressive]
        if (
            epochs != sorted(set(epochs))
            or (epochs and epochs[0] != 0)
            or any(k > self.topk for _, k in self.progressive)
        ):
            raise ValueError(
                f"mining.progressive={[list(p) for p in self.progressive]} must start at epoch 0, rise, and ask for at most mining.topk={self.topk}; "
                "type e.g. mining.progressive=[[0,1],[20,3],[40,5]]"
            )
        return self

    @model_validator(mode="after")
    def _cosines_to_weigh_by(self) -> Mining:
        if self.weights == "agreement" and self.where == "actor":
            raise ValueError(
                "mining.weights=agreement weighs by both views' rows in the queue, and of what mining.where=actor sends only the trained "
                "view's are there; type mining.where=inline, or leave mining.weights out"
            )
        return self

    @model_validator(mode="after")
    def _a_bank_to_draw_from(self) -> Mining:
        if self.pool_slots is not None and self.where == "inline":
            raise ValueError(
                f"mining.pool_slots={self.pool_slots} draws from a bank, and mining.where=inline has a queue; "
                "type mining.where=actor, or a smaller method.queue"
            )
        return self

    @model_validator(mode="after")
    def _shards_mine_by_themselves(self) -> Mining:
        if self.shards == 1:
            if self.shard_node is not None:
                raise ValueError(
                    f"mining.shard_node={self.shard_node} is about shards, and mining.shards=1 has none; type mining.shards=2"
                )
            return self
        sharded = f"mining.shards={self.shards}"
        if self.where != "actor":
            raise ValueError(
                f"{sharded} are of a bank, and mining.where={self.where} has none; type mining.where=actor"
            )
        if self.traits.ranks:
            others = " or ".join(name for name, one in STRATEGIES.items() if not (one.ranks or one.reads_labels))
            raise ValueError(
                f"mining.strategy={self.strategy} ranks the whole bank, and {sharded} hold a part each; "
                f"type mining.shards=1, or mining.strategy={others}"
            )
        if self.miners:
            raise ValueError(
                f"mining.miners={self.miners} hold a copy of the whole bank each, and {sharded} hold a part each and mine it "
                "themselves; leave one of them out"
            )
        if self.pool_slots is not None:
            raise ValueError(
                f"mining.pool_slots={self.pool_slots} are gathered in one process, and {sharded} compare with all slots; "
                "leave one of them out"
            )
        if self.backend not in ("auto", "numpy"):
            raise ValueError(
                f"mining.backend={self.backend} is for a bank in one process, and {sharded} mine with numpy; "
                "type mining.backend=auto"
            )
        return self

    @model_validator(mode="after")
    def _miners_for_what_is_said_of_them(self) -> Mining:
        said = {"dtype": self.dtype, "miner_node": self.miner_node, "gpus_per_miner": self.gpus_per_miner or None}
        for name, given in said.items():
            if given is not None and not self.miners:
                raise ValueError(
                    f"mining.{name}={given} is about miners, and mining.miners=0 has none; type mining.miners=1"
                )
        if self.gpus_per_miner and self.pool_slots is not None:
            raise ValueError(
                f"mining.pool_slots={self.pool_slots} is drawn on cores, and mining.gpus_per_miner={self.gpus_per_miner:g} "
                "mines on a GPU, which needs no pool; leave one of them out"
            )
        if self.gpus_per_miner > 1 and self.gpus_per_miner != int(self.gpus_per_miner):
            raise ValueError(
                f"mining.gpus_per_miner={self.gpus_per_miner} is no share of a GPU and no number of them; type .5 or 1"
            )
        return self

    @model_validator(mode="after")
    def _one_knob(self) -> Mining:
        if self.ratio is not None and self.pool is not None:
            raise ValueError("mining.ratio and mining.pool are two names of one choice: give one of them")
        return self
