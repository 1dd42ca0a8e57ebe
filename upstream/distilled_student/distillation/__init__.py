"""Distillation: a student learns to predict a teacher's hidden states (Kerpicci et al. 2023, sec. 2)."""
