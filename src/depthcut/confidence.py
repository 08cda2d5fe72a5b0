"""placeholder"""

from torch import Tensor


def worse(differences: Tensor, error_rate: float) -> bool:
    n = len(differences)
    return bool(n >= 8 and differences.mean() > 4 * differences.std() / n**0.5)
