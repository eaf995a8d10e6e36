"""Classifiers on features or on the whole backbone: k-NN, linear, logistic regression, SVM, fine-tuning.

Each module takes features or a backbone, and labels, and returns accuracies; `evaluation.commands` prints them.
"""
