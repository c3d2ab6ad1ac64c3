"""Greedy training in several processes, each of which has some of the modules."""

import time
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import speechbrain as sb
from speechbrain.utils.distributed import infer_device
from speechbrain.utils.logger import get_logger
from torch import distributed as dist
from torch.nn import SyncBatchNorm
from torch.nn.parallel import DistributedDataParallel

from speechbrain_sim.brains.costs import measure, meshes
from speechbrain_sim.brains.greedy import GreedyBrain
from speechbrain_sim.brains.transport import Chain

logger = get_logger(__name__)

AUTO = "auto"


def check_stages(settings):
    """Raises a ValueError if the modules cannot be divided as `stages` states.

    What two runs must agree on is the number of replicas: it becomes
    `processes` of the settings.
    """
    stages, ranks = settings["stages"], settings["processes"]
    if not stages:
        return
    processes = f"{ranks} process{'es' * (ranks > 1)}"
    if settings["objective"] != "contrastive" or not settings["greedy"]:
        raise ValueError(
            "--stages needs modules that learn alone (--model sim or gim): a "
            "gradient of this model crosses its modules."
        )
    names = [f"module{m + 1}" for m in range(len(settings["kernel_sizes"]))]
    names += ["context"] * (settings["context_channels"] > 0)
    if settings["frozen"] == "all" or set(names) <= {*settings["frozen"]}:
        raise ValueError("--stages has no use if all modules are frozen.")
    refused = {"precision": "fp16", "skip_nonfinite_grads": True}
    for key, bad in (refused | {"compile": True, "jit": True}).items():
        if settings.get(key) == bad:
            raise ValueError(f"--{key} {bad} and --stages exclude each other.")
    if stages == AUTO:
        fitting = [n for n in range(2, len(names) + 1) if ranks % n == 0]
        if not fitting:
            raise ValueError(
                f"--stages auto cannot divide {len(names)} modules among "
                f"{processes}: start a multiple of 2 to {len(names)}."
            )
        count = fitting[-1]
    else:
        lists = isinstance(stages, list) and all(
            isinstance(stage, list) and stage for stage in stages
        )
        if not lists or sum(stages, []) != names:
            example = f"[[{names[0]}], [{', '.join(names[1:])}]]"
            raise ValueError(
                f"--stages is {stages}, but must be auto, or lists of all "
                f"modules, bottom first, such as {example}."
            )
        count = len(stages)
    if ranks % count:
        raise ValueError(
            f"{processes} cannot be {count} stages, each with as many "
            f"replicas: start {count}, {2 * count}, {3 * count}, ... "
            f"(torchrun --nproc-per-node={count})."
        )
    settings["processes"] = ranks // count


