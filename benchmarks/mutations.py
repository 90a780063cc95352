"""Would a test fail if this line were wrong? One-line faults, each in a copy of the tree, each against a few tests.

    python -m benchmarks.mutations --record mutations.jsonl        # all, a second start goes on where this one ended
    python -m benchmarks.mutations --only 'crelu_models/*' --list

A mutation names text that occurs exactly once in its file, what replaces it, and the tests that ought to notice.
`caught` is a failing test, `survived` none, `invalid` a run that says nothing: a syntax error, a test that is not
there, a timeout. tests/test_mutations.py holds the list against the tree, so that it cannot rot.
"""

from __future__ import annotations

import argparse
import fnmatch
import gc
import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    import pytest

ROOT = Path(__file__).resolve().parents[1]
TREE = ("crelu_models", "data", "sweeps", "tests", "benchmarks", "pyproject.toml", "requirements.lock")
# Imported once for all runs: each of these takes longer to load than a test of ours takes.
LIBRARIES = ("torch", "scipy.special", "scipy.stats", "pyarrow.parquet", "pyarrow.fs", "safetensors.torch", "optuna",
             "numba", "simplejpeg", "PIL.Image", "pytest")  # fmt: skip

OPTIONS = ("-x", "-q", "--tb=short", "-p", "no:cacheprovider", "-p", "pytest_timeout")


class Mutation(NamedTuple):
    """A fault in one line: file, text that occurs in it exactly once, text in its place, tests that ought to fail."""

    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    @property
    def name(self) -> str:
        """Return the mutation in one line."""
        return f"{self.file}: {_line(self.old)} → {_line(self.new) or 'nothing'}"

    @property
    def room(self) -> str:
        """Return the room that the file lies in: a package, of sweeps a folder below it."""
        package, _, rest = self.file.partition("/")
        return f"{package}/{rest.partition('/')[0]}" if package == "sweeps" else package

    def apply(self, root: Path) -> str:
        """Return the mutated file of a tree; ValueError where the text is not there exactly once."""
        content = (root / self.file).read_text(encoding="utf-8")
        if content.count(self.old) != 1:
            raise ValueError(f"{self.file} has {self.old!r} {content.count(self.old)} times, not once")
        return content.replace(self.old, self.new)


class Outcome(NamedTuple):
    """Result of one run: the word, the test that failed, seconds, and why it failed."""

    word: Literal["caught", "survived", "invalid"]
    by: str
    seconds: float
    why: str = ""


def _line(text: str) -> str:
    return " ".join(text.split())


def _faults(file: str, tests: str | tuple[str, ...], *changes: tuple[str, ...]) -> list[Mutation]:
    """Return mutations of a file: old text, new text, and the test that is the likeliest to fail."""
    files = (tests,) if isinstance(tests, str) else tests
    return [
        Mutation(file, old, new, (*(test if "::" in test else f"{files[0]}::{test}" for test in likely), *files))
        for old, new, *likely in changes
    ]


