"""From prompts to text embeddings: templates (constants of the models) and encoders."""
