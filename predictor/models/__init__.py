"""Estimators behind the latency models; scikit-learn's contract, one file each."""
