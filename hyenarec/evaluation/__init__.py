"""From a model's scores to ranks, figures, reports and recommendations."""
