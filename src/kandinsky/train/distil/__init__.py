"""Distillation: students that need no guidance or few steps, taught by a model that needs both."""
