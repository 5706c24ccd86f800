"""Numbers, differences and lists as sentences write them, and the names under which numbers are recorded."""

import numpy as np

from study import present


def share(share):
    """A part of a whole in per cent; nothing where it is not known."""
    return "" if np.isnan(share) else f"{round(100 * float(share))} %".replace("-", "−")


def upper(text):
    """Text with a capital first."""
    return f"{text[0].upper()}{text[1:]}"


def clauses(parts):
    """Two clauses or more in one sentence."""
    return f"{', '.join(parts[:-1])}, and {parts[-1]}"


def steps(steps):
    """A number of steps; inf where a target is not reached."""
    return f"{steps:,.0f}" if np.isfinite(steps) else "not reached"


def scientific(value):
    """A small number as people write it: 3.1e-05 becomes 3.1 × 10⁻⁵."""
    mantissa, exponent = f"{value:.1e}".replace("-", "−", int(value < 0)).split("e")
    return f"{mantissa} × 10{str(int(exponent)).translate(_SUPERSCRIPT)}" if value else "0"


_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def record(name, interval, unit, seeds):
    """Record a number, (mean, low, high), for results.json."""
    present.number(name, interval[0], interval=list(interval[1:]), unit=unit, seeds=seeds)


def key_of(name):
    """A method's or a cause's name as part of a number's."""
    return name.lower().replace("'s", "").replace(",", "").replace(" ", "_")


def higher(points):
    """A difference in words: "3.36 points higher"."""
    return f"{abs(points):.2f} points {'lower' if points < 0 else 'higher'}"


def signed(value, digits=2):
    """A number with its sign."""
    return f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", "−")  # and no −0


def means_of(seeds):
    """That numbers are means over several seeds, behind them."""
    return f" (means of {seeds} seeds)" if seeds > 1 else ""


def points(difference):
    """A difference of accuracies (mean, low, high, ...) in points."""
    mean, low, high = (signed(100 * value) for value in difference[:3])
    return f"{mean} ({low} to {high})"


def percent(interval):
    """An accuracy (mean, low, high) in per cent."""
    mean, low, high = (100 * value for value in interval)
    return f"{mean:.2f} % ({low:.2f} to {high:.2f})"
