"""A small closed world in Chinese, made from a seed: what a model of two million parameters can learn, not only recite.

Every skill can be tried on combinations that its training never held (skills.py says how they are kept apart).
"""
