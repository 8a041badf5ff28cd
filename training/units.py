"""Large numbers for people."""


def with_unit(value: float, unit: str) -> str:
    """Three digits and a prefix: 1.52 GB."""
    prefixes = ["", "k", "M", "G", "T", "P", "E", "Z", "Y"]
    thousands = min((len(f"{value:.0f}") - 1) // 3, len(prefixes) - 1)
    return f"{value / 1000**thousands:.3g} {prefixes[thousands]}{unit}"
