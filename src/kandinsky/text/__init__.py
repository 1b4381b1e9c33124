"""Prompts to text states: templates (constants of the models) and encoders."""
