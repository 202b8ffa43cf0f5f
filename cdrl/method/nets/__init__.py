"""The two networks of a pair. Both take (x, logsnr, label) and know nothing of schedules, chains or losses."""

from cdrl.method.nets.energy import EnergyNet
from cdrl.method.nets.initializer import Initializer
from cdrl.method.nets.points import PointInitializer
from cdrl.method.nets.spectral import power_iterate

__all__ = ["EnergyNet", "Initializer", "PointInitializer", "power_iterate"]
