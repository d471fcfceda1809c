"""The machines that train: what each needs for it, as its workers found by timing."""
