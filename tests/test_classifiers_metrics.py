"""Measures against numbers worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from classifiers import metrics as m


def test_macro_f1_of_a_worked_example():
    # truth 0 0 0 1 1, predicted 0 0 1 1 0: F1(0) = 2*2/(3+3) = 2/3, F1(1) = 2*1/(2+2) = 1/2
    matrix = m.confusion(np.array([0, 0, 0, 1, 1]), np.array([0, 0, 1, 1, 0]), 2)
    assert matrix.tolist() == [[2, 1], [1, 1]]
    assert m.macro_f1(matrix) == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_a_class_that_is_absent_does_not_enter_macro_f1():
    matrix = m.confusion(np.array([0, 0]), np.array([0, 2]), 3)
    assert m.macro_f1(matrix) == pytest.approx(2 / 3)


def test_ece_of_a_worked_example():
    # bin 0.9-1.0: confidence 0.95, 1 of 2 right; bin 0.6-0.7: 0.65, both right; half of the cells each
    confidence = np.array([0.95, 0.95, 0.65, 0.65])
    right = np.array([True, False, True, True])
    assert m.expected_calibration_error(confidence, right) == pytest.approx(0.45 / 2 + 0.35 / 2)


def test_a_confidence_of_one_falls_in_the_last_bin():
    assert m.expected_calibration_error(np.ones(3), np.ones(3, bool)) == 0


def test_auroc_counts_pairs_and_ties_half():
    assert m.auroc(np.array([0.1, 0.4]), np.array([0.35, 0.8])) == pytest.approx(3 / 4)
    assert m.auroc(np.array([0.5]), np.array([0.5])) == pytest.approx(0.5)


def test_temperature_undoes_overconfidence():
    random = np.random.default_rng(0)
    logits = random.normal(0, 1.5, (4000, 4))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    truth = np.array([random.choice(4, p=row) for row in p])
    assert m.fit_temperature(logits * 3, truth) == pytest.approx(3, rel=0.1)


def test_wilson_of_a_published_case():
    # Newcombe 1998, table I: 81/263 has (0.2553, 0.3662) by Wilson's score without correction
    assert m.wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert m.wilson(0, 0) == (0.0, 1.0)


def test_the_mean_binary_accuracy_flatters_and_is_named_so():
    # Eight classes, every cell named class 0: top-1 1/8, yet the mean of binary accuracies is 25/32
    truth = np.arange(8)
    p = np.tile(np.eye(8)[0], (8, 1))
    found = m.summary(truth, p, tuple("abcdefgh"))
    assert found["top1"] == pytest.approx(1 / 8)
    assert found["mean_binary_accuracy_not_top1"] == pytest.approx(25 / 32)


@pytest.mark.parametrize(
    ("precision", "recall", "reported"), [(0.6214, 0.6171, 0.9639), (0.6, 0.5968, 0.9619)]
)
def test_the_accuracy_of_the_inceptionresnetv2_paper_is_a_mean_of_binary_ones(precision, recall, reported):
    # Its table 3, training and validation: the reported accuracy follows from the precision and recall beside
    # it, with 21 classes, to the last digit.  The share of cells named right is near the recall.
    assert round(m.mean_binary_accuracy(precision, recall, 21), 4) == reported


def test_the_mean_binary_accuracy_of_top_1_predictions_agrees_with_the_summary():
    random = np.random.default_rng(0)
    truth = random.integers(0, 5, 200)
    p = np.eye(5)[random.integers(0, 5, 200)]
    found = m.summary(truth, p, tuple("abcde"))
    # One class is named a cell, so micro-averaged precision and recall are the top-1.
    expected = m.mean_binary_accuracy(found["top1"], found["top1"], 5)
    assert found["mean_binary_accuracy_not_top1"] == pytest.approx(expected)


def test_the_summary_says_what_the_reader_needs_of_every_class():
    truth = np.array([0, 0, 1, 2])
    p = np.array([[0.9, 0.1, 0], [0.4, 0.6, 0], [0.2, 0.8, 0], [0.1, 0.1, 0.8]])
    found = m.summary(truth, p, ("a", "b", "c"))
    assert found["confusion"] == [[1, 1, 0], [0, 1, 0], [0, 0, 1]]
    assert found["per_class"]["b"]["precision"] == 0.5
    assert found["per_class"]["b"]["precision_interval"] == m.wilson(1, 2)
    assert found["per_class"]["a"]["recall_interval"] == m.wilson(1, 2)
    assert found["per_class"]["a"]["auc_one_vs_rest"] == 1.0


def test_a_perfect_classifier_has_perfect_measures():
    truth = np.array([0, 1, 2, 2])
    found = m.summary(truth, np.eye(3)[truth], ("a", "b", "c"))
    assert found["top1"] == found["macro_f1"] == 1
    assert found["ece"] == 0
    assert found["per_class"]["c"]["auc_one_vs_rest"] == 1
