"""Distillation: a student learns to predict a teacher's hidden states (Kerpicci et al. 2023, sec. 2).

The paper's loss is in ``loss.py``, the training loop in ``train.py``, one training step in ``trainer.py``.
"""
