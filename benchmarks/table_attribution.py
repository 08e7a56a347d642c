"""Attributions of table models against the known truth, over seeds and folds, and tested.

Made-up hospitals A and B of both families, several draws. The truth of an attribution is the
Shapley value of the true rule: of the log odds of P(y = 1 | the row), which is known, with a column
and its being missing as one player, and the same reference rows (of the training part) that the
models are explained with. Explained are fresh rows that nobody trained on. Intervals are Student's
t over draws of the hospitals.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import warnings
from collections import defaultdict
from functools import partial
from pathlib import Path

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
warnings.filterwarnings("ignore")

import numpy as np
import pandas as pd
from hospital_tables import t_interval, table_of
from report import Report
from torch import Tensor, nn

from medkit import keyed as places
from medkit.data.ehr import EHRDataModule
from medkit.metrics.discrimination import auroc
from medkit.models.baseline import fit_boosting
from medkit.models.ensemble import FoldEnsemble, fit_folds
from medkit.models.tabular import warm_classifier
from medkit.saliency.attribution import Attribution, integrated_gradients
from medkit.saliency.members import EnsembleNet, attribute_members, member_rows
from medkit.saliency.players import Players
from medkit.saliency.randomisation import label_randomisation_test, randomisation_test
from medkit.saliency.shapley import shapley_values
from medkit.saliency.similarity import measures, stability
from medkit.saliency.truth import cell_shares, true_shares
from medkit.synth.ehr import features_of, make_hospitals
from medkit.trainer import keyed, stable_trainer, start_run

FAMILIES = ("additive", "interacting")
DRAWS, SEEDS = 3, 3  # of the hospitals; ensembles, and as many on shuffled labels
ROWS, REFERENCES, FOLDS, EPOCHS = 40, 20, 5, 30
METHODS = {
    "integrated_gradients": partial(integrated_gradients, steps=16),
    "shapley": partial(shapley_values, permutations=80),
}
SHOWN = ("row_rank", "row_top", "importance_rank")
Found = defaultdict[str, list[float]]


def main() -> int:
    report = Report(__doc__)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    for family in FAMILIES:
        found: Found = defaultdict(list)
        verdicts: dict[str, list[bool]] = defaultdict(list)
        for draw in range(1 if report.quick else DRAWS):
            one_draw(family, draw, report.quick, found, verdicts)
        for name, values in found.items():
            by_draw = np.array(values)
            report.figure(f"{family}/{name}", float(by_draw.mean()), t_interval(by_draw))
        for name, ok in verdicts.items():
            report.share(f"{family}/{name}", sum(ok), len(ok), at_least=1.0)
    return report.finish()


def one_draw(
    family: str, draw: int, quick: bool, found: Found, verdicts: dict[str, list[bool]]
) -> None:
    """Fit on one draw of the hospitals; add what is found to ``found`` and ``verdicts``."""
    table = table_of(make_hospitals(seed=draw, stays={"A": 850, "B": 550}, family=family))
    few, seeds = (20, 2) if quick else (ROWS, SEEDS)
    sizes = {"A": 1200, "B": 800}
    fresh = table_of(make_hospitals(seed=10_000 + draw, stays=sizes, family=family))
    rows = fresh.drop_duplicates("patient_id").head(few)
    chosen = places.generator(draw, "references").permutation(len(table))[:REFERENCES]
    references = table.iloc[chosen]
    true = truth(family, rows, references, permutations=40 if quick else 80)

    ensembles = [ensemble_on(table, seed) for seed in range(draw * 100, draw * 100 + seeds)]
    first = ensembles[0]
    linear = FoldEnsemble(first.members, weight=0.0)
    found["auroc/default"].append(auroc(fresh["died"], first.predict(fresh).prob).value)
    found["weight_of_the_net"].append(first.weight)
    for model, ensemble in (("default", first), ("logistic", linear)):
        for method, how in METHODS.items():
            shares = explained(ensemble, rows, how, references)
            for measure, value in measures(shares.values, true).items():
                if measure in SHOWN:
                    found[f"{model}/{method}/{measure}"].append(value)
            over_folds = stability(list(shares.members))
            found[f"{model}/{method}/folds/row_rank"].append(over_folds["row_rank"].value)
            verdicts[f"sound_method_passes/{model}/{method}"].append(tested(ensemble, rows, how))
    for measure, value in measures(boosting_shares(table, rows, references), true).items():
        if measure in SHOWN:
            found[f"boosting/shapley/{measure}"].append(value)

    how = METHODS["integrated_gradients"]
    of_seeds = [explained(one, rows, how, references) for one in ensembles]
    over_seeds = stability([one.values for one in of_seeds])
    found["default/integrated_gradients/seeds/row_rank"].append(over_seeds["row_rank"].value)
    shuffled = [ensemble_on(table, seed, shuffled=True) for seed in range(seeds)]
    noise = [explained(one, rows, how, references) for one in shuffled]
    over_folds = stability(list(noise[0].members))["row_rank"].value
    found["shuffled_labels/integrated_gradients/folds/row_rank"].append(over_folds)
    found["shuffled_labels/auroc"].append(
        auroc(fresh["died"], shuffled[0].predict(fresh).prob).value
    )
    verdicts["told_from_shuffled_labels"].append(
        label_randomisation_test(of_seeds[0], noise).passed
    )
    for name, bad in (("input", show_input), ("signed_input", show_signed_input)):
        verdicts[f"bad_method_caught/{name}"].append(not tested(first, rows, bad))


def ensemble_on(table: pd.DataFrame, seed: int, *, shuffled: bool = False) -> FoldEnsemble:
    """Fit the kit's default, or the same on labels that were dealt out anew."""
    if shuffled:
        order = places.generator(seed, "shuffled labels").permutation(len(table))
        table = table.assign(died=table["died"].to_numpy()[order])
    with tempfile.TemporaryDirectory() as folder:
        csv = Path(folder) / "table.csv"
        table.to_csv(csv, index=False)
        run = start_run(Path(folder) / "run", seed=seed, threads=1)
        ensemble = fit_folds(
            run,
            data=lambda fold: keyed(
                EHRDataModule(csv, target="died", site="site", folds=FOLDS, fold=fold)
            ),
            model=partial(warm_classifier, max_epochs=EPOCHS),
            trainer=partial(stable_trainer, run, max_epochs=EPOCHS, enable_progress_bar=False),
            folds=FOLDS,
            weight=1.0 if shuffled else None,  # 0 would be logistic regression
        )
        run.finish()
    return ensemble


