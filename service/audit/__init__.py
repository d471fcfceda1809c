"""Who changed what, and when: written with every change, never changed itself."""
