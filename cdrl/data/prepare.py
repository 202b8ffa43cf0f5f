"""From a source to shards and a manifest at a URI: plan, decode, gather, and the manifest last."""

import hashlib
import json
from typing import Literal

import numpy as np
import PIL

from cdrl import storage
from cdrl.data import manifest, parallel, plan
from cdrl.data.assemble import Progress, Work, assemble
from cdrl.data.decode import first_row
from cdrl.data.job import Job, claimed, sweep
from cdrl.data.manifest import Manifest, Origin
from cdrl.data.points import LAWS
from cdrl.data.recipe import Options
from cdrl.data.sources import open_source
from cdrl.errors import DataError

__all__ = ["Options", "Progress", "prepare", "prepared"]

DEFAULT_HOLDOUT = {"digits": 500.0}  # the split on which the demonstration's figures were measured
OTHER_HOLDOUT = 0.1
HALVED = (*LAWS, "torchvision")  # sources that bring a hold-out of their own
SHARD_BYTES = 64 * 2**20  # also the scale of the memory that each process needs
RUN_ROWS = 8192  # of at most SHARD_BYTES: what is lost when a prepare is killed
WORK_FORMAT = 1  # of the files in the job's folder


def prepared(source: str, uri: str, options: Options, *, max_bad: int = 0) -> Manifest | None:
    """The manifest at `uri` if this very recipe was prepared there; None if there is no dataset.

    Raises:
        DataError: another dataset is there, one with more than `max_bad` rows left out, or a damaged manifest.
        StorageError: the place cannot be reached.
    """
    if not storage.exists(storage.join(uri, manifest.FILE_NAME)):
        return None
    found = Manifest.read(uri)
    origin = found.origin or Origin(path=found.path, holdout_path=found.options.get("holdout_path"))
    wanted = {"source": source, **options.model_dump(mode="json")}
    there = {"source": found.source, **found.options, "path": origin.path, "holdout_path": origin.holdout_path}
    if wanted != there:
        changed = [f"{key} {there.get(key)!r} -> {wanted[key]!r}" for key in wanted if wanted[key] != there.get(key)]
        raise DataError(f"{uri}: another dataset is here ({', '.join(changed)}); choose another place or --overwrite")
    if origin.num_failures > max_bad:
        raise DataError(
            f"{uri}: this dataset leaves out {origin.num_failures} rows that could not be read, "
            f"--max-bad allows {max_bad}; allow them, or mend them and --overwrite"
        )
    return found


