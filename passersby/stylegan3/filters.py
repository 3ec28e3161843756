"""Low-pass filters of StyleGAN3: Kaiser-windowed sinc, separable or radially symmetric (jinc)."""

import numpy as np
import scipy.signal
import scipy.special


def lowpass_filter(taps: int, cutoff: float, half_width: float, rate: float, radial: bool = False) -> np.ndarray | None:
    """A low-pass FIR filter with DC gain 1 (Karras et al. 2021, appendix B).

    `cutoff`, `half_width` (of the transition band) and `rate` share one unit. Returns float32 [taps], or
    [taps, taps] when `radial`; None for one tap, which is no filter.
    """
    if taps == 1:
        return None
    if not radial:
        kernel = scipy.signal.firwin(numtaps=taps, cutoff=cutoff, width=half_width * 2, fs=rate)
        return kernel.astype(np.float32)
    x = (np.arange(taps) - (taps - 1) / 2) / rate
    r = np.hypot(*np.meshgrid(x, x))  # never 0: `taps` is even
    kernel = scipy.special.j1(2 * cutoff * (np.pi * r)) / (np.pi * r)
    attenuation = scipy.signal.kaiser_atten(taps, half_width * 2 / (rate / 2))
    window = np.kaiser(taps, scipy.signal.kaiser_beta(attenuation))
    kernel *= np.outer(window, window)
    return (kernel / kernel.sum()).astype(np.float32)
