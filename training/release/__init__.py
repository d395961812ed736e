"""From trained models to a judged release."""