# fmt: off
MUTATIONS: tuple[Mutation, ...] = (
    # crelu_models
    *_faults("crelu_models/activations.py", "tests/crelu_models/test_activations.py",
        ("torch.neg(part, out=down).clamp_min_(0)",
         "torch.neg(part, out=down).clamp_max_(0)"),
        ("return up - down, None",
         "return up + down, None"),
        ("part.sub_(_where_positive(down, negative, 0))",
         "part.add_(_where_positive(down, negative, 0))"),
        ("return torch.cat([x, x.neg()], 1).relu_()",
         "return torch.cat([x.neg(), x], 1).relu_()"),
        ("return x.abs()",
         "return x.relu()"),
        ("nn.LeakyReLU(1 / 3)",
         "nn.LeakyReLU(3)"),
        ("[self.inner(x), self.inner(-x)]",
         "[self.inner(x), -self.inner(-x)]"),
        ("crelu(x - x.mean(1, keepdim=True))",
         "crelu(x - x.mean(0, keepdim=True))"),
    ),
    *_faults("crelu_models/activations.py",
             ("tests/crelu_models/test_activations.py", "tests/crelu_models/test_build.py"),
        ("nn.PReLU(channels, init=0.25)",
         "nn.PReLU(1, init=0.25)",
         "test_only_prelu_learns"),
    ),
    *_faults("crelu_models/kernels.py", "tests/crelu_models/test_activations.py",
        ("outputs[row, width + word] = (value ^ sign) &",
         "outputs[row, width + word] = value &"),
        ("negated = size | ((size + magnitude) & sign & ~down)",
         "negated = size | (sign & ~down)",
         "test_compiled_loops_agree_on_every_number"),
        ("nan |= size + over\n",
         "nan |= size\n"),
    ),
    *_faults("crelu_models/modules.py", "tests/crelu_models/test_build.py",
        ("return x * mask * (1 / (1 - rate))",
         "return x * mask",
         "test_dropout_drops_its_share_and_scales_the_rest"),
        ("dropped = min(round(self.rate * STEPS), STEPS - 1)",
         "dropped = min(round((1 - self.rate) * STEPS), STEPS - 1)",
         "test_dropout_drops_its_share_and_scales_the_rest"),
        ("BN_EPS, BN_MOMENTUM = 1e-3, 0.1",
         "BN_EPS, BN_MOMENTUM = 1e-5, 0.1",
         "test_batch_norm_is_that_of_cifar_torch"),
        ("scale = math.sqrt(2 / fan_out)",
         "scale = math.sqrt(1 / fan_out)",
         "test_weights_have_the_spread_of_their_initialisation"),
        ("fan_out = shape[0] * shape[2:].numel()",
         "fan_out = shape[0]",
         "test_weights_have_the_spread_of_their_initialisation"),
        ("torch.cat([half, -half], 1)",
         "torch.cat([half, half], 1)",
         "test_a_looks_linear_crelu_net_starts_linear"),
        ("energy, factor = ENERGY[row.act], CHANNEL_FACTOR[row.act]",
         "energy, factor = PICTURE_ENERGY, CHANNEL_FACTOR[row.act]",
         "test_he_fan_in_does_not_blow_up_behind_avr"),
        ("seed_from(\"weights\", seed, row.name)",
         "seed_from(\"weights\", seed)",
         "test_initialise_undoes_a_training"),
        ("seed_from(\"dropout\", seed, epoch, step, layer.name)",
         "seed_from(\"dropout\", seed, epoch, layer.name)",
         "test_masks_are_a_function_of_seed_epoch_step_and_layer"),
        ("nn.AdaptiveAvgPool2d(1)",
         "nn.AdaptiveMaxPool2d(1)",
         "test_the_average_pool_is_over_whatever_map_is_there"),
        ("ceil_mode=row.ceil",
         "ceil_mode=False",
         "test_sides_behind_a_pool_are_torchs"),
    ),
    *_faults("crelu_models/spec.py", ("tests/crelu_models/test_spec.py", "tests/crelu_models/test_build.py"),
        ("layer.filters * (1 + 2 * layer.row.bn",
         "layer.filters * (1 + layer.row.bn"),
    ),
    *_faults("crelu_models/spec.py", "tests/crelu_models/test_spec.py",
        ("scaled = int(row[1] * factor + 0.5)",
         "scaled = int(row[1] * factor)"),
        ("inputs = channels * before**2 if",
         "inputs = channels * before if"),
    ),
    *_faults("crelu_models/spec.py", "tests/crelu_models/test_build.py",
        ("(windows - 1) * row.stride >= side + row.pad",
         "(windows - 1) * row.stride > side + row.pad",
         "test_sides_behind_a_pool_are_torchs"),
    ),
    *_faults("crelu_models/spec.py", ("tests/crelu_models/test_spec.py", "tests/crelu_models/test_tables.py"),
        ("layer.weights * layer.side**2 for",
         "layer.weights * layer.side for"),
    ),
    *_faults("crelu_models/tables.py", "tests/crelu_models/test_tables.py",
        ("S10 = S8.crelu(*range(1, 8)).dropout(0.25, 9)",
         "S10 = S8.crelu(*range(1, 8)).dropout(0.5, 9)"),
        ("Conv(\"conv9\",   384,  3, 2, 1),",
         "Conv(\"conv9\",   384,  3, 2, 0),"),
        ("width=0.5).width(0.5, 11).dropout(0.25, 9)",
         "width=0.5).dropout(0.25, 9)"),
    ),
    *_faults("crelu_models/sources.py", "tests/crelu_models/test_sources.py",
        ("entries = [table[kind] for kind in kinds if kind in table]",
         "entries = list(table.values())",
         "test_an_edit_of_an_activation_changes_exactly_the_nets_that_use_it"),
    ),
    # data
    *_faults("data/augment.py", "tests/data/test_augment.py",
        ("(_uniform(base, ids, _FLIP) < 0.5)",
         "(_uniform(base, ids, _FLIP) < 0.4)"),
        ("top = _integers(base, ids, _ROW, side - crop + 1) - shift",
         "top = _integers(base, ids, _ROW, side - crop) - shift"),
        ("left = _integers(base, ids, _COLUMN,",
         "left = _integers(base, ids, _ROW,"),
        ("first = (images.shape[2] - crop) // 2\n",
         "first = images.shape[2] - crop\n"),
        ("mean, std).to(dtype)\n\n\ndef ten_views",
         "mean, std).flip(3).to(dtype)\n\n\ndef ten_views"),
        ("(far, 0), (far, far), (far",
         "(far, 0), (0, 0), (far"),
        ("yield view.flip(3)",
         "yield view.flip(2)"),
        ("torch.tensor([-m / s for",
         "torch.tensor([m / s for"),
        ("[1 / (255 * s) for s in std]",
         "[1 / (256 * s) for s in std]"),
        ("[math.sqrt(value) for value in eigenvalues]",
         "[value for value in eigenvalues]"),
        ("((epoch * SPLITMIX64[0]) & _MASK)",
         "((0 * SPLITMIX64[0]) & _MASK)"),
    ),
    *_faults("data/load.py", "tests/data/test_load.py",
        ("self._batches(order[start * batch :], batch)",
         "self._batches(order[start:], batch)",
         "test_an_epoch_resumes_in_its_middle"),
        ("torch.from_numpy(self.labels[order])",
         "torch.from_numpy(self.labels[np.sort(order)])",
         "test_batches_are_the_indices_in_their_order"),
        ("self._check(order[first : first + batch])",
         "self._check(order[:0])",
         "test_a_damaged_picture_is_named"),
    ),
    *_faults("data/datasets.py", "tests/data/test_datasets.py",
        ("sample_key(\"order\", seed, epoch)",
         "sample_key(\"order\", seed + epoch)",
         "test_orders_and_parts_are_written_down"),
        ("np.argsort(quota - exact, kind=\"stable\")",
         "np.argsort(exact - quota, kind=\"stable\")"),
        ("< sizes[by_remainder] - 1]",
         "< sizes[by_remainder]]",
         "test_holdout_leaves_a_picture_of_each_class"),
        ("for c in classes[sizes > 1]]",
         "for c in classes]",
         "test_a_class_s_only_picture_is_in_no_fold"),
        ("shuffled[fold::k]",
         "shuffled[fold * len(labels) // k : (fold + 1) * len(labels) // k]"),
        ("sample_key(\"folds\", seed, int(c))",
         "sample_key(\"folds\", int(c))",
         "test_orders_and_parts_are_written_down"),
        ("rest[selected] = False",
         "rest[selected[:-1]] = False"),
        ("return 8 * round(7 * size / 64)",
         "return 8 * (7 * size // 64)"),
        ("\"val\": 50_000}, \"val\", 50_000)",
         "\"val\": 50_000}, \"val\", 100_000)"),
        ("holdout=train // 5,",
         "holdout=train // 10,"),
        ("max(1, facts.holdout * counts[\"train\"] // facts.splits[\"train\"])",
         "max(1, facts.holdout)"),
    ),
    *_faults("data/beton.py", "tests/data/test_write.py",
        ("    digest.update(index.labels.astype(\"<i8\").tobytes())\n",
         "",
         "test_number_of_workers_changes_no_digit"),
    ),
    *_faults("data/interrupts.py", "tests/data/test_interrupts.py",
        ("        received.append(number)\n",
         "        handlers[number](number, None)\n"),
        ("        yield check\n    finally",
         "        yield lambda: None\n    finally"),
        ("if any(handlers[number] is signal.default_int_handler for number in received):",
         "if received:",
         "test_handler_of_a_driver_gets_the_signal_after_the_work"),
        ("            signal.raise_signal(number)\n",
         "            pass\n"),
        ("handler not in (signal.SIG_IGN, None)]",
         "handler is not None]",
         "test_signals_that_python_does_not_handle_do_what_they_did"),
        ("        if len(received) > 1:\n",
         "        if False:\n"),
    ),
    *_faults("data/write.py", "tests/data/test_write.py",
        ("covariance = second / pixels / 255**2 - np.outer(mean, mean)",
         "covariance = second / pixels / 255**2",
         "test_colours_of_the_sidecar_are_those_of_the_pictures"),
        ("    vectors = vectors[:, ::-1]\n",
         "",
         "test_colours_of_the_sidecar_are_those_of_the_pictures"),
        ("allowed = max(1, count // 1000)",
         "allowed = max(1, count // 100)",
         "test_one_unreadable_picture_in_a_thousand_is_the_most"),
    ),
    *_faults("data/sources.py", "tests/data/test_write.py",
        (".transpose(0, 2, 3, 1))",
         ".transpose(0, 3, 2, 1))",
         "test_a_small_tree_in_cifars_layout_is_read"),
        ("batch.get(b\"fine_labels\")",
         "batch.get(b\"coarse_labels\")",
         "test_cifar100_uses_its_fine_labels"),
        ("(\"test\", _TEST_FROM)",
         "(\"test\", 0)",
         "test_no_embedded_test_picture_is_one_of_the_training_pictures"),
    ),
    # sweeps/experiment
    *_faults("sweeps/experiment/recipe.py",
             ("tests/experiment/test_written_down.py", "tests/experiment/test_recipe.py"),
        ("self.schedule_epochs // self.epochs + 1",
         "self.schedule_epochs // self.epochs"),
        ("dampening=0.9, shift=4, drop_last=True",
         "dampening=0.0, shift=4, drop_last=True"),
        ("350, 350, 0.05, 1e-3,",
         "350, 350, 0.05, 5e-4,"),
        ("momentum: float = 0.9\n",
         "momentum: float = 0.99\n"),
        ("if self.drop_last or rest <= 1 else full + 1)",
         "if self.drop_last or rest <= 1 else full)"),
        ("if self.drop_last or rest <= 1 else full + 1)",
         "if self.drop_last or rest == 0 else full + 1)",
         "tests/experiment/test_recipe.py::test_last_batch_of_one_picture_is_left_out"),
        ("return self.weight_decay * self.stage(epoch).decay_factor",
         "return self.weight_decay"),
        ("Dimension(\"conv9\", 0.0, 0.5, 0.25)",
         "Dimension(\"conv9\", 0.0, 0.5, 0.05)"),
        ("(done + 1 / steps) / self.warmup_epochs",
         "done / self.warmup_epochs"),
    ),
    *_faults("sweeps/experiment/trial.py", ("tests/experiment/test_phases.py", "tests/experiment/test_trial.py"),
        ("SCHEMA = 1\n",
         "SCHEMA = 2\n"),
        ("Phase(\"holdout\", \"last\", True)",
         "Phase(\"full\", \"last\", True)"),
        ("Phase(\"fold\", \"best\", True)",
         "Phase(\"fold\", \"last\", True)"),
        ("Phase(\"holdout\", \"best\", False, True)",
         "Phase(\"holdout\", \"best\", True, True)"),
        ("hashlib.sha256(_canonical(value).encode())",
         "hashlib.sha256((_canonical(value) + \"\\n\").encode())"),
        ("seed_from(self.seed, \"restart\", times)",
         "self.seed + times"),
        ("min(PROBE, -(-learned // 4)",
         "min(PROBE, -(-learned // 5)"),
        ("\"net\": _canonical(self.net.to_json()) if self.dropout else net",
         "\"net\": net"),
        ("content[\"bars\"] = list(self.pruning_thresholds)",
         "content[\"bars\"] = len(self.pruning_thresholds)"),
    ),
    *_faults("sweeps/experiment/plan.py", ("tests/experiment/test_phases.py", "tests/experiment/test_plan.py"),
        ("why = stale(result, fingerprints.get(trial.cell.dataset, \"\"), codes[trial.cell.key])",
         "why = \"\""),
        ("len(attempts) >= MAX_ATTEMPTS",
         "len(attempts) > MAX_ATTEMPTS"),
        (" or any(attempt.get(\"final\") for attempt in attempts)",
         ""),
        ("second = SECOND_SEED + seed",
         "second = seed"),
        ("0 if trial.folds else trial.seed % SECOND_SEED",
         "trial.seed % SECOND_SEED"),
        ("Trial(cell, \"fold\", fold, dropout, fold, protocol.folds, rate=rate)",
         "Trial(cell, \"fold\", 0, dropout, fold, protocol.folds, rate=rate)"),
        ("is_first_phase = search.folds == 0 and search.seed == 0",
         "is_first_phase = search.folds == 0"),
        ("for fold in range(protocol.folds)]",
         "for fold in range(protocol.folds - 1)]"),
        ("self.seeds * (self.ablation + 2 * self.single)",
         "self.seeds * (self.ablation + self.single)"),
    ),
    *_faults("sweeps/experiment/search.py", "tests/experiment/test_search.py",
        ("QUANTILE = 1 / 3",
         "QUANTILE = 1 / 2"),
        (" if result.get(\"status\") == \"finished\" and result.get(\"curve\")",
         " if result.get(\"curve\")"),
        ("return min(complete, key=lambda suggestion: (suggestion.value, suggestion.number)",
         "return max(complete, key=lambda suggestion: (suggestion.value, suggestion.number)"),
        ("if epoch >= WARM_UP - 1 else NO_THRESHOLD",
         "if epoch >= WARM_UP else NO_THRESHOLD"),
        ("seed_from(search.seed, key, number)",
         "seed_from(search.seed, key)"),
        ("OBJECTIVE = \"best/val_top1_err\"",
         "OBJECTIVE = \"best/val_loss\""),
        ("P_PRUNE = 0.1",
         "P_PRUNE = 0.3"),
        ("for step in range(steps + 1)]",
         "for step in range(steps)]"),
    ),
    *_faults("sweeps/experiment/profiles.py",
             ("tests/experiment/test_written_down.py", "tests/experiment/test_recipe.py"),
        ("epochs=recipe.epochs // 10)",
         "epochs=recipe.epochs // 5)"),
    ),
    # sweeps/training
    *_faults("sweeps/training/loop.py", "tests/training/test_learner.py",
        ('target, reduction="sum")',
         'target, reduction="sum", label_smoothing=0.1)',
         "test_a_step_in_parts_is_the_step_on_the_mean_loss_of_the_batch"),
        ("self.model.parameters(), recipe.clip_norm, self.gradient_norm)",
         "self.model.parameters(), 10 * recipe.clip_norm, self.gradient_norm)",
         "test_a_gradient_is_cut_at_the_norm_of_the_recipe"),
        ("(loss / batch).backward()",
         "(loss / len(part)).backward()",
         "test_a_step_in_parts_is_the_step_on_the_mean_loss_of_the_batch"),
        ("recipe.learning_rate(self.epoch, self.step_count, self.steps)",
         "recipe.learning_rate(self.epoch, 0, self.steps)",
         "test_each_step_has_the_rate_and_decay_of_its_epoch_and_place"),
        ("recipe.decay(self.epoch)",
         "recipe.decay(0)",
         "test_each_step_has_the_rate_and_decay_of_its_epoch_and_place"),
        ("        self.step_count = step\n",
         "        self.step_count = 0\n",
         "test_a_restored_learner_goes_on_as_the_one_that_was_saved"),
        ('        self.sums.copy_(tensors["sums"] if self.ranks.is_rank0 else torch.zeros(4))\n',
         "",
         "test_a_restored_learner_goes_on_as_the_one_that_was_saved"),
        ("        self.sums.zero_()\n",
         "",
         "test_errors_of_an_epoch_are_over_its_own_batches"),
        ("        self.model.train()\n",
         "",
         "test_a_step_trains_also_after_an_evaluation"),
        ("if not torch.isfinite(sums[0]):",
         "if torch.isnan(sums[0]):",
         "test_a_loss_that_is_infinite_or_no_number_has_diverged"),
    ),
    *_faults("sweeps/training/optim.py", "tests/training/test_loop.py",
        ("BETAS, EPSILON = (0.9, 0.999), 1e-8",
         "BETAS, EPSILON = (0.9, 0.99), 1e-8"),
        ("dampening=self.recipe.dampening",
         "dampening=0.0"),
        ("nesterov=False",
         "nesterov=True"),
        ("fused=True, weight_decay=decay, momentum",
         "fused=True, weight_decay=0.0, momentum"),
    ),
    *_faults("sweeps/training/evaluate.py", "tests/training/test_evaluate.py",
        ("(scores > true) | ((scores == true) & (index < labels[:, None]))",
         "scores > true"),
        ("(rank >= 5) | invalid",
         "(rank > 5) | invalid"),
        ("return Errors(loss, 100 * top1, 100 * top5)",
         "return Errors(loss, 100 * top5, 100 * top1)"),
        ('row["val/loss"], -row["epoch"])',
         'row["val/loss"], row["epoch"])',
         "tests/training/test_result.py::test_the_best_epoch_has_the_least_error_then_the_least_loss_then_is_the_later"),
        ("    model.eval()\n",
         "    model.train()\n"),
        ("mean_softmax + (softmax - mean_softmax) / number",
         "mean_softmax + softmax"),
    ),
    *_faults("sweeps/training/splits.py", "tests/training/test_splits.py",
        ("beton_path(name, facts.final, where), config) if phase.test",
         'beton_path(name, "train", where), config) if phase.test'),
        ("        train_indices, val_indices = holdout(train.labels, facts.holdout, SPLIT_SEED)\n",
         "        _, val_indices = holdout(train.labels, facts.holdout, SPLIT_SEED)\n"),
        ("SPLIT_SEED)[trial.fold]",
         "SPLIT_SEED)[0]"),
        ("holdout(train.labels, facts.holdout, SPLIT_SEED)[1]\n",
         "holdout(train.labels, facts.holdout, SPLIT_SEED)[0]\n"),
    ),
    *_faults("sweeps/training/views.py", "tests/training/test_views.py",
        ("seed=self.trial.seed,\n",
         "seed=0,\n"),
        ("order(self.trial.seed, epoch, self.splits.train_indices)",
         "order(self.trial.seed, 0, self.splits.train_indices)"),
        ("torch.from_numpy(train.labels[indices])",
         "torch.from_numpy(train.labels[self.splits.train_indices])"),
        ("flip=recipe.flip",
         "flip=True"),
        ("                yield batch, view\n",
         "                yield batch, view.flip(3)\n"),
        ("sidecar = self.splits.train.sidecar\n        crop",
         "sidecar = pictures.sidecar\n        crop"),
    ),
    *_faults("sweeps/training/trainer.py", "tests/training/test_trainer.py",
        ("if has_diverged(reference):",
         "if has_diverged(None):",
         "test_the_second_phase_of_a_first_that_diverged_goes_on_to_the_end"),
        ("and best_epoch(state.history) is row:",
         "and row:",
         "test_weights_of_the_best_epoch_are_kept_and_tested"),
        ('if self.phase.select == "best" and len',
         "if len",
         "test_a_row_of_table_4_keeps_the_last_weights"),
        ("value.detach().clone() for name, value in learner.model",
         "value.detach() for name, value in learner.model",
         "test_weights_of_the_best_epoch_are_kept_and_tested"),
        ('least = min(past["val/top1_err"] for past in state.history)',
         'least = row["val/top1_err"]',
         "test_a_search_trial_is_pruned_where_its_least_error_is_above_the_threshold"),
        ("if least > trial.pruning_thresholds",
         "if least < trial.pruning_thresholds",
         "test_a_search_trial_is_pruned_where_its_least_error_is_above_the_threshold"),
        ('row.get("probe/loss", math.inf) <= self.target.loss',
         'row["train/loss"] <= self.target.loss',
         "test_the_second_phase_of_single_stops_where_its_rule_says"),
        ('"best/probe_loss" if trial.match == "train_loss" else',
         '"best/val_loss" if trial.match == "train_loss" else',
         "test_the_second_phase_of_single_stops_where_its_rule_says"),
        ("learner.epoch >= self.target.epoch",
         "learner.epoch > self.target.epoch",
         "test_the_second_phase_of_single_stops_where_its_rule_says"),
        ('self.best = {name[5:]: value for name, value in saved.tensors.items() if name.startswith("best/")}',
         "self.best = {}",
         "test_weights_of_the_best_epoch_are_kept_and_tested"),
        ("        state.restarts += 1\n",
         "        state.restarts += 2\n",
         "tests/training/test_resume.py::test_training_that_fails_starts_anew_three_times_and_is_marked"),
    ),
    *_faults("sweeps/training/trainer.py", "tests/training/test_chance.py",
        ("state.flat = state.flat + 1 if stays else 0",
         "state.flat = state.flat + 1",
         "test_only_epochs_at_chance_in_a_row_are_counted"),
        ("and state.ending == \"\")",
         "and True)",
         "test_a_pruned_search_trial_is_pruned_and_not_dead"),
        ("epoch * self.views.steps >= SHORTEST",
         "True",
         "test_a_few_steps_say_nothing"),
        ("or beats(train.top1, pictures, guessing)",
         "",
         "test_an_epoch_at_chance_has_learned_nothing"),
        ("return guessing.top1 > 0 and not learned",
         "return not learned",
         "test_pictures_of_one_class_alone_are_never_at_chance"),
    ),
    *_faults("sweeps/training/run_trial.py", "tests/training/test_trainer.py",
        ("trainer.learner.model.load_state_dict(trainer.best)",
         "pass",
         "test_weights_of_the_best_epoch_are_kept_and_tested"),
        ("trainer.measure(LEARNED, trainer.splits.train_indices)",
         "trainer.measure(LEARNED, trainer.splits.probe_indices)",
         "test_the_second_phase_of_single_stops_where_its_rule_says"),
    ),
    *_faults("sweeps/training/result.py", "tests/training/test_result.py",
        ("best = best_epoch(outcome.history)",
         "best = outcome.history[-1]"),
        ('scores.log() if name == "ten_softmax" else scores',
         "scores"),
        ('{"top1_err": guessing.top1,',
         '{"top1_err": guessing.top5,'),
        ("        return numbers | _chance(trial, outcome)\n",
         "        return _chance(trial, outcome) | numbers\n"),
    ),
    *_faults("sweeps/training/shared_batches.py", "tests/execution/test_packing.py",
        ("(trial.cell.dataset, trial.phase, trial.seed, trial.fold, trial.folds)",
         "(trial.cell.dataset, trial.phase, trial.fold, trial.folds)",
         "test_only_what_decides_the_batches_is_in_the_key_of_a_stream"),
    ),
    # sweeps/store
    *_faults("sweeps/store/checkpoint.py", "tests/store/test_ledger.py",
        ("if digest(tensors, notes[\"state\"]) != notes[\"sha256\"]:",
         "if digest(tensors, notes[\"state\"]) == \"\":"),
        ("[:-KEEP]",
         "[: -KEEP + 1]"),
    ),
    *_faults("sweeps/store/ledger.py", "tests/store/test_ledger.py",
        ("                os.fsync(stream.fileno())\n",
         ""),
        ("value.pop(\"check\", None) != checksum(value)",
         "not value.pop(\"check\", None)"),
        ("            sync_folder(target.parent)\n",
         ""),
        ("committed.intersection(keys)",
         "committed"),
        ("        self.delete(f\"checkpoints/{key}\")\n",
         ""),
    ),
    *_faults("sweeps/store/lease.py", "tests/store/test_lease.py",
        ("min(max(0.0, now - self.looked), 2 * BEAT)",
         "max(0.0, now - self.looked)"),
        ("if alive or (alive is None and watch.changes):",
         "if alive:"),
        ("if alive is None and silent < SILENCE:",
         "if alive is None and silent < 0:"),
        ("return self.host.now() - _number(other, \"clock\") < SILENCE",
         "return True"),
        ("return write() or self._own_tag()",
         "return write()"),
        ("                if self.host.now() - self.renewed < FENCE:\n",
         "                if True:\n"),
        ("                if self.host.now() - self.renewed >= FENCE:\n",
         "                if False:\n"),
        ("self.tag = now.tag\n                tag = self.file.beat",
         "pass\n                tag = self.file.beat"),
        ("if now is not None and not _parsed(now):",
         "if False:"),
        ("        self.on_lost(self.lost)\n",
         ""),
        ("elif alive and not lease.get(\"locked\"):",
         "elif alive:"),
        ("and self.watches[sweep].changes < 1",
         "and False"),
        ("if note is None or note.get(\"sweep\") == sweep:",
         "if note is None:"),
        ("all(other.get(name) == note.get(name) for name in (\"pid\", \"started\", *system()))",
         "bool(other)"),
    ),
    *_faults("sweeps/store/lease_file.py", "tests/store/test_lease.py",
        ("            if self.handle is not None and not self.path.parent.is_dir():\n                raise",
         "            if False:\n                raise"),
        ("            os.utime(self.handle)\n",
         ""),
        ("            os.link(draft, self.path)\n",
         "            os.replace(draft, self.path)\n"),
        ("return self._put(text, IfMatch=tag)",
         "return self._put(text)"),
        ("            self.compares = False\n        if tag is None",
         "            pass\n        if tag is None"),
    ),
    *_faults("sweeps/store/process.py", "tests/store/test_lease.py",
        ("or began == process[\"started\"]",
         "or True"),
        ("\"dead\" if words[0] in \"ZX\" else words[19]",
         "words[19]"),
        ("if any(process.get(name) != value for name, value in system().items()):",
         "if process.get(\"host\") != platform.node():"),
    ),
    *_faults("sweeps/store/ledger.py", "tests/store/test_lease.py",
        ("            self.guard()\n            os.replace(partial, target)",
         "            os.replace(partial, target)"),
        ("        self.guard()\n        if kind ==",
         "        if kind =="),
    ),
    *_faults("sweeps/tracking/fenced_client.py", "tests/store/test_lease.py",
        ("            self._guard()\n",
         ""),
        ("or name.startswith(READS)",
         ""),
    ),
    *_faults("sweeps/store/checkpoint_header.py", "tests/store/test_ledger.py",
        ("for name in reversed(ledger.names(",
         "for name in iter(ledger.names("),
    ),
    *_faults("sweeps/experiment/metrics.py", "tests/results/test_cell_numbers.py",
        ("se = statistics.stdev(values) / math.sqrt(n)",
         "se = statistics.pstdev(values) / math.sqrt(n)"),
        ("se = statistics.stdev(values) / math.sqrt(n)",
         "se = statistics.stdev(values)"),
        ('if metric == TRAIN or "match" in finished:',
         "if metric == TRAIN:",
         "test_a_number_is_of_one_phase"),
        ("if other == phase and name in metrics])",
         "if name in metrics])",
         "test_mlflow_has_single_beside_the_average_over_folds"),
        ("flags = [ending_word(result)] if has_diverged(result) else []",
         "flags = [ending_word(result)] if has_died(result) else []",
         "test_flags_say_what_happened_to_a_training"),
    ),
    # sweeps/results
    *_faults("sweeps/results/statistics.py", "tests/results/test_statistics.py",
        ("2 * float(special.stdtr(df, -abs(t)))",
         "float(special.stdtr(df, -abs(t)))"),
        ("math.sqrt(1 + n * fraction / (1 - fraction))",
         "math.sqrt(1 + n * fraction)"),
        ("wide, min(a.n, b.n) - 1, level)",
         "wide, a.n + b.n - 2, level)"),
        ("rank = np.argsort(p, axis=-1)",
         "rank = np.argsort(-p, axis=-1)"),
        ("np.minimum(np.maximum.accumulate(steps, axis=-1), 1.0)",
         "np.minimum(steps, 1.0)"),
        ("only_a + only_b).pvalue)",
         "n).pvalue)"),
        ('proportion_ci(level, "wilson")',
         "proportion_ci(level)"),
        ("softmax += special.softmax(logits, axis=1)",
         "softmax += logits",
         "test_votes_agree_with_a_naive_version"),
        ("\"cifar100\": 2.0",
         "\"cifar100\": 1.0"),
        ("if -reach <= low and high <= reach:",
         "if -reach <= difference <= reach:",
         "test_a_number_is_reproduced_where_its_interval_lies_within_the_margin"),
        ("outside = low > reach or high < -reach",
         "outside = True",
         "test_a_number_is_reproduced_where_its_interval_lies_within_the_margin"),
        ("return \"inconclusive\" if reached else \"not run\"",
         "return \"supported\" if reached else \"not run\"",
         "test_what_is_not_tested_decides_no_claim"),
        ("* n / _widen(n, test_fraction) ** 2",
         "* n",
         "test_further_folds_are_counted_by_the_corrected_variance"),
        ("interval.low > margin or interval.high < -margin",
         "interval.low > margin and interval.high < -margin"),
        ("and not p >= alpha:",
         "and True:",
         "test_within_is_decided_by_the_interval"),
        ("ranks = (2 * last - count + 1)[inverse]",
         "ranks = (2 * last)[inverse]"),
        ("special.stdtrit(df, 0.5 + level / 2)",
         "special.stdtrit(df, level)"),
    ),
    *_faults("sweeps/results/paper.py", "tests/results/test_paper.py",
        ("\"CReLU half\",  \" 4.73   8.37   9.44±.09",
         "\"CReLU half\",  \" 4.73   8.37   9.94±.09"),
        ("Comparison(\"imagenet\", \"CReLU conv1-4\", metric, \"lowest\")",
         "Comparison(\"imagenet\", \"CReLU conv1-7\", metric, \"lowest\")"),
        ("return difference >= 0",
         "return difference > 0"),
    ),
    *_faults("sweeps/results/cell_numbers.py", ("tests/results/test_claims.py", "tests/report/test_report.py"),
        ("\"cifar100\": \"CReLU (1,3,5)\"}",
         "\"cifar100\": \"CReLU (1,3)\"}"),
        ("runs = cell.done(phase_behind(metric, {run.trial.phase for run in cell.done(*PHASES)}))",
         "runs = cell.done(*PHASES)",
         "tests/results/test_cell_numbers.py::test_four_views_show_the_same_numbers"),
        ("rounds = abs(difference) <= printed.rounding + 1e-9",
         "rounds = abs(difference) <= TOLERANCE[table.dataset]",
         "tests/results/test_cell_numbers.py::test_parameters_have_to_round_to_the_printed_count"),
    ),
    *_faults("sweeps/results/contrasts.py", "tests/results/test_claims.py",
        ("1 / folds if folds else None",
         "None"),
        ("adjusted = holm([effect.p for _, effect in known])",
         "adjusted = [effect.p for _, effect in known]",
         "test_holm_runs_over_all_effects_of_a_table"),
        ("alpha / max(family, 1)",
         "alpha"),
        ("if is_always_zero(row, metric) and is_always_zero(rival, metric):",
         "if False:",
         "test_top_5_errors_of_five_classes_are_no_part_of_a_family"),
        ("pictures = _mcnemar(first.decisions, second.decisions, VIEWS.get(metric, \"\")) if comparable else None",
         "pictures = None",
         "test_mcnemar_is_not_shown_where_a_cell_has_several_seeds"),
        ("fraction = 1 / contrast.folds if contrast.folds else None",
         "fraction = None",
         "test_further_folds_are_asked_for_where_they_would_decide"),
        ("UNTESTED: Final[tuple[Basis, ...]] = (\"pictures\", \"always 0\")",
         "UNTESTED: Final[tuple[Basis, ...]] = (\"always 0\",)",
         "test_votes_are_shown_and_decide_nothing"),
        ("\"pictures\", test.interval, n=1",
         "\"pictures\", test.interval, p=test.p, n=1",
         "test_votes_are_shown_and_decide_nothing"),
    ),
    *_faults("sweeps/results/claims.py", "tests/results/test_claims.py",
        ("adjusted = holm(raw).tolist()",
         "adjusted = raw",
         "test_holm_runs_over_all_comparisons_that_the_claims_of_a_sweep_make"),
        ("decision = \"not run\" if withheld else decide_all(",
         "decision = decide_all("),
    ),
    *_faults("sweeps/results/decisions.py", ("tests/results/test_claims.py", "tests/results/test_capsule.py"),
        ("return Scores(ids[order], labels[order],",
         "return Scores(ids[order], labels,"),
    ),
    *_faults("sweeps/results/marks.py", "tests/results/test_claims.py",
        ("2 * sum(map(still_falling, curves)) > len(curves)",
         "sum(map(still_falling, curves)) > 0",
         "test_cell_is_under_trained_where_most_of_its_curves_still_fall"),
    ),
    *_faults("sweeps/results/evidence.py", "tests/results/test_claims.py",
        ("        if _knows_test_set(run):",
         "        if not run.result:",
         "test_dropout_chosen_on_test_pictures_is_refused"),
    ),
    *_faults("sweeps/results/paper_cells.py", "tests/results/test_paper_cells.py",
        ("if layers(results.cell.net) != layers(net):",
         "if layers(results.cell.net) != layers(net) and False:"),
        ("(\"training\", training_pictures(results), paper.splits[\"train\"]),",
         ""),
        ("UNREADABLE: Final = 0.001",
         "UNREADABLE: Final = 0.01"),
        ("    if classes := other_classes(results, paper_set):",
         "    if classes := \"\":"),
    ),
    *_faults("sweeps/results/cell_numbers.py", "tests/results/test_paper_cells.py",
        ("row.evidence.lost(metric) or too_few(",
         "too_few(",
         "test_number_with_a_lost_training_has_no_verdict"),
        ("len(ours.runs) == FOLDS and folds == {FOLDS}",
         "len(ours.runs) > 1"),
        ("if ours.average.n < 2 else",
         "if ours.average.n < 1 else"),
        ("!= {\"match\"}:",
         "== set():"),
    ),
    *_faults("sweeps/analysis/pairing_scores.py", "tests/analysis/test_pairing.py",
        ("p=_monte_carlo(np.abs(gaps))",
         "p=_monte_carlo(gaps)",
         "test_p_of_the_mean_is_two_sided"),
        ("return float((statistics >= statistics[0] - 1e-12).mean())",
         "return float((statistics > statistics[0] + 1e-12).mean())",
         "test_contrast_measures_what_it_says"),
        ("rng.chisquare(inputs - on, (count, rank))",
         "rng.chisquare(inputs, (count, rank))",
         "test_a_triangle_of_filters_has_the_mu_of_filters_drawn_one_by_one"),
        ("random_mu(k, weight[0].numel(), draws, seed, stream)",
         "random_mu(len(weight) // groups, weight[0].numel(), draws, seed, stream)",
         "test_a_layer_is_ranked_among_layers_of_as_many_filters"),
    ),
    *_faults("sweeps/results/analyses.py", "tests/analysis/test_analysis_jobs.py",
        ("note is None or note.get(\"schema\") != SCHEMA or note",
         "note is None or note",
         "test_each_request_has_its_own_place_and_the_report_reads_the_defaults"),
    ),
    *_faults("sweeps/results/analyses.py", "tests/report/test_foreign_ledger.py",
        ("return note if at_home and known_analysis_files(note.get(\"files\")) else None",
         "return note if at_home else None"),
    ),
    *_faults("sweeps/store/foreign.py", "tests/store/test_foreign.py",
        ("part in (\"\", \".\", \"..\") for part in parts",
         "part in (\"\", \".\") for part in parts"),
        ("name in TRIAL_FILES and isinstance",
         "isinstance"),
        ("isinstance(name, str) and ANALYSIS_FILE.fullmatch(name)",
         "isinstance(name, str) and ANALYSIS_FILE.search(name)"),
        ("return {printable(name): _printable(part)",
         "return {name: _printable(part)"),
        ("if not SUSPECT.search(content):",
         "if b\"\\\\u\" not in content:"),
    ),
    *_faults("sweeps/store/ledger.py", "tests/store/test_foreign.py",
        ("known_trial_files(result.get(\"files\", {}))",
         "True"),
        ("if os.path.islink(part):",
         "if False:"),
        (" | os.O_NOFOLLOW",
         ""),
        ("return value if value is None else printable_json(content, value)",
         "return value"),
    ),
    *_faults("sweeps/store/logins.py", "tests/store/test_foreign.py",
        ("if flag and has_password(flag):",
         "if False:"),
        ("if scheme not in VARIABLES or \"password=\" in parts.query:",
         "if scheme not in VARIABLES:"),
        ("environment[password] = unquote(parts.password or \"\")",
         "environment[password] = parts.password or \"\""),
    ),
    *_faults("sweeps/store/integrity.py", "tests/store/test_integrity.py",
        ("            if actual != digest:\n",
         "            if not actual:\n"),
        ("if names is not None and name not in names:",
         "if False:"),
        ("        with suppress(OSError):  # a disk",
         "        with suppress():  # a disk"),
        ("elif name == HISTORY and not _is_history(ledger.read(path)):",
         "elif False:"),
    ),
    *_faults("sweeps/store/leftovers.py", "tests/store/test_leftovers.py",
        ("if ledger.result(key) is not None:",
         "if ledger.names(\"results\"):"),
        ("if now - path.lstat().st_mtime > AGE:",
         "if True:"),
    ),
    *_faults("data/storage.py", "tests/store/test_leftovers.py",
        ("if above != folder or not any(folder.iterdir()):",
         "if above != folder:"),
        ("    _DEVICES[folder] = device\n",
         ""),
        ("    if device == known:\n",
         "    if folder == above:\n"),
    ),
    *_faults("sweeps/experiment/plan.py", "tests/report/test_damaged_trials.py",
        ("        if result is not None and trial.key in damaged:\n",
         "        if False:\n"),
        ("if trial.key in torn and state in (\"new\", \"running\"):",
         "if False:"),
    ),
    *_faults("sweeps/results/capsule.py", "tests/results/test_capsule.py",
        ("if not NAMES.fullmatch(name):",
         "if False:", "test_damaged_and_hostile_capsules_are_refused"),
        ("    if room.left < 0:\n",
         "    if False:\n", "test_capsule_unpacks_to_a_few_times_its_size_or_is_refused"),
        ("if stat.S_ISLNK(info.external_attr >> 16):",
         "if False:", "test_capsule_that_holds_a_link_is_refused"),
    ),
    *_faults("sweeps/ops/mlflow_backup.py", "tests/ops/test_foreign_backup.py",
        ("if not entry.isreg() or entry.issparse():",
         "if not entry.isreg():"),
        ("tarfile.open(source, \"r:\")",
         "tarfile.open(source)"),
        ("if further := unpacked - sums.keys() - {MANIFEST}:",
         "if further := set():"),
    ),
    *_faults("sweeps/report/build.py", "tests/report/test_foreign_ledger.py",
        ("if not same_store(uri, store):",
         "if False:", "test_store_that_only_the_ledger_names_is_not_asked"),
    ),
    *_faults("sweeps/report/render/formats.py", "tests/report/test_page.py",
        ("return f\"'{text}\" if text.lstrip()",
         "return text if text.lstrip()", "test_no_text_is_a_formula_in_csv"),
        ("    if numbered:\n",
         "    if False:\n", "test_words_that_are_plain_stay_as_they_are_in_markdown"),
    ),
    *_faults("sweeps/analysis/job.py", "tests/analysis/test_analysis_jobs.py",
        ("numbers = {} if summary[\"request\"] else summary[\"metrics\"]",
         "numbers = summary[\"metrics\"]",
         "test_tables_and_pictures_go_to_the_run_once"),
    ),
    *_faults("sweeps/analysis/compute.py", "tests/analysis/test_analysis_jobs.py",
        ("return f\"{spec.job}/{spec.request}\" if spec.request else spec.job",
         "return spec.job",
         "test_each_request_has_its_own_place_and_the_report_reads_the_defaults"),
    ),
    *_faults("sweeps/results/claims.py", "tests/results/test_paper_cells.py",
        ("reasons = [reduced(cells[network], network[0])",
         "reasons = [\"\"",
         "test_verdicts_and_claims_are_withheld_with_the_reason"),
    ),
    *_faults("sweeps/results/paper_cells.py", "tests/results/test_claims.py",
        ("(\"4\", \"CReLU conv1,4,7\"): (\"S13\",        IMAGENET_ADAM)",
         "(\"4\", \"CReLU conv1,4,7\"): (\"S13\",        IMAGENET_SGD)"),
    ),
    # sweeps/execution
    *_faults("sweeps/execution/packing.py", "tests/execution/test_packing.py",
        ("MIN_RATIO = 0.1",
         "MIN_RATIO = 0.5"),
        ("if state + more + max(peak, step) <= self.memory:",
         "if state + more <= self.memory:"),
    ),
    *_faults("sweeps/execution/resources.py", "tests/execution/test_resources.py",
        ("int(self.cpus) // self.ranks)",
         "int(self.cpus))"),
    ),
    # sweeps/tracking
    *_faults("sweeps/tracking/layout.py", "tests/tracking/test_tracking.py::test_placement_fits_an_axis",
        ("number == runs[-1][-1] + 1",
         "number >= runs[-1][-1] + 1"),
    ),
    *_faults("sweeps/tracking/layout.py", "tests/tracking/test_cell_runs.py",
        ("while name[:AXIS] in beginnings:",
         "while name in beginnings:",
         "test_names_of_cells_differ_in_what_the_compare_view_shows"),
        ("(tags.get(LEDGER), tags.get(SWEEP)) == self",
         "tags.get(SWEEP) == self.sweep",
         "test_two_people_on_one_server_leave_each_other_s_runs_alone"),
        ("(tags.get(LEDGER), tags.get(SWEEP)) == self",
         "tags.get(LEDGER) == self.ledger",
         "test_two_sweeps_with_one_cell_have_a_run_of_it_each"),
        ('(key, result["finished_ms"]) for key',
         "key for key",
         "test_a_trial_trained_anew_leaves_no_note_of_the_earlier_one"),
    ),
    *_faults("sweeps/tracking/mlflow_client.py", "tests/tracking/test_cell_runs.py",
        ('step = int(stored.data.tags.get(REVISION, "0")) + 1',
         "step = 0",
         "test_an_analysis_made_again_shows_its_new_number"),
    ),
    *_faults("sweeps/tracking/cell_runs.py", "tests/tracking/test_cell_runs.py",
        ("return names <= numbers.keys() and all(",
         "return all(",
         "test_numbers_of_earlier_trainings_are_gone"),
        ("or name in CHOSEN",
         "",
         "test_a_cell_s_dropout_goes_while_its_study_is_made_again"),
        ("if tags.get(TRAININGS) == digest and VOTE in metrics:",
         "if VOTE in metrics:",
         "test_vote_and_note_go_with_the_trainings_that_they_are_of"),
        ("if key == holder and tags.get(REPORT) != digest:",
         "if tags.get(REPORT) != digest:",
         "test_report_lies_on_one_run_and_all_cells_name_it"),
    ),
    *_faults("sweeps/tracking/mlflow_runs.py", "tests/tracking/test_cell_runs.py",
        ("if run is not None and not _agree(self.index.finals.get(key, {}), measured):",
         "if False:",
         "test_a_trial_trained_anew_to_another_error_has_a_new_run"),
    ),
    *_faults("sweeps/tracking/run_index.py", "tests/tracking/test_cell_runs.py",
        ("return run.info.run_id in (note",
         "return True or run.info.run_id in (note",
         "test_runs_of_an_earlier_version_are_taken_over_where_the_ledger_names_them"),
        ("{run.data.tags.get(PARENT, \"\") for run in [*owned, *noted]} - others",
         "{run.data.tags.get(PARENT, \"\") for run in [*owned, *noted]}",
         "test_a_cell_s_run_of_an_earlier_version_stays_where_somebody_s_trial_is_below_it"),
    ),
    *_faults("sweeps/store/ledger.py", "tests/store/test_ledger.py",
        ("os.link(self.path(draft), target)",
         "os.replace(self.path(draft), target)",
         "test_of_two_who_write_once_the_first_stays_unless_it_is_damaged"),
    ),
    *_faults("sweeps/report/render/html.py", "tests/report/test_size.py",
        ("room = LARGEST - len(text.encode()) - words",
         "room = 100 * LARGEST",
         "test_all_analyses_fit_on_the_page"),
    ),
    # sweeps/cli and sweeps/report
    *_faults("sweeps/cli/status.py", "tests/results/test_cell_numbers.py",
        ('"test_top1_err": main.mean if main else None',
         '"test_top1_err": 0.0',
         "test_four_views_show_the_same_numbers"),
        ("(error_text(plan.tested(cell)), plan.lost(cell))",
         "(\"0.0\", plan.lost(cell))",
         "test_four_views_show_the_same_numbers"),
        ('main = known.get("folds") or known.get("single")',
         'main = known.get("single") or known.get("folds")',
         "test_four_views_show_the_same_numbers"),
    ),
    *_faults("sweeps/report/terminal.py", "tests/results/test_cell_numbers.py",
        ('if s.trial.phase == "fold" and s.result is not None]',
         "if s.result is not None]",
         "test_folds_alone_vote_also_where_single_left_scores"),
        ("printed(cell.table, stands_for(cell), cell.row, m)",
         "printed(cell.table, stands_for(cell), cell.row, TOP1)",
         "test_four_views_show_the_same_numbers"),
        ('f" ±{number.se:.2f}"',
         'f" ±{number.se:.1f}"',
         "test_four_views_show_the_same_numbers"),
    ),
)
# fmt: on


