"""Which trainings a study has, and whether a folder holds the same study."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medkit.record.files import read_json, safe_name, write_json
from medkit.record.identity import compare
from medkit.record.lock import LOCK_NAME
from medkit.study.study_job import LOGS, STUDY_NAME, Job

SPREAD_SEEDS = 20  # from which a spread can be stated: an sd is then known to about a third
_TORN = f".{STUDY_NAME}.*.tmp"


@dataclass(frozen=True)
class Plan:
    """The members of a study; attributes as :class:`~medkit.study.study.Study`'s arguments."""

    recipes: Mapping[str, Any]
    seeds: tuple[int, ...]
    split_seeds: tuple[int, ...] = (0,)
    sites: tuple[str, ...] = ("",)
    fixed: tuple[str, ...] = ()
    free_splits: int = 0
    repeats: int = 0

    def __post_init__(self) -> None:
        """Refuse a plan that has no members, or names that can't be folders."""
        for what in ("recipes", "seeds", "split_seeds", "sites"):
            values = list(getattr(self, what))
            if not values or len(set(values)) < len(values):
                raise ValueError(
                    f"a study must have at least one of its {what}, each once; got {values[:8]}. "
                    "Leave out what is there twice."
                )
        for name in [*self.recipes, *(site for site in self.sites if site)]:
            safe_name(name)
        unknown = [name for name in self.fixed if name not in self.recipes]
        if unknown or LOGS in self.recipes:
            raise ValueError(
                f"fixed must name some of the recipes {list(self.recipes)}, none of which may be "
                f"called {LOGS!r}; got {list(self.fixed)}. Name them alike."
            )
        for what in ("free_splits", "repeats"):
            if not 0 <= getattr(self, what) <= len(self.seeds):
                raise ValueError(
                    f"{what} must be between 0 and the number of seeds, {len(self.seeds)}; got "
                    f"{getattr(self, what)}. Each is trained with a seed of its own."
                )

    @classmethod
    def read(cls, folder: Path) -> Plan | None:
        """Return the plan that a folder holds, or None."""
        if not (folder / STUDY_NAME).is_file():
            return None
        said = read_json(folder / STUDY_NAME)
        return cls(
            said["recipes"],
            tuple(said["seeds"]),
            tuple(said["split_seeds"]),
            tuple(said["sites"]),
            tuple(said["fixed"]),
            said["free_splits"],
            said["repeats"],
        )

    def write(self, folder: Path, *, cores_per_job: int) -> None:
        """Write it; the cores decide the threads, and the threads the bits."""
        write_json(folder / STUDY_NAME, asdict(self) | {"cores_per_job": cores_per_job})

    def jobs(self) -> Iterator[Job]:
        """Yield the members, one job a cell."""
        for name in self.recipes:
            draws = name not in self.fixed
            mine = self.seeds if draws else self.seeds[:1]
            for site in self.sites:
                for split in self.split_seeds:
                    yield Job(name, mine, split, site)
                if not draws:
                    continue
                for number, seed in enumerate(self.seeds[: self.free_splits]):
                    yield Job(name, (seed,), max(self.split_seeds) + 1 + number, site)
                if self.repeats:
                    yield Job(name, mine[: self.repeats], self.split_seeds[0], site, again=True)

    def check_folder(self, folder: Path) -> None:
        """Refuse a folder that holds another study, or something else.

        Raises:
            ValueError: With what differs.
        """
        earlier = Plan.read(folder)
        if earlier is None:
            inside = list(folder.iterdir()) if folder.is_dir() else []
            content = sorted({p.name for p in inside if not p.match(_TORN)} - {LOCK_NAME})
            if content or folder.is_file():
                raise ValueError(
                    f"{folder} must be new, empty or a study's folder; it holds "
                    f"{', '.join(content[:5]) or 'a file'}. Choose another folder."
                )
            return
        mine = {name: self.recipes.get(name) for name in earlier.recipes}
        differences = compare(earlier.recipes, mine, "recipe ")
        for what in ("split_seeds", "sites"):
            gone = [one for one in getattr(earlier, what) if one not in getattr(self, what)]
            differences += [f"{what} {gone} were part of it"] if gone else []
        if earlier.seeds != self.seeds[: len(earlier.seeds)]:  # a free split goes with its place
            differences.append(f"seeds were {list(earlier.seeds)}, are {list(self.seeds)}")
        if earlier.free_splits and max(earlier.split_seeds) != max(self.split_seeds):
            differences.append("free splits are counted from behind other split_seeds")
        for what in ("free_splits", "repeats"):
            if getattr(earlier, what) > getattr(self, what):
                was, now = getattr(earlier, what), getattr(self, what)
                differences.append(f"{what} was {was}, is {now}")
        if differences:
            raise ValueError(
                f"{folder} must go on with the study that it holds, and it holds another "
                f"({'; '.join(differences)}). Choose another folder, or give what was given "
                "before, free_splits and repeats too: recipes, seeds, splits and sites may be "
                "added, none changed or left out."
            )


def as_json(recipes: Mapping[str, Any]) -> dict[str, Any]:
    """Return recipes as JSON gives them back, so that they compare equal later.

    Raises:
        ValueError: For what JSON can't hold.
    """
    try:
        found: dict[str, Any] = json.loads(json.dumps(dict(recipes), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"recipes must be what JSON can hold, since their folder keeps them; {error}. Use "
            "numbers, texts, lists and dicts, and build objects from them in train."
        ) from error
    return found


def no_texts(**lists: object) -> None:
    """Refuse texts for lists: their letters would be taken one by one.

    Raises:
        ValueError: For the first.
    """
    for what, value in lists.items():
        if isinstance(value, str):
            raise ValueError(
                f"{what} must be a list; got the text {value!r}. Write {what}=[{value!r}] for one."
            )
