"""`count_gmacs` under the name that other projects import it by."""

from util.measuring.flops import count_gmacs

__all__ = ["count_gmacs"]