class _FirstFailure:
    """Plugin of pytest that notes the first failure."""

    def __init__(self) -> None:
        self.test = ""
        self.reason = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note a failed phase of a test."""
        self._note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Note a file that cannot be collected."""
        self._note(report)

    def _note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.failed and not self.test:
            self.test = report.nodeid
            self.reason = _line(report.longreprtext)[-200:]


@contextmanager
def mutated_tree(mutation: Mutation | None) -> Iterator[Path]:
    """Copy the tree to a temporary folder, with one file mutated."""
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        root = Path(folder)
        for name in TREE:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, root / name)
            else:
                shutil.copy2(source, root / name)
        if mutation is not None:
            content = mutation.apply(root)
            compile(content, mutation.file, "exec")
            (root / mutation.file).write_text(content, encoding="utf-8")
        yield root


def run_tests(root: Path, *tests: str) -> Outcome:
    """Run tests or files of tests in a tree, in a forked process that has the libraries and none of our code."""
    began = time.monotonic()
    answer = root / "outcome.json"
    answer.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        try:
            _run_in_child(root, tests, answer)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    seconds = round(time.monotonic() - began, 1)
    if not answer.exists():
        return Outcome("invalid", "", seconds, "the process of the tests ended")
    code, test, reason = json.loads(answer.read_text())
    if code == 0:
        return Outcome("survived", "", seconds)
    if code != 1 or "Timeout" in reason:
        return Outcome("invalid", test, seconds, reason or f"pytest ended with {code}")
    return Outcome("caught", test, seconds, reason)


