"""The estimators known by name."""

from collections.abc import Callable

from search_core.estimators.base import Estimator
from search_core.estimators.dsnas import DSNAS, PathIntegratedDSNAS
from search_core.estimators.gumbel import StraightThroughGumbel
from search_core.estimators.paired import PairedDSNAS
from search_core.estimators.proxyless import Proxyless, ProxylessTwoPath
from search_core.estimators.reinforce import Reinforce

ESTIMATORS: dict[str, Callable[..., Estimator]] = {
    estimator.name: estimator
    for estimator in (
        DSNAS,
        PathIntegratedDSNAS,
        PairedDSNAS,
        Proxyless,
        ProxylessTwoPath,
        Reinforce,
        StraightThroughGumbel,
    )
}