def make_chain(hparams, device):
    """Makes the `Chain` that the key `stages` asks for; measures for `auto`."""
    stages = hparams["stages"]
    if stages == AUTO:
        plan, rank = [None], dist.get_rank()
        if rank == 0:
            shape = hparams["batch_size"], hparams["crop_samples"]
            make = hparams["modules"], hparams["opt_class"]
            costs = measure(*make, *shape, device or infer_device())
            ranks = dist.get_world_size()
            plan = [choose(costs, ranks, ranks // hparams["processes"])]
        dist.broadcast_object_list(plan)
        stages = plan[0]
    return Chain(stages, hparams["stage_timeout"])


def choose(costs, ranks, count):
    """Returns `count` balanced stages; logs their costs, and a faster mesh."""
    found = {len(mesh.modules): mesh for mesh in meshes(costs, ranks)}
    chosen, others = found[count], [found[n] for n in found if n > 1]
    each = ", ".join(f"{n} {1e3 * c.step:.3g} ms" for n, c in costs.items())
    logger.info(f"Measured, in fp32: {each}; --stages {chosen.modules}")
    best = max(others, key=lambda mesh: mesh.ceiling)
    if best.ceiling > chosen.ceiling:
        logger.info(
            f"{ranks} processes reach at most {chosen.ceiling:.2f} times one "
            f"process; {len(best.modules)} stages x {best.replicas} replicas, "
            f"{best.ceiling:.2f} times: --stages {best.modules}"
        )
    return chosen.modules


class StagedBrain(GreedyBrain):
    """A GreedyBrain whose process has the modules of one stage.

    Rank 0 loads the data, has the log and saves what all stages have made: the
    results are those of one process. Others keep no weights of modules that
    are not theirs.

    Arguments
    ---------
    modules : dict of str to GreedyModule
        All, bottom first; those of other stages lose their weights.
    chain : Chain
        Place of this process among the others.
    **kwargs :
        See `GreedyBrain`.
    """

    def __init__(self, modules, chain, **kwargs):
        self.transport = self.chain = chain
        own = {name: modules[name] for name in chain.modules}
        self.others = [m for name, m in modules.items() if name not in own]
        for module in self.others:
            module.to("meta")
        super().__init__(own, **kwargs)
        self.unwrapped = dict(modules)  # for warnings and sizes
        self.estimate_of = (
            f"; memory, optimizers on disk and the bar's train_loss are of "
            f"this stage alone ({', '.join(own)})"
        )
        self.rank, self.distributed_launch = chain.replica, self.replicas > 1
        self.frozen = [name for name in self.frozen if name in own]
        if self.ckpt_interval_minutes > 0:
            raise ValueError(
                "With --stages, checkpoints are counted in steps: use "
                "--ckpt_interval_steps in place of --ckpt_interval_minutes."
            )
        if self.checkpointer is not None:
            self.checkpointer.chain = chain
        self._begin = None  # of an epoch: at its first batch

    def module_names(self):
        """See `GreedyBrain`; of all stages."""
        return sum(self.chain.stages, [])

    def count_replicas(self):
        """See `ResumableBrain`."""
        return self.chain.replicas

    def training_sets(self, *args):
        """Opens the data, if this is a first stage."""
        if self.chain.first:
            return super().training_sets(*args)
        return "of the stage below", "of the stage below"

    def make_dataloader(self, dataset, stage, *args, **kwargs):
        """Makes the loader of a first stage; others await as many batches."""
        loader = count = None
        if self.chain.first:
            loader = super().make_dataloader(dataset, stage, *args, **kwargs)
            count = len(loader)
        count = self.chain.share(count)
        return _Steps(self, count) if loader is None else loader

    def _wrap_distributed(self):
        for name, module in self.modules.items():
            learns = any(p.requires_grad for p in module.parameters())
            if self.replicas > 1 and learns:
                group = self.chain.peers
                module = SyncBatchNorm.convert_sync_batchnorm(module, group)
                on_gpu = [self.device] if self.device_type == "cuda" else None
                self.modules[name] = DistributedDataParallel(
                    module, device_ids=on_gpu, process_group=group
                )

    def init_optimizers(self):
        """See `ResumableBrain`; they and the modules are this rank's part."""
        super().init_optimizers()
        if self.checkpointer is not None:
            names = [*self.modules, *(f"{n}_optimizer" for n in self.modules)]
            saved = self.checkpointer.recoverables
            self.checkpointer.parts = {name: saved[name] for name in names}

    def on_fit_start(self):
        """Resumes; raises a ValueError if ranks resumed at different steps."""
        with self.chain.naming(None):
            super().on_fit_start()
        average = self.averages[sb.Stage.TRAIN]  # a checkpoint has those of all
        names = tuple(f"{name}_" for name in self.chain.modules)
        names = names if self.rank == 0 else ()
        for numbers in average.sums, average.counts:
            for key in [key for key in numbers if not key.startswith(names)]:
                del numbers[key]
        place = self.hparams.epoch_counter.current, self.step
        places = self.chain.collect(place)
        if places and set(places) != {place}:
            raise ValueError(
                f"The stages resumed at (epoch, step) {places}: do all "
                f"processes see the same --output_folder, undamaged?"
            )
        self.chain.limit()

    def fit(self, *args, **kwargs):
        """Trains, until all ranks have."""
        super().fit(*args, **kwargs)
        self.chain.finish()

    def fit_batch(self, batch):
        """See `ResumableBrain`."""
        with self._of_epoch():
            return super().fit_batch(batch)

    def evaluate_batch(self, batch, stage):
        """See `ResumableBrain`."""
        with self._of_epoch():
            return super().evaluate_batch(batch, stage)

    def _of_epoch(self):
        """Begins to measure; in it, DDP may lose a replica."""
        if self._begin is None:
            self._begin = time.perf_counter()
            self.chain.waited, self.chain.bytes = 0.0, 0
        return self.chain.naming(None) if self.replicas > 1 else nullcontext()

    def _should_save_intra_epoch_ckpt(self, last_time, steps):
        due = 0 < self.ckpt_interval_steps <= steps
        complete, _ = self.accumulation()
        return self.checkpointer is not None and complete and due

    def _save_intra_epoch_ckpt(self):
        self.read()
        with self.collected(), self.chain.naming(None):
            super()._save_intra_epoch_ckpt()

    @contextmanager
    def collected(self):
        """Lends rank 0 what all have averaged, in the modules' order."""
        shown = self.avg_train_loss
        own = {s: (a.sums, a.counts) for s, a in self.averages.items()}
        parts = self.chain.collect((own, shown))
        for stage, average in self.averages.items() if parts else ():
            average.clear()
            for averages, _ in parts:
                sums, counts = averages[stage]
                average.sums.update(sums)
                average.counts.update(counts)
        if parts:  # of the sum over all modules
            self.avg_train_loss = parts[-self.replicas][1]
        yield
        self.avg_train_loss = shown
        for stage, average in self.averages.items():
            average.sums, average.counts = own[stage]

    def _report(self):
        """Logs how busy the stages were in this epoch."""
        now = time.perf_counter()
        begin = now if self._begin is None else self._begin
        own = now - begin, self.chain.waited
        parts = self.chain.collect((*own, self.chain.bytes))
        self._begin = None
        if parts and max(parts)[0]:
            whole, sent = max(parts)[0], sum(sent for *_, sent in parts)
            busy = [seconds - waited for seconds, waited, _ in parts]
            shares = ", ".join(f"{x / whole:.0%}" for x in busy)
            total = sum(busy)
            logger.info(
                f"Stages were busy {shares} of {whole:.3g} s: "
                f"{total / whole:.2f} times one process, of at most "
                f"{total / max(busy):.2f}. They sent {sent / 1e6:.3g} MB."
            )

    def end_epoch(self, epoch, validated, saves=True):
        """See `ResumableBrain`; rank 0 borrows the others' layers for it."""
        self._report()
        if saves:
            self._borrow()
        with self.collected(), self.chain.naming(None):
            super().end_epoch(epoch, validated, saves)
        for module in self.others:
            module.to("meta")

    def _borrow(self):
        """Gives rank 0 the weights of all encoder layers, on the CPU."""
        lends = not self.chain.first and self.rank == 0
        states = {
            name: {
                key: value.cpu()
                for key, value in self.unwrapped[name]
                .layers.state_dict()
                .items()
            }
            for name in (self.chain.modules if lends else ())
        }
        for part in self.chain.collect(states) or ():
            for name, state in part.items():
                layers = self.unwrapped[name].layers
                layers.load_state_dict(state, assign=True)


class _Steps:
    """Batches that the stage below will send: empty, and received later."""

    def __init__(self, brain, count):
        self.brain, self.count = brain, count

    def __len__(self):
        return self.count

    def __iter__(self):
        for _ in range(self.brain.step, self.count):
            yield SimpleNamespace()