def _run_in_child(root: Path, tests: tuple[str, ...], answer: Path) -> None:
    """Run pytest with the tree first on the path, its output in a file; write exit code and first failure."""
    import pytest

    for name in [name for name in sys.modules if name.partition(".")[0] == "benchmarks"]:
        del sys.modules[name]
    os.chdir(root)
    sys.path[:] = [str(root), *(entry for entry in sys.path if entry and Path(entry).resolve() != ROOT)]
    os.environ["PYTHONPATH"] = str(root)
    # Without the plugins that no test needs: pytest would rewrite all of Hypothesis anew each time.
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    seen = _FirstFailure()
    with (root / "pytest.log").open("w") as log, redirect_stdout(log), redirect_stderr(log):
        code = pytest.main([*OPTIONS, *tests], plugins=[seen])
    answer.write_text(json.dumps([int(code), seen.test, seen.reason]))


def try_mutation(mutation: Mutation) -> Outcome:
    """Apply a mutation to a copy of the tree and run its tests there, one after another, until one fails."""
    began = time.monotonic()
    try:
        with mutated_tree(mutation) as root:
            outcomes = (run_tests(root, test) for test in mutation.tests)
            last = next((outcome for outcome in outcomes if outcome.word != "survived"), Outcome("survived", "", 0.0))
    except SyntaxError as error:
        last = Outcome("invalid", "", 0.0, f"it does not compile: {error}")
    return last._replace(seconds=round(time.monotonic() - began, 1))


