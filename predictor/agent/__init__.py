"""The device agent: a leaf that needs neither torch, scikit-learn nor the rest of Tailor."""