def explained(
    ensemble: FoldEnsemble, rows: pd.DataFrame, how: partial[Attribution], references: pd.DataFrame
) -> Attribution:
    xs, baselines = (member_rows(ensemble, part) for part in (rows, references))
    return attribute_members(EnsembleNet(ensemble), xs, how=how, baselines=baselines)


def tested(ensemble: FoldEnsemble, rows: pd.DataFrame, how: partial[Attribution]) -> bool:
    """Say whether a method passes on the whole ensemble (fewer points and orders: 16 times)."""
    fewer = {"steps": 4} if how is METHODS["integrated_gradients"] else {}
    fewer = {"permutations": 10} if how is METHODS["shapley"] else fewer
    explain = partial(attribute_members, how=partial(how, **fewer))
    return randomisation_test(EnsembleNet(ensemble), member_rows(ensemble, rows), explain).passed


def show_input(_: nn.Module, x: Tensor, *, players: Players, baseline: None = None) -> Attribution:
    """A bad method: the input itself, whatever the net."""
    return Attribution(players.total(x), x[:, 0], players.names)


def show_signed_input(
    net: nn.Module, x: Tensor, *, players: Players, baseline: None = None
) -> Attribution:
    """A bad method: the input, turned over where the net's mean answer is negative."""
    sign = net(x).mean().sign().detach()
    return Attribution(players.total(x) * sign, x[:, 0], players.names)


def truth(
    family: str, rows: pd.DataFrame, references: pd.DataFrame, *, permutations: int
) -> Tensor:
    names = [feature.name for feature in features_of(family)]
    return true_shares(
        rows[names],
        rows["site"].tolist(),
        references=references[names],
        family=family,
        permutations=permutations,
    ).values


def boosting_shares(table: pd.DataFrame, rows: pd.DataFrame, references: pd.DataFrame) -> Tensor:
    """Shapley values of gradient boosting's log odds, fitted on all training rows."""
    names = [name for name in table if name not in ("patient_id", "site", "died")]
    model = fit_boosting(table[names], table["died"])

    def log_odds(cells: np.ndarray) -> np.ndarray:
        prob = model.prob(cells)
        return np.log(prob / (1 - prob))

    return cell_shares(
        log_odds, rows[names], references=references[names], names=names, permutations=80
    ).values


if __name__ == "__main__":
    sys.exit(main())