def prepare(
    source: str,
    uri: str,
    options: Options = Options(),  # noqa: B008 (frozen)
    *,
    overwrite: bool = False,
    max_bad: int = 0,
    workers: int = 0,
    address: str | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Turn a source into shards and a manifest at `uri`; the very same recipe is not prepared twice.

    The dataset is the same, byte by byte, for any number of workers, and also if a prepare is killed and run again,
    which goes on where the first one stopped. Memory is bounded by a few shards for each worker. Until the manifest
    is written, which is the last step, `uri` holds a hidden folder of about the size of the dataset. Of two prepares
    at one place the one that began last goes on, and the other ends.

    Args:
        source: `digits`, `checkerboard`, `gaussians`, `folder`, `parquet` or `torchvision:NAME`.
        uri: a path, `file://` or `s3://`. Workers on other machines need to reach it, and the source's files.
        overwrite: replace any dataset at `uri`, which stays readable until the new manifest stands.
        max_bad: so many rows may be unreadable or of another shape; they are left out and listed in the manifest.
        workers: 0 = in this process; otherwise Ray workers.
        address: of a Ray cluster; default: started on this machine.

    Raises:
        DataError: an empty source, too many unreadable rows, an unknown label, or another dataset at `uri`. What had
            been written is removed.
        StorageError: the place cannot be reached or written, or another prepare has begun there. What had been written
            is found by the next prepare.
        ConfigError: no Ray cluster at the address, or one of fewer CPUs than workers.
    """
    if not overwrite and (found := prepared(source, uri, options, max_bad=max_bad)):
        return found
    _check(source, options)
    if storage.is_local(uri):
        uri = str(storage.local_path(uri).absolute())
    work = _open(source, uri, options, max_bad)
    still_ours = claimed(uri)
    before = set(storage.listing(uri))

    def show(what: Literal["rows", "shards"], done: int, total: int) -> None:
        still_ours()
        if progress is not None:
            progress(what, done, total)

    try:
        if not overwrite and (found := prepared(source, uri, options, max_bad=max_bad)):
            sweep(uri)
            return found  # of another prepare, which ended just now
        sweep(uri, keep=work.job.key)
        with parallel.session(workers, address):
            made = assemble(source, work, workers, show)
        if _open(source, uri, options, max_bad).job.key != work.job.key:
            # labels were read before rows were: they may not belong together
            raise DataError(f"{source}: the source has changed meanwhile; run the same command again")
        still_ours()
        made.write(uri)
    except DataError:
        still_ours()
        _remove_shards(uri, keep=before)
        sweep(uri)
        raise
    still_ours()
    # those of the dataset that was replaced, or of a prepare that was killed
    _remove_shards(uri, keep={shard.name for split in made.splits.values() for shard in split.shards})
    sweep(uri)
    return made


def _check(source: str, options: Options) -> None:
    if options.holdout is not None and options.holdout_path is not None:
        raise DataError("--holdout and --holdout-path contradict each other; give one")
    if source in LAWS and (options.size is not None or options.grayscale is not None):
        raise DataError(f"{source}: a point has no pixels; leave --size, --grayscale and --rgb out")
    names = options.class_names or ()
    if len(set(names)) < len(names) or "" in names:
        raise DataError(f"--class-names {','.join(names)}: expected names that differ, none empty")


def _open(source: str, uri: str, options: Options, max_bad: int) -> Work:
    opened = open_source(source, options.path, class_names=options.class_names, seed=options.seed)
    labels = opened.labels[: options.limit]
    parts = [(opened, len(labels))]
    where, row = first_row(opened, options, max_bad)
    if options.holdout_path or (options.holdout is None and source.partition(":")[0] in HALVED):
        path, names = options.holdout_path or options.path, opened.class_names
        other = open_source(source, path, class_names=names, seed=options.seed, train=False)
        _, held_row = first_row(other, options, max_bad)
        if held_row.shape != row.shape:
            shapes = f"{row.shape} and {held_row.shape}"
            raise DataError(f"{source}: train and hold-out have the shapes {shapes}; give --size or --grayscale")
        held_labels = other.labels[: options.limit]
        kept, held = np.arange(len(labels)), len(labels) + np.arange(len(held_labels))
        labels = np.concatenate([labels, held_labels])
        parts.append((other, len(held_labels)))
    else:
        holdout = DEFAULT_HOLDOUT.get(source, OTHER_HOLDOUT) if options.holdout is None else options.holdout
        kept, held = plan.split_rows(labels, holdout, options.seed)
    shard_rows = options.shard_rows or max(1, SHARD_BYTES // row.nbytes)
    made = plan.make_plan(labels, kept, held, seed=options.seed, shard_rows=shard_rows)
    run_rows = max(1, min(RUN_ROWS, SHARD_BYTES // row.nbytes))
    recipe = [source, options.without_paths().model_dump(mode="json"), opened.class_names, shard_rows, run_rows]
    state = [WORK_FORMAT, PIL.__version__, row.shape, row.dtype.name, [part.state for part, _ in parts]]
    known = json.dumps([recipe, state]).encode() + labels.tobytes() + made.places.tobytes()
    key = hashlib.sha256(known).hexdigest()[:16]
    job = Job(uri, key, options, where, row.shape, row.dtype.name, max_bad)
    return Work(job, parts, run_rows, labels, made)


def _remove_shards(uri: str, keep: set[str]) -> None:
    if storage.is_local(uri):
        for rest in storage.local_path(uri).glob(".*.arrow.*.partial"):
            rest.unlink(missing_ok=True)  # of a prepare that was killed while it wrote one
    for name in storage.listing(uri):
        if manifest.SHARD_NAME.fullmatch(name) and name not in keep:
            storage.remove(storage.join(uri, name))