def main() -> int:
    """Run the mutations asked for and print what became of each; return 1 where one survived or was invalid."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="GLOB", nargs="+", default=["*"], help="of the mutations' names")
    parser.add_argument("--list", action="store_true", help="print the mutations and run none")
    parser.add_argument("--record", type=Path, help="file of outcomes; mutations that it holds as caught are not run")
    parser.add_argument("--jobs", type=int, default=1, help="copies at a time (default 1)")
    parser.add_argument("--baseline", action="store_true", help="run what caught a mutation on the unchanged tree")
    options = parser.parse_args()
    chosen = [each for each in MUTATIONS if any(fnmatch.fnmatchcase(each.name, glob + "*") for glob in options.only)]
    if options.list:
        print("\n".join(mutation.name for mutation in chosen))
        return 0
    for mutation in chosen:
        mutation.apply(ROOT)
    for library in LIBRARIES:
        __import__(library)
    gc.freeze()
    outcomes = _recorded(options.record)
    if options.baseline:
        return _baseline([outcomes[each.name].by for each in chosen if each.name in outcomes])
    to_do = [each for each in chosen if each.name not in outcomes or outcomes[each.name].word != "caught"]
    with ThreadPoolExecutor(options.jobs) as pool:
        for mutation, outcome in zip(to_do, pool.map(try_mutation, to_do), strict=True):
            outcomes[mutation.name] = outcome
            print(
                f"{outcome.word:9}{outcome.seconds:6.1f} s  {mutation.name}  {outcome.by}  {outcome.why[-80:]}",
                flush=True,
            )
            if options.record:
                with options.record.open("a") as file:
                    file.write(json.dumps([mutation.name, *outcome]) + "\n")
    print(table(chosen, outcomes))
    return int(any(outcomes[mutation.name].word != "caught" for mutation in chosen))


def _recorded(path: Path | None) -> dict[str, Outcome]:
    """Return the outcomes that a file holds, the last one of each mutation."""
    lines = path.read_text().splitlines() if path is not None and path.exists() else []
    return {name: Outcome(*rest) for name, *rest in map(json.loads, lines)}


def _baseline(tests: list[str]) -> int:
    """Run tests on the unchanged tree, file by file; return 1 where one fails, which says nothing of a mutation."""
    failed = 0
    by_file: dict[str, set[str]] = {}
    for test in filter(None, tests):
        by_file.setdefault(test.partition("::")[0], set()).add(test.partition("[")[0])
    for file, chosen in sorted(by_file.items()):
        with mutated_tree(None) as root:
            outcome = run_tests(root, *sorted(chosen))
        passed = outcome.word == "survived"
        failed += not passed
        word = "passed" if passed else "FAILED"
        print(f"{word:9}{outcome.seconds:6.1f} s  {len(chosen):3} of {file}  {outcome.by} {outcome.why}", flush=True)
    return int(failed > 0)


def table(chosen: list[Mutation], outcomes: dict[str, Outcome]) -> str:
    """Return counts by room, then every mutation with the test that caught it, as Markdown."""
    lines = ["| room | mutations | caught | survived | invalid |", "|---|---:|---:|---:|---:|"]
    rooms = {room: Counter(outcomes[each.name].word for each in chosen if each.room == room)
             for room in dict.fromkeys(each.room for each in chosen)}  # fmt: skip
    total = sum(rooms.values(), Counter[str]())
    for room, words in [*rooms.items(), ("all", total)]:
        lines.append(f"| {room} | {words.total()} | {words['caught']} | {words['survived']} | {words['invalid']} |")
    share = 100 * total["caught"] / max(1, total.total())
    lines += [f"\n{share:.1f} % caught.\n", "| file | line | caught by |", "|---|---|---|"]
    for each in chosen:
        outcome = outcomes[each.name]
        test = outcome.by.partition("::")[2].partition("[")[0]
        shown = test if outcome.word == "caught" else f"**{outcome.word}** {outcome.why}".strip()
        change = " → ".join(f"`{_line(text)}`" if _line(text) else "nothing" for text in (each.old, each.new))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in (each.file, change, shown)) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
